"""The pipeline as a model of anomalib 2.7, which its Engine fits, tests and predicts with.

::

    from anomalib.engine import Engine
    from clipsam.anomalib_model import AnomalibClipSAM

    model = AnomalibClipSAM(ClipSAM.from_pretrained("runs/visa/best"), category="metal nut")
    Engine().fit(model, datamodule=datamodule)

Fitting trains nothing: it is the calibration. The scores of n sound images give the threshold whose share of false
alarms on further sound ones is at most α, the ⌈(n+1)(1−α)⌉-th smallest of them, and the maxima of their maps that of
pixels. In anomalib's normalised scores the threshold is 0.5.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, Resize

from clipsam.conformal import ALPHA, conformal_threshold
from clipsam.exported import Exported
from clipsam.mmr import refine
from clipsam.pipeline import ClipSAM

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# the extra may not be installed where the types are checked
try:
    from anomalib import LearningType
    from anomalib.data import InferenceBatch
    from anomalib.models import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
except ImportError as error:
    raise ImportError("a model of anomalib's needs: pip install anomalib") from error


class AnomalibClipSAM(AnomalibModule):
    """The pipeline as a Lightning module.

    Args:
        pipeline: with heads or without; its segmenter, if any, refines the maps of tests and predictions.
        category: what the images show; unset: what the data module says, else "object".
        alpha: share of false alarms among sound images.
        options: of anomalib's class: ``evaluator``, ``visualizer``.

    Raises:
        ValueError: an α that is not possible.
    """

    def __init__(self, pipeline: ClipSAM, category: str | None = None, alpha: float = ALPHA, **options: Any) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha!r} is not possible; allowed: between 0 and 1")
        side = [pipeline.backbone.image_size] * 2
        squash = Resize(side, InterpolationMode.BICUBIC, antialias=True)
        super().__init__(pre_processor=PreProcessor(squash), post_processor=Calibrated(), **options)
        self.model, self.category, self.alpha = Network(pipeline, category or "object"), category, alpha
        self.sound: list[tuple[float, float]] = []

    def setup(self, stage: str) -> None:
        """Take the category from the data module, if none was given."""
        named = getattr(getattr(self.trainer, "datamodule", None), "category", None)
        if self.category is None and named:
            self.model.category = named

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def training_step(self, batch: Any, *_: Any) -> Tensor:
        """Note the scores of sound images."""
        with torch.no_grad():
            maps, scores = self.model.rough(batch.image)
        self.sound += zip(scores.tolist(), maps.amax((1, 2)).tolist())
        return torch.zeros((), device=self.device, requires_grad=True)

    def on_train_epoch_end(self) -> None:
        """Set the thresholds.

        Raises:
            ValueError: fewer images than α needs.
        """
        images, pixels = (conformal_threshold(values, self.alpha) for values in zip(*self.sound))
        self.post_processor.calibrate(images, pixels)
        self.sound = []

    def validation_step(self, batch: Any, *_: Any) -> Any:
        """Return the batch with scores and maps."""
        return batch.update(**self.model(batch.image)._asdict())

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the sound images, on one device."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "gradient_clip_val": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """Sound images are asked for, to calibrate with."""
        return LearningType.ONE_CLASS


class Network(nn.Module):
    """What anomalib asks of the network inside: scores and maps of images in [0, 1].

    Args:
        pipeline: see :class:`AnomalibClipSAM`.
        category: what the images show.
    """

    def __init__(self, pipeline: ClipSAM, category: str) -> None:
        super().__init__()
        self.pipeline, self.category = pipeline, category

    def rough(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps ``(B, S, S)`` and scores ``(B,)`` of images ``(B, 3, S, S)``, before the refinement."""
        return Exported(self.pipeline, self.category)(images)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Return scores ``(B,)`` and maps ``(B, 1, S, S)``."""
        with torch.no_grad():
            maps, scores = self.rough(images)
        segmenter = self.pipeline.segmenter
        if segmenter is not None:
            pixels = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
            pairs = zip(pixels, maps.cpu().numpy())
            refined = [refine(image, rough, segmenter, self.pipeline.mmr).anomaly_map for image, rough in pairs]
            maps = torch.from_numpy(np.stack(refined)).to(maps.device)
        return InferenceBatch(pred_score=scores, anomaly_map=maps[:, None])


class Calibrated(PostProcessor):
    """anomalib's post-processing with thresholds that do not come from the validation's labels."""

    def calibrate(self, image_threshold: float, pixel_threshold: float) -> None:
        """Set the thresholds; scores and maps keep their scale and are moved so that these become 0.5."""
        self._image_threshold.fill_(image_threshold)
        self._pixel_threshold.fill_(pixel_threshold)
        for low, high in ((self.image_min, self.image_max), (self.pixel_min, self.pixel_max)):
            low.fill_(0)
            high.fill_(1)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Leave the thresholds as they are."""

    def on_validation_epoch_end(self, *_: Any, **__: Any) -> None:
        """Leave the thresholds as they are."""

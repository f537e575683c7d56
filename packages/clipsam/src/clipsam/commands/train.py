"""``clipsam train``: UMCI on a frozen CLIP, whose patch tokens are computed once.

The paper trains on the test split of one data set, because only there are masks, and tests on another. The embedded
heads are trained on drawn images and painted photographs alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clipsam.backbone import Backbone
from clipsam.commands.models import backbone_of, prompt_bank
from clipsam.commands.options import EMBEDDED, TrainConfig
from clipsam.data.derived import Joined
from clipsam.data.features import Features, compute_features
from clipsam.data.origin import origin_of
from clipsam.data.sources import training_data
from clipsam.embedded.dinov2 import BLOCKS
from clipsam.embedded.fitting import fit
from clipsam.losses import STAGE_WEIGHTS, stage_loss
from clipsam.metrics import PixelMetrics
from clipsam.pipeline import ClipSAM
from clipsam.prompt_bank import OBJECT, PromptBank
from clipsam.samples import AnomalyData
from clipsam.umci import UMCIHead, rough_map
from frugal_shared.checkpoint import read_json, write_json
from frugal_shared.errors import UsageError
from frugal_shared.run import Run
from frugal_shared.training import share

GENERIC_SHARE = 0.5  # of the images, whose category is only called "object": it need not be known at test time
BEST = "best"
VAL_BATCH = 32


def main(config: TrainConfig) -> None:
    """Train, keep the best checkpoint by validation AP in ``<output_dir>/best``, and write the results.

    Raises:
        UsageError: stages, a batch or data that are not possible.
    """
    if config.is_embedded and config.stages != BLOCKS:
        raise UsageError(f"stages={config.stages!r} of the embedded CLIP; allowed: {BLOCKS}")
    train_data, val_data = training_data(config.data, config.images, config.val_images, config.seed, config.reading)
    backbone, bank = backbone_of(config, stages=config.stages), prompt_bank(config) or PromptBank()
    with Run(config, "clipsam") as run:
        backbone.to(run.accelerator.device)
        torch.manual_seed(config.seed)
        options = {"hidden": config.hidden, "pool_kernels": config.pool_kernels, "pool_stride": config.pool_stride}
        head = UMCIHead(len(config.stages), backbone.width, backbone.text_dim, **options)
        folder = config.features or run.folder / "features"
        train_set = Cached(compute_features(folder, backbone, train_data, run, "train"), train_data, backbone, bank)
        val_set = Cached(compute_features(folder, backbone, val_data, run, "val"), val_data, backbone, bank)
        model = ClipSAM(backbone, head, bank, rarity=config.rarity, provenance=provenance(config, train_data, val_data))
        best = Best(run, model, val_set)

        def loss(head: nn.Module, step: int) -> Tensor:
            random = np.random.default_rng([config.seed, step])
            rows = random.integers(len(train_data), size=config.batch_size)
            generic = random.random(config.batch_size) < GENERIC_SHARE
            rows, generic = share(run.accelerator, rows), share(run.accelerator, generic)
            patches, language, masks = train_set.batch(rows, generic)
            return stage_loss(head(patches, language), masks, stage_weights(len(config.stages)))

        course = {"steps": config.steps, "learning_rate": config.learning_rate, "save_every": config.save_every}
        fit(run, head, loss, best.update, **course)
        parameters = sum(value.numel() for value in head.parameters())
        run.finish({"steps": config.steps, "parameters": parameters, **best.read()})


def stage_weights(stages: int) -> tuple[float, ...]:
    """Return λ: the paper's of four stages, equal ones of another number."""
    return STAGE_WEIGHTS if stages == len(STAGE_WEIGHTS) else (1 / stages,) * stages


def provenance(config: TrainConfig, data: AnomalyData, val_data: AnomalyData) -> dict[str, Any]:
    """Return what a report has to say about where the heads come from; what they were chosen by was seen, too."""
    clip = config.clip or EMBEDDED
    course = {"images": len(data), "steps": config.steps, "seed": config.seed, "clip": clip}
    return origin_of(Joined((data, val_data))) | course


@dataclass(frozen=True, eq=False)
class Cached:
    """Images with cached features, and the language tokens of their categories."""

    features: Features
    data: AnomalyData
    backbone: Backbone
    bank: PromptBank

    @cached_property
    def categories(self) -> list[str]:
        """The category of every image."""
        return [entry.category for entry in self.data.entries]

    def batch(
        self, rows: Sequence[int] | NDArray, generic: Sequence[bool] | NDArray
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return some images on the backbone's device: patch tokens of every stage, language tokens, masks.

        Args:
            rows: numbers of B images.
            generic: of each, whether its category is only called "object".
        """
        device = next(self.backbone.parameters()).device
        patches, masks = self.features.batch(rows)
        names = [OBJECT if unnamed else self.categories[row] for row, unnamed in zip(rows, generic)]
        language = torch.stack([self.backbone.text(name, self.bank) for name in names])  # (B, 2, C_t)
        return [stage.to(device) for stage in patches], language.to(device), masks.to(device)


@dataclass(frozen=True, eq=False)
class Best:
    """The best checkpoint so far, by the AP of the rough maps on validation images."""

    run: Run
    model: ClipSAM
    data: Cached

    def update(self, step: int) -> dict[str, float]:
        """Validate, and keep the checkpoint if it is the best; return the validation's metrics."""
        if not self.run.accelerator.is_main_process:
            return {}
        found = self.validate()
        # where no defect is left on the small validation masks there is no AP: then the newest is kept
        if found.get("ap", -1) >= self.read().get("ap", -1):
            self.model.save_pretrained(self.run.folder / BEST)
            write_json(self.run.folder / "best.json", {"best_step": step, **found})
        return found

    def read(self) -> dict[str, float]:
        """Return the best validation's metrics, and its step."""
        path = self.run.folder / "best.json"
        return read_json(path) if path.exists() else {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return AP, F1-max, AUPRO and AUROC of the rough maps on the validation images, those that are defined."""
        head: Any = self.model.umci
        head.eval()
        metrics = PixelMetrics()
        for start in range(0, len(self.data.features), VAL_BATCH):
            rows = range(start, min(start + VAL_BATCH, len(self.data.features)))
            patches, language, masks = self.data.batch(rows, [False] * len(rows))
            maps = rough_map(head(patches, language))[:, None]
            maps = F.interpolate(maps, masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)
            for anomaly_map, mask in zip(maps.cpu().numpy(), masks.cpu().numpy()):
                metrics.update(anomaly_map, mask > 0)
        head.train()
        found = metrics.compute()
        return {name: found[name] for name in ("ap", "f1_max", "aupro", "auroc") if not np.isnan(found[name])}

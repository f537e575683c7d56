"""FID, Inception Score and CLIP score of real models' pictures, with weights that the user brings.

The networks and their preprocessing are torch-fidelity's Inception-v3 (the ported TensorFlow one that published figures
use) and transformers' CLIP. Nothing is downloaded.
"""

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_dit.commands.frechet import frechet_distance
from delta_dit.commands.pictures import to_bytes
from frugal_shared.errors import RunError, UsageError
from frugal_shared.images import image_files, read_image

INCEPTION, CLIP = "inception.pth", "clip"  # what --weights may hold
BATCH = 32


class Scores:
    """Scores of a method's pictures.

    Args:
        weights: folder with ``inception.pth`` (torch-fidelity's Inception-v3 weights), ``clip/`` (a saved transformers
            CLIP with its processor), or both.
        real: folder of real pictures for the FID; default: the FID is to the uncached pictures of the same run, which
            says how much a cache changes the distribution, not how good the model is.

    Raises:
        UsageError: a folder without the files.
        RunError: weights that cannot be read, or the ``[scores]`` extra is missing.
    """

    def __init__(self, weights: Path, real: Path | None = None) -> None:
        inception, clip = weights / INCEPTION, weights / CLIP
        if not inception.is_file() and not clip.is_dir():
            raise UsageError(f"weights={str(weights)!r} has neither; allowed: a folder with {INCEPTION} or {CLIP}/")
        self.inception = load_inception(inception) if inception.is_file() else None
        self.clip = load_clip(clip) if clip.is_dir() else None
        self.real = None if real is None or self.inception is None else self.features(read_pictures(real))[0]

    def of(self, images: Tensor, uncached: Tensor, prompts: list[str] | None) -> dict[str, float | None]:
        """Return ``fid``, ``inception_score`` and ``clip_score``; None where weights or prompts for it are missing.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            uncached: the uncached pictures of the same samples.
            prompts: N texts that the pictures were asked for, or None of a model that draws classes.
        """
        scores: dict[str, float | None] = {"fid": None, "inception_score": None, "clip_score": None}
        if self.inception is not None and len(images) > 1:
            if self.real is None:
                self.real = self.features(list(to_bytes(uncached)))[0]
            features, logits = self.features(list(to_bytes(images)))
            scores |= {"fid": frechet_distance(features, self.real), "inception_score": inception_score(logits)}
        if self.clip is not None and prompts is not None:
            scores["clip_score"] = clip_score(*self.clip, images, prompts)
        return scores

    @torch.no_grad()
    def features(self, pictures: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return Inception's pool features ``(N, 2048)`` and logits ``(N, 1008)`` of uint8 pictures ``(3, H, W)``."""
        assert self.inception is not None
        outputs = [self.inception(picture[None]) for picture in pictures]
        pooled, logits = (torch.cat(parts).double().numpy() for parts in zip(*outputs))
        return pooled, logits


def inception_score(logits: np.ndarray) -> float:
    """Return exp(E KL(p(y|x) ‖ p(y))) of logits ``(N, classes)``, in one split."""
    split = import_module("torch_fidelity.metric_isc").isc_features_to_metric(torch.from_numpy(logits), splits=1)
    return float(split["inception_score_mean"])


@torch.no_grad()
def clip_score(model: Any, processor: Any, images: Tensor, prompts: list[str]) -> float:
    """Return the mean of 100 · max(cos(image, text), 0)."""
    scores = []
    for start in range(0, len(prompts), BATCH):
        pictures = list(to_bytes(images[start : start + BATCH]))
        texts = prompts[start : start + BATCH]
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True)
        output = model(**inputs)
        scores.append(torch.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0))
    return 100 * torch.cat(scores).mean().item()


def load_inception(path: Path) -> Any:
    """Return torch-fidelity's Inception-v3 with these weights, giving pool features and unbiased logits.

    Raises:
        RunError: the file is not such weights, or torch-fidelity is missing.
    """
    module = _require("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would unpickle whatever it is given
        return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RunError(f"{str(path)!r} holds no Inception-v3 weights: {str(error).splitlines()[0]}") from error


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Return a CLIP and its processor from a local folder.

    Raises:
        RunError: the folder holds no CLIP, or transformers is missing.
    """
    transformers = _require("transformers", "transformers")
    try:
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        return model, transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{str(folder)!r} holds no CLIP: {str(error).splitlines()[0]}") from error


def read_pictures(folder: Path) -> list[Tensor]:
    """Return every picture below a folder as uint8 ``(3, H, W)``.

    Raises:
        UsageError: there are fewer than two.
        ImageError: one cannot be read.
    """
    paths = image_files(folder)
    if len(paths) < 2:
        raise UsageError(f"real={str(folder)!r} has {len(paths)} pictures; allowed: 2 or more")
    return [torch.from_numpy(np.array(read_image(path).convert("RGB"))).permute(2, 0, 1) for path in paths]


def _require(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise RunError(f"{package} is not installed; install it with: pip install {package}") from error

"""The Fréchet distance of pictures to others, in the features of a network."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frugal_shared.datasets import TexturedDigits
from frugal_shared.weights import DINOV2_VITS14, dinov2_vits14

FEATURE_PIXELS = 70  # side of the images that DINOv2 sees; 5 × 5 patches
REAL_SEED = 3000  # of the real images, other than the training's


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Return ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), the squared distance of two Gaussians fitted to features.

    Estimated from few samples it comes out too large: compare only figures with the same number of samples.

    Args:
        features: ``(N, D)``, N at least 2.
        reference: ``(M, D)``, M at least 2.
    """
    first, second = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    means = np.square(features.mean(0) - reference.mean(0)).sum()
    # the eigenvalues of a product of two covariances are real and not negative, up to rounding
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * root)


class Frechet:
    """Fréchet distance to real textured digits with the same labels, in the features of DINOv2 ViT-S/14."""

    def __init__(self, labels: Tensor) -> None:
        self.model = dinov2_vits14(FEATURE_PIXELS)
        self.real = self.features(real_images(labels))

    def of(self, images: Tensor) -> float | None:
        """Return the distance of images ``(N, 3, H, W)`` in [0, 1]; None of a single one."""
        return frechet_distance(self.features(images), self.real) if len(images) > 1 else None

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        """Return the class tokens ``(N, 384)`` in float64."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (DINOV2_VITS14.mean, DINOV2_VITS14.std))
        size = [FEATURE_PIXELS] * 2
        batches = [F.interpolate(b, size, mode="bicubic", antialias=True) for b in images.split(100)]
        return torch.cat([self.model((batch - mean) / std) for batch in batches]).double().numpy()


def real_images(labels: Tensor) -> Tensor:
    """Return one real textured digit for each label ``(N,)``, in another order: ``(N, 3, 32, 32)`` in [0, 1]."""
    missing = torch.bincount(labels, minlength=TexturedDigits.num_classes)
    found: list[Tensor] = []
    for index in itertools.count():
        if not missing.any():
            return torch.stack(found)
        for image, label in zip(*TexturedDigits("train", REAL_SEED).batch(index, 500)):
            if missing[label]:
                missing[label] -= 1
                found.append(image)
    raise AssertionError

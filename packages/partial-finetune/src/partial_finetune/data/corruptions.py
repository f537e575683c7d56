"""Thirteen corruptions of images, each in five strengths: what a tuned model is asked to withstand.

After the kinds of Hendrycks & Dietterich (ImageNet-C, ICLR 2019), but a reconstruction with code and strengths of its
own: numbers measured here are comparable with each other and not with published ones. Lengths are shares of the shorter
side, so that any size of image (16 pixels or more) suffers alike. An image's random numbers follow from the seed, the
kind and the image's index alone: its five severities share them and differ in strength only.
"""

import io
import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve

from frugal_shared.errors import UsageError, check_choice
from frugal_shared.labelled import Images

SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 16
ZOOMS = 11  # images that a zoom blur is the mean of
ROUGHNESS = 0.06  # of an elastic deformation: the Gaussian's σ as a share of the shorter side
OCTAVES = 5  # sizes of the patches in fog, each half the one before

Pixels = NDArray[np.float32]
"""``(H, W, 3)`` in [0, 1]; a corruption may leave that range."""
Corrupt = Callable[[Pixels, float, np.random.Generator], NDArray]


class Corruption(NamedTuple):
    """One kind of corruption."""

    apply: Corrupt
    strengths: tuple[float, float, float, float, float]
    """What ``apply`` is given at severities 1 to 5."""


def corrupt(image: NDArray[np.uint8], kind: str, severity: int, *, seed: int = 0, index: int = 0) -> NDArray[np.uint8]:
    """Corrupt an image, always in the same way for the same arguments.

    Args:
        image: ``(H, W, 3)`` RGB, 16 pixels or more on either side.
        kind: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all images' random numbers; 0 or more.
        index: the image's number, 0 or more: its own random numbers.

    Returns:
        Another image of the same shape.

    Raises:
        UsageError: an unknown kind or severity, or not such an image.
    """
    check_choice("corruption", kind, CORRUPTIONS)
    check_choice("severity", severity, SEVERITIES)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
        raise UsageError(f"image of {image.dtype} {image.shape}; allowed: uint8 (H, W, 3), H and W {MIN_SIDE} or more")
    corruption = CORRUPTIONS[kind]
    random = np.random.default_rng([seed, index, zlib.crc32(kind.encode())])
    pixels = corruption.apply(np.divide(image, 255, dtype=np.float32), corruption.strengths[severity - 1], random)
    return _bytes(pixels)


class Corrupted(Images):
    """Images of which every one is corrupted when it is read; its index is its place in ``images``.

    Args:
        images: the clean ones; labels and classes stay theirs.
        kind: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: 0 or more.

    Raises:
        UsageError: an unknown kind or severity.
    """

    def __init__(self, images: Images, kind: str, severity: int, seed: int = 0) -> None:
        check_choice("corruption", kind, CORRUPTIONS)
        check_choice("severity", severity, SEVERITIES)
        read = partial(_read_corrupted, images, kind, severity, seed)
        super().__init__(f"{images.name}/{kind}/{severity}", images.classes, images.labels, range(len(images)), read)


def _read_corrupted(images: Images, kind: str, severity: int, seed: int, index: int) -> Image.Image:
    image, _ = images[index]
    return Image.fromarray(corrupt(np.asarray(image), kind, severity, seed=seed, index=index))


# --- noise ---


def _gaussian_noise(x: Pixels, sigma: float, random: np.random.Generator) -> NDArray:
    """``x + σ·n``, n standard normal."""
    return x + sigma * random.standard_normal(x.shape, np.float32)


def _shot_noise(x: Pixels, darkness: float, random: np.random.Generator) -> NDArray:
    """``Poisson(x / d)·d``: counts of photons, of which white has 1 / d."""
    return random.poisson(x / darkness) * darkness


def _impulse_noise(x: Pixels, share: float, random: np.random.Generator) -> NDArray:
    """Set a share of the values to 0 or 1."""
    hit, salt = random.random(x.shape) < share, random.random(x.shape) < 0.5
    return np.where(hit, salt, x)


# --- blur ---


def _defocus_blur(x: Pixels, share: float, _: np.random.Generator) -> NDArray:
    """Convolve with a disc."""
    radius = 0.5 + share * min(x.shape[:2])  # at ½ it is the pixel itself
    across, down = _grid(radius)
    return _convolved(x, np.clip(radius + 0.5 - np.hypot(across, down), 0, 1))


def _motion_blur(x: Pixels, share: float, random: np.random.Generator) -> NDArray:
    """Convolve with a line of random direction."""
    half, angle = share * min(x.shape[:2]) / 2, random.uniform(0, np.pi)
    across, down = _grid(half)
    along = np.clip(across * np.cos(angle) + down * np.sin(angle), -half, half)
    distance = np.hypot(across - along * np.cos(angle), down - along * np.sin(angle))
    return _convolved(x, np.clip(1 - distance, 0, 1))


def _grid(radius: float) -> tuple[NDArray, NDArray]:
    """Return offsets across and down from the middle of a kernel that reaches a pixel beyond ``radius``."""
    reach = np.arange(-int(radius) - 1, int(radius) + 2)
    across, down = np.meshgrid(reach, reach)
    return across, down


def _convolved(x: Pixels, kernel: NDArray) -> NDArray:
    """Convolve every channel with a kernel of odd side, whose sum becomes 1; the image is mirrored at its border."""
    reach = len(kernel) // 2
    padded = np.pad(x, [[reach, reach], [reach, reach], [0, 0]], mode="symmetric")
    return fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1))


def _zoom_blur(x: Pixels, zoom: float, _: np.random.Generator) -> NDArray:
    """Average enlargements by 1 … 1 + ``zoom`` around the middle."""
    image, (height, width) = Image.fromarray(_bytes(x)), x.shape[:2]
    total = np.zeros(x.shape)
    for factor in np.linspace(1, 1 + zoom, ZOOMS):
        left, top = (width - width / factor) / 2, (height - height / factor) / 2
        box = (left, top, width - left, height - top)
        total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return total / (255 * ZOOMS)


# --- light and colour ---


def _brightness(x: Pixels, more: float, _: np.random.Generator) -> NDArray:
    """``x + b``."""
    return x + more


def _contrast(x: Pixels, left: float, _: np.random.Generator) -> NDArray:
    """``m + c·(x - m)``, m the mean of each channel."""
    mean = x.mean((0, 1))
    return mean + left * (x - mean)


def _saturate(x: Pixels, factor: float, _: np.random.Generator) -> NDArray:
    """``g + c·(x - g)``, g the mean of each pixel's channels: nothing happens to a grey image."""
    grey = x.mean(2, keepdims=True)
    return grey + factor * (x - grey)


def _fog(x: Pixels, thickness: float, random: np.random.Generator) -> NDArray:
    """``(1 - t)·x + t``: white light instead of the scene's, from half to all of ``thickness`` across the image."""
    fog = thickness * (0.5 + 0.5 * _clouds(x.shape[0], x.shape[1], random))[..., None]
    return (1 - fog) * x + fog


def _clouds(height: int, width: int, random: np.random.Generator) -> NDArray:
    """Return smooth noise in [0, 1], ``(H, W)``: patches of every size, the smaller the fainter."""
    total = np.zeros((height, width))
    for octave in range(OCTAVES):
        coarse = Image.fromarray(random.random((2 ** (octave + 1),) * 2).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return (total - total.min()) / np.ptp(total)


# --- resolution and shape ---


def _pixelate(x: Pixels, share: float, _: np.random.Generator) -> NDArray:
    """Shrink to a share of the sides and enlarge again."""
    image, (height, width) = Image.fromarray(_bytes(x)), x.shape[:2]
    small = image.resize((max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) / 255


def _jpeg(x: Pixels, quality: float, _: np.random.Generator) -> NDArray:
    """Save as JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(_bytes(x)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)) / 255


def _elastic(x: Pixels, share: float, random: np.random.Generator) -> NDArray:
    """Displace every pixel smoothly, by ``share`` of the shorter side in root mean square along either axis."""
    height, width = x.shape[:2]
    side = min(height, width)
    noise = [gaussian_filter(random.standard_normal((height, width)), ROUGHNESS * side) for _ in range(2)]
    shifts = [share * side * field / np.sqrt(np.mean(field**2)) for field in noise]
    where = np.indices((height, width)) + np.stack(shifts)
    return np.stack([map_coordinates(channel, where, order=1, mode="mirror") for channel in np.moveaxis(x, 2, 0)], 2)


def _bytes(x: NDArray) -> NDArray[np.uint8]:
    return np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.05, 0.1, 0.15, 0.25, 0.4)),
    "shot_noise": Corruption(_shot_noise, (0.015, 0.04, 0.08, 0.2, 0.35)),
    "impulse_noise": Corruption(_impulse_noise, (0.02, 0.05, 0.1, 0.18, 0.3)),
    "defocus_blur": Corruption(_defocus_blur, (0.01, 0.015, 0.02, 0.03, 0.04)),
    "motion_blur": Corruption(_motion_blur, (0.04, 0.06, 0.09, 0.12, 0.16)),
    "zoom_blur": Corruption(_zoom_blur, (0.1, 0.15, 0.2, 0.3, 0.4)),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.5, 0.4, 0.3, 0.15, 0.05)),
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.35, 0.25, 0.15)),
    "jpeg": Corruption(_jpeg, (30, 20, 14, 9, 5)),
    "elastic": Corruption(_elastic, (0.01, 0.015, 0.02, 0.03, 0.04)),
    "fog": Corruption(_fog, (0.3, 0.4, 0.55, 0.7, 0.85)),
    "saturate": Corruption(_saturate, (1.5, 2, 3, 5, 10)),
}

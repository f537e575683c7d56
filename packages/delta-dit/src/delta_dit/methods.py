"""The ways to make sampling cheaper that are compared with each other, and what a comparison measures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from delta_dit.attach import disable_delta_cache, enable_delta_cache
from delta_dit.config import DeltaCacheConfig
from delta_dit.judge import Judge
from delta_dit.models import Sampler
from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.run import Run

IDENTICAL_DB = 100.0  # what two identical images count as: their PSNR is infinite and has no mean


@dataclass(frozen=True)
class Method:
    """One way to sample: fewer steps, a cache, or neither."""

    name: str
    steps: int
    cache: DeltaCacheConfig | None = None

    @contextmanager
    def on(self, sampler: Sampler) -> Iterator[None]:
        """Put the method on a sampler's pipeline, and take it off again."""
        if self.cache is None:
            yield
            return
        enable_delta_cache(sampler.pipe, self.cache)
        try:
            yield
        finally:
            disable_delta_cache(sampler.pipe)


def draw_all(method: Method, sampler: Sampler, run: Run, seed: int, count: int, batch: int) -> Tensor:
    """Draw ``count`` samples of ``seed`` on all processes; the same bytes on any number of them.

    Returns:
        ``(count, 3, H, W)`` in [0, 1], on every process.
    """
    accelerator = run.accelerator
    with method.on(sampler):
        pieces = [
            (chunk, sampler.draw(seed, chunk, steps=method.steps))
            for chunk in run.progress(
                list(chunks(count, batch, accelerator.process_index, accelerator.num_processes)), desc=method.name
            )
        ]
    return gather_chunks(pieces)


def macs(method: Method, sampler: Sampler) -> float:
    """Return the multiply-accumulates of one sample's whole run, counted by PyTorch in a real run."""
    counter = FlopCounterMode(display=False)
    with method.on(sampler), counter:
        sampler.draw(0, range(1), steps=method.steps)
    return counter.get_total_flops() / 2


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image to its reference.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        reference: of the same shape.

    Returns:
        ``(B,)`` in dB; identical images count as :data:`IDENTICAL_DB`.
    """
    error = (images.double() - reference.double()).square().mean((1, 2, 3))
    return (-10 * error.log10()).clamp(max=IDENTICAL_DB)


def quality(images: Tensor, reference: Tensor | None, labels: Tensor, judge: Judge) -> dict[str, float | None]:
    """Return fidelity to the uncached images, and what the judge reads, as means over the samples.

    Args:
        images: ``(B, 3, 32, 32)`` in [0, 1].
        reference: the uncached images of the same samples, or None for the uncached row itself.
        labels: ``(B,)``, what was asked for.
        judge: reads outline and texture.
    """
    outline, texture = judge.reads(images, labels)
    db = None if reference is None else psnr(images, reference)
    return {
        "psnr_db": None if db is None else db.mean().item(),
        "share_below_30_db": None if db is None else (db < 30).double().mean().item(),
        "outline_accuracy": outline.double().mean().item(),
        "texture_accuracy": texture.double().mean().item(),
    }


def to_bytes(images: Tensor) -> Tensor:
    """Return images ``(B, C, H, W)`` in [0, 1] as uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)

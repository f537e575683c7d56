"""The ways to make sampling cheaper that are compared with each other, and what a comparison measures."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from delta_dit.attach import delta_cache
from delta_dit.commands.foreign import Attach, on_copy
from delta_dit.commands.models import Sampler
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import Argument
from delta_dit.embedded.judge import Judge
from delta_dit.moved_steps import moved
from delta_dit.planning.fidelity import psnr
from frugal_shared.errors import RunError
from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.run import Run

UNCACHED = "uncached"
"""Name of the method that all others are compared with."""
EXACT = "exact"
"""Name of the run of very many steps, which is what the sampler approximates."""


@dataclass(frozen=True)
class Method:
    """One way to sample: fewer steps, our cache, somebody else's, or none; on the scheduler's steps or on others."""

    name: str
    steps: int
    cache: DeltaCacheConfig | None = None
    attach: Attach | None = None
    moved: tuple[Argument, tuple[float, ...]] | None = None

    @contextmanager
    def on(self, sampler: Sampler) -> Iterator[None]:
        """Put the method on a sampler's pipeline, and take it off again."""
        with ExitStack() as stack:
            if self.moved is not None:
                stack.enter_context(moved(sampler.pipe.scheduler, *self.moved))
            if self.attach is not None:
                stack.enter_context(on_copy(sampler.pipe))
                self.attach(sampler.pipe, self.steps)
            elif self.cache is not None:
                stack.enter_context(delta_cache(sampler.pipe, self.cache))
            yield


def draw_all(method: Method, sampler: Sampler, run: Run, seed: int, count: int, batch: int) -> Tensor:
    """Draw ``count`` samples of ``seed`` on all processes; the same bytes on any number of them.

    Returns:
        ``(count, 3, H, W)`` in [0, 1], on every process.
    """
    return draw_with_latents(method, sampler, run, seed, count, batch)[0]


def draw_with_latents(
    method: Method, sampler: Sampler, run: Run, seed: int, count: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Draw as :func:`draw_all` does; return also what the sampling loops ended with, ``(count, C, H', W')``."""
    accelerator = run.accelerator
    images, latents = [], []
    with method.on(sampler), last_sample(sampler.pipe.scheduler) as last:
        for chunk in run.progress(
            list(chunks(count, batch, accelerator.process_index, accelerator.num_processes)), desc=method.name
        ):
            images.append((chunk, sampler.draw(seed, chunk, steps=method.steps)))
            latents.append((chunk, last[0][: len(chunk)].float()))
    return gather_chunks(images), gather_chunks(latents)


@contextmanager
def last_sample(scheduler: Any) -> Iterator[list[Tensor]]:
    """Keep a scheduler's newest sample, which is at last what the loop ended with, before a VAE or clamping.

    Yields:
        A list of that one tensor, ``(B, C, H, W)``; some pipelines double it for classifier-free guidance.
    """
    step, newest = scheduler.step, []

    @functools.wraps(step)  # pipelines look at its signature
    def keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        newest[:] = [result[0]]
        return result

    scheduler.step = keep
    try:
        yield newest
    finally:
        del scheduler.step


def macs(method: Method, sampler: Sampler) -> float:
    """Return the multiply-accumulates of one sample's whole run, counted by PyTorch in a real run."""
    return counted(method, sampler, 0, range(1))[0]


def counted(method: Method, sampler: Sampler, seed: int, indices: range) -> tuple[float, Tensor]:
    """Draw, and return the multiply-accumulates per sample beside the images.

    A cache that decides while it runs costs a different amount for every batch.
    """
    counter = FlopCounterMode(display=False)
    with method.on(sampler), counter:
        images = sampler.draw(seed, indices, steps=method.steps)
    return counter.get_total_flops() / 2 / len(indices), images


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each image to its reference, ``(B,)``.

    Raises:
        RunError: torchmetrics is not installed.
    """
    try:
        measure = import_module("torchmetrics.functional.image").structural_similarity_index_measure
    except ImportError as error:
        raise RunError("torchmetrics is not installed; install it with: pip install torchmetrics") from error
    return torch.as_tensor(measure(images, reference, data_range=1.0, reduction="none"))


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

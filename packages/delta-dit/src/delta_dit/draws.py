"""The same samples of a pipeline, drawn again and again: without a cache, under plans, with other numbers of steps."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from delta_dit.attach import delta_cache, uncached
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.moved_steps import Spacing, moved
from delta_dit.replay import Outputs, replaying

Batch = TypeVar("Batch")
Gather = Callable[[list[tuple[Any, Tensor]]], Tensor]
"""Puts what every process has of its batches together, in the order of the batches."""


def concatenated(pieces: list[tuple[Any, Tensor]]) -> Tensor:
    """Put the batches of one process together."""
    return torch.cat([rows for _, rows in pieces])


class Draws(Generic[Batch]):
    """Samples that a pipeline draws as often as they are asked for.

    On several processes each draws batches of its own, and ``gather`` puts them together; all get the same.

    Args:
        pipe: the pipeline.
        draw: draws a batch with it in so many steps: ``(B, C, H, W)`` in [0, 1] on the CPU, the same whenever it is
            asked.
        batches: this process's.
        gather: from (batch, rows) of this process to the rows of all; default: there is no other process.
        spacing: where the steps lie; default: where the scheduler has them.

    Attributes:
        evaluations: what was drawn so far, in evaluations of the whole transformer: samples times full steps.
    """

    def __init__(
        self,
        pipe: Any,
        draw: Callable[[Batch, int], Tensor],
        batches: Sequence[Batch],
        gather: Gather = concatenated,
        spacing: Spacing | None = None,
    ) -> None:
        self.pipe, self.draw, self.batches, self.gather, self.spacing = pipe, draw, batches, gather, spacing
        self.evaluations = 0.0

    def first(self, batches: Sequence[Batch]) -> "Draws[Batch]":
        """Return the same of some batches only, counted by themselves."""
        return Draws(self.pipe, self.draw, batches, self.gather, self.spacing)

    def images(self, steps: int, *, spaced: bool = True) -> Tensor:
        """Return the samples as the pipeline draws them uncached: ``(N, C, H, W)``.

        Args:
            steps: of the solver.
            spaced: whether they lie where ``spacing`` has them, or where the scheduler has them.
        """
        with uncached(self.pipe), self.spaced(steps) if spaced else nullcontext():
            images = self.gather([(batch, self.draw(batch, steps)) for batch in self.batches])
        self.evaluations += steps * len(images)
        return images

    def planned(
        self, plan: DeltaPlan, steps: int, known: Sequence[Outputs] | None = None, first: int = 0
    ) -> tuple[Tensor, list[Outputs]]:
        """Return the samples under a plan, and what the transformer gave, by batch.

        Args:
            plan: which steps reuse what.
            steps: what the pipeline is asked for; the plan has more where the solver calls twice in a step.
            known: what the transformer gave in a run that is the same in the steps before ``first``.
            first: where the run begins, a full step; the Δs reused later come from there on.
        """
        drawn, outputs = [], []
        with uncached(self.pipe), delta_cache(self.pipe, plan):
            for number, batch in enumerate(self.batches):
                with replaying(self.pipe, known[number] if known else None, first) as given:
                    drawn.append((batch, self.draw(batch, steps)))
                outputs.append(given)
        images = self.gather(drawn)
        saved = sum(reuse.width for reuse in plan.reuses[first:] if reuse)
        self.evaluations += (plan.steps - first - saved / plan.blocks) * len(images)
        return images, outputs

    def spaced(self, steps: int) -> AbstractContextManager[None]:
        """Let the scheduler take the spacing's steps for a while."""
        if self.spacing is None:
            return nullcontext()
        return moved(self.pipe.scheduler, self.spacing.argument, self.spacing.values(steps))

    def plan(self, blocks: int, reuses: Sequence[Reuse | None], values: Sequence[float] | None = None) -> DeltaPlan:
        """Return a plan with steps of its own: these, or those of the spacing, if there is one."""
        if self.spacing is None:
            return DeltaPlan.of(blocks, reuses)
        steps = self.spacing.values(len(reuses)) if values is None else tuple(values)
        return DeltaPlan.of(blocks, reuses, **{self.spacing.argument: steps})


def drawn_from(
    pipe: Any,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 1000,
) -> Draws[int]:
    """Return what a pipeline draws when it is called with these inputs, call i with the noise of ``seed + i``.

    Args:
        pipe: a diffusers pipeline of images.
        inputs: what it is called with, a mapping for each call; a call may draw several images.
        prompts: instead of ``inputs``, a text for each call.
        seed: of the noise.

    Raises:
        ValueError: inputs and prompts are both given, or none of them.
    """
    if (inputs is None) == (prompts is None):
        raise ValueError(f"inputs={inputs!r} and prompts={prompts!r}; allowed: one of them")
    calls = [{"prompt": prompt} for prompt in prompts] if prompts is not None else list(inputs or ())
    if not calls:
        raise ValueError("inputs=[] draw nothing; allowed: one mapping or more")

    def draw(call: int, steps: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed + call)
        options = {"num_inference_steps": steps, "generator": noise, "output_type": "pt"}
        return torch.as_tensor(pipe(**options | dict(calls[call])).images).float().cpu()

    return Draws(pipe, draw, range(len(calls)))

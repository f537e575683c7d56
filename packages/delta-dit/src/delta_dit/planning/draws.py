"""The same samples of a pipeline, drawn again and again: without a cache, under plans, with other numbers of steps."""

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from delta_dit.attach import delta_cache, led_transformers, uncached
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.moved_steps import Spacing, moved
from delta_dit.planning.replay import Outputs, replaying

LATENT_RANGE = 4.0
"""What latents are divided by: they vary by about 1, pixels in [0, 1] by a quarter, so decibels of both compare."""

Batch = TypeVar("Batch")
Gather = Callable[[list[tuple[Any, Tensor]]], Tensor]
"""Puts what every process has of its batches together, in the order of the batches."""
Notes = MutableMapping[str, Any]
"""What was measured, by name: tensors and plain values, and dicts of them."""


def concatenated(pieces: list[tuple[Any, Tensor]]) -> Tensor:
    """Put the batches of one process together."""
    return torch.cat([rows for _, rows in pieces])


class Draws(Generic[Batch]):
    """Samples that a pipeline draws as often as they are asked for.

    On several processes each draws batches of its own, and ``gather`` puts them together; all get the same.

    Args:
        pipe: the pipeline.
        draw: draws a batch with it in so many steps: ``(B, ...)`` on the CPU, pixels in [0, 1] or what stands in for
            them, the same whenever it is asked.
        batches: this process's.
        gather: from (batch, rows) of this process to the rows of all; default: there is no other process.
        spacing: where the steps lie; default: where the scheduler has them.
        notes: takes down what was measured, and has what an interrupted run has taken down; the same on all processes.
        name: of these samples, in the notes.

    Attributes:
        evaluations: what was drawn so far, in evaluations of the whole transformer: samples times full steps. What the
            notes had counts, too.
    """

    def __init__(
        self,
        pipe: Any,
        draw: Callable[[Batch, int], Tensor],
        batches: Sequence[Batch],
        gather: Gather = concatenated,
        spacing: Spacing | None = None,
        notes: Notes | None = None,
        name: str = "all",
    ) -> None:
        self.pipe, self.draw, self.batches, self.gather, self.spacing = pipe, draw, batches, gather, spacing
        self.notes, self.name = notes, name
        self.evaluations = 0.0

    def first(self, batches: Sequence[Batch]) -> "Draws[Batch]":
        """Return the same of some batches only, counted by themselves."""
        return Draws(self.pipe, self.draw, batches, self.gather, self.spacing, self.notes, "first")

    def noted(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what the notes have under this name; else measure it, and take it down. Whoever asks counts it."""
        notes, name, before = {} if self.notes is None else self.notes, f"{self.name}: {name}", self.evaluations
        if name not in notes:
            notes[name] = measure()
        self.evaluations = before
        return notes[name]

    def images(self, steps: int, *, spaced: bool = True) -> Tensor:
        """Return the samples as the pipeline draws them uncached: ``(N, ...)``.

        Args:
            steps: of the solver.
            spaced: whether they lie where ``spacing`` has them, or where the scheduler has them.

        Raises:
            ValueError: they are not finite.
        """

        def drawn() -> Tensor:
            with uncached(self.pipe), self.spaced(steps) if spaced else nullcontext():
                return finite(self.gather([(batch, self.draw(batch, steps)) for batch in self.batches]), self.pipe)

        share = self.spacing.share if self.spacing is not None and spaced else None
        images = self.noted(f"{steps} uncached steps, even in λ: {share}", drawn)
        self.evaluations += steps * len(images)
        return images

    def planned(
        self, plan: DeltaPlan, steps: int, known: Sequence[Outputs] | None = None, first: int = 0
    ) -> tuple[Tensor, list[Outputs]]:
        """Return the samples under a plan, and what the transformer gave, by batch.

        Args:
            plan: which steps reuse what.
            steps: what the pipeline is asked for; the plan has more where the solver calls twice in a step, and fewer
                where the run begins late, as image-to-image does.
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
        self.count(plan, len(images), first)
        return images, outputs

    def count(self, plan: DeltaPlan, samples: int, first: int = 0) -> None:
        """Count samples that were drawn under a plan from step ``first`` on."""
        saved = sum(reuse.width for reuse in plan.reuses[first:] if reuse)
        self.evaluations += (plan.steps - first - saved / plan.blocks) * samples

    def spaced(self, steps: int) -> AbstractContextManager[None]:
        """Let the scheduler take the spacing's steps for a while."""
        if self.spacing is None:
            return nullcontext()
        return moved(self.pipe.scheduler, self.spacing.argument, self.spacing.values(steps))

    def plan(
        self,
        blocks: int,
        reuses: Sequence[Reuse | None],
        values: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
    ) -> DeltaPlan:
        """Return a plan with steps of its own: these, or those of the spacing, if there is one.

        Args:
            blocks: L.
            reuses: what each step reuses.
            values: the steps.
            levels: the noise level of each, where they are not the plan's own.
        """
        if self.spacing is None:
            return DeltaPlan.of(blocks, reuses, levels=None if levels is None else tuple(levels))
        steps = self.spacing.values(len(reuses)) if values is None else tuple(values)
        return DeltaPlan.of(blocks, reuses, **{self.spacing.argument: steps})


def drawn_from(
    pipe: Any,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 1000,
) -> Draws[int]:
    """Return what a pipeline draws when it is called with these inputs, call i with the noise of ``seed + i``.

    Images are compared by their pixels, videos by their latents, because these are fewer and need no decoding; an
    ``output_type`` among the inputs, "pt" or "latent", decides otherwise.

    Args:
        pipe: a diffusers pipeline.
        inputs: what it is called with, a mapping for each call; a call may draw several images.
        prompts: instead of ``inputs``, a text for each call.
        seed: of the noise.

    Raises:
        ValueError: inputs and prompts are both given, or none of them, or such as the pipeline does not take.
    """
    if (inputs is None) == (prompts is None):
        raise ValueError(f"inputs={inputs!r} and prompts={prompts!r}; allowed: one of them")
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r} is one text; allowed: a list of texts")
    if isinstance(inputs, Mapping):
        raise ValueError("inputs is one mapping; allowed: a list of mappings, one for each call")
    calls = [{"prompt": prompt} for prompt in prompts] if prompts is not None else list(inputs or ())
    if not calls:
        raise ValueError("inputs=[] draw nothing; allowed: one mapping or more")
    led_transformers(pipe)  # what is no such pipeline is told as such
    output_type = "latent" if draws_videos(pipe) else "pt"
    for call in calls:
        check_arguments(pipe, {"num_inference_steps", "generator", "output_type", *call})

    def draw(call: int, steps: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed + call)
        options = {"num_inference_steps": steps, "generator": noise, "output_type": output_type} | dict(calls[call])
        return comparable(pipe, pipe(**options), options["output_type"])

    return Draws(pipe, draw, range(len(calls)))


def draws_videos(pipe: Any) -> bool:
    """Return whether a pipeline draws videos."""
    return hasattr(pipe, "video_processor")


def check_arguments(pipe: Any, names: set[str]) -> None:
    """Raise ValueError unless a pipeline can be called with arguments of these names."""
    takes = dict(list(inspect.signature(type(pipe).__call__).parameters.items())[1:])
    several = [name for name, parameter in takes.items() if parameter.kind is parameter.VAR_KEYWORD]
    unknown = [] if several else sorted(names - takes.keys())
    plain = [name for name, parameter in takes.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    missing = [name for name in plain if takes[name].default is inspect.Parameter.empty and name not in names]
    if unknown or missing:
        what = f"takes no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"{type(pipe).__name__} {what}; allowed: {', '.join(takes)}")


def comparable(pipe: Any, output: Any, output_type: str) -> Tensor:
    """Return what a pipeline gave as ``(B, ...)`` on the CPU: pixels in [0, 1], or latents in about that range.

    Raises:
        ValueError: it gave something else than tensors.
    """
    drawn = output[0]  # .images, .frames, or however the pipeline calls it
    try:
        values = torch.stack([*map(torch.as_tensor, drawn)]) if isinstance(drawn, list) else torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{type(pipe).__name__} gives no tensors for output_type={output_type!r} ({error}); allowed: pt, latent"
        ) from error
    values = values.float().cpu()
    return values / LATENT_RANGE if output_type == "latent" else values


def finite(images: Tensor, pipe: Any) -> Tensor:
    """Return what a pipeline drew without a cache.

    Raises:
        ValueError: it has infinite numbers, or such as are none.
    """
    if not images.isfinite().all():
        raise ValueError(
            f"{type(pipe).__name__} draws images that are not finite, without any cache; allowed: finite ones, perhaps "
            "in another dtype"
        )
    return images

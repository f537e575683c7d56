"""Plans tried on the model itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.attach import led_transformers
from delta_dit.delta_plan import DeltaPlan, Reuses
from delta_dit.identity import check_identity
from delta_dit.moved_steps import Spacing
from delta_dit.planning.draws import Draws, drawn_from
from delta_dit.planning.fidelity import psnr
from delta_dit.planning.replay import Outputs

KEPT = 4
"""Of so many plans it is remembered what the transformer gave: a plan like one of them begins where it differs."""

Values = tuple[float, ...]
"""Steps of a plan's own, as :attr:`DeltaPlan.moved` has them."""


class Trial:
    """How good plans are: the PSNR of a pipeline's images under a plan to those that they should be.

    Args:
        pipe: the pipeline.
        inputs: what it is called with, a mapping for each call.
        prompts: instead of ``inputs``, a text for each call.
        seed: of the noise, another than the calibration's, so that a plan is not tried on what it was made with.
        reference_steps: how many steps count as the exact solution; default: ten times the calibration's.

    Attributes:
        known: the plans that were tried, and their PSNR in dB, one per sample.

    Raises:
        ValueError: inputs and prompts are both given, or none of them; a pipeline that does not fit.
    """

    def __init__(
        self,
        pipe: Any,
        inputs: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        seed: int = 2000,
        reference_steps: int | None = None,
    ) -> None:
        self._start(drawn_from(pipe, inputs, prompts, seed), reference_steps)

    @classmethod
    def of(cls, draws: Draws, reference_steps: int | None = None) -> "Trial":
        """Return a trial on any samples."""
        trial = cls.__new__(cls)
        trial._start(draws, reference_steps)
        return trial

    def _start(self, draws: Draws, reference_steps: int | None) -> None:
        self.draws, self.reference_steps = draws, reference_steps
        self.blocks = len(blocks_of(led_transformers(draws.pipe)[0]))
        self.known: dict[tuple[Reuses, Values | None, int | None], Tensor] = {}
        self._references: dict[tuple[int, bool], Tensor] = {}
        self._kept: dict[tuple[Reuses, Values | None], list[Outputs]] = {}  # the newest last
        self._levels: tuple[float, ...] | None = None
        self._asked: dict[int, int] = {}

    def follow(self, found: Any) -> None:
        """Try plans of this :class:`~delta_dit.planning.calibration.Calibration` from now on.

        Raises:
            ValueError: it was measured on another model.
        """
        for transformer in led_transformers(self.draws.pipe):
            check_identity(transformer, found.about, "calibration")
        self.space(found.spacing)
        # a solver may call twice in a step, and a run may begin late
        self._levels, self._asked = found.levels, {found.steps: found.about["steps"]}

    def space(self, spacing: Spacing | None) -> None:
        """Let the steps lie where a calibration has them; what was tried with others is forgotten."""
        if spacing == self.draws.spacing:
            return
        self.draws.spacing = spacing
        self.known.clear()
        self._kept.clear()
        self._references = {key: images for key, images in self._references.items() if not key[1]}

    def __call__(self, reuses: Reuses, values: Values | None = None, *, exact: int | None = None) -> Tensor:
        """Return the PSNR of each image under a plan, ``(N,)`` in dB; each plan is drawn once.

        Args:
            reuses: the plan.
            values: steps of its own; default: those of the spacing.
            exact: to the uncached images of so many steps; default: of the plan's own steps.
        """
        key = reuses, values, exact
        if key not in self.known:
            self.known[key] = self._tried(reuses, values, exact)
        return self.known[key]

    @property
    def samples(self) -> int:
        """How many images a plan is tried on; 0 before the first."""
        return next((len(psnr) for psnr in self.known.values()), 0)

    def _tried(self, reuses: Reuses, values: Values | None, exact: int | None) -> Tensor:
        plan, steps = self._plan(reuses, values), self._asked.get(len(reuses), len(reuses))
        reference = self._reference(exact or steps, exact is None)
        like, first = None, 0
        for other in self._kept:
            begin = first_that_differs(plan, self._plan(*other))
            like, first = (other, begin) if begin > first else (like, first)
        outputs: list[Outputs] = []  # nothing is known of what comes from the notes

        def drawn() -> Tensor:
            known = self._kept[like] if like is not None else []
            images, given = self.draws.planned(plan, steps, known or None, first if known else 0)
            outputs.extend(given)
            return psnr(images, reference).nan_to_num(nan=-math.inf)

        share = None if self.draws.spacing is None else self.draws.spacing.share
        found = self.draws.noted(f"{reuses}, {values}, even in λ: {share}, to {exact} steps", drawn)
        self.draws.count(plan, len(found), first)
        self._kept[reuses, values] = outputs
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _plan(self, reuses: Reuses, values: Values | None) -> DeltaPlan:
        levels = self._levels if self._levels is not None and len(self._levels) == len(reuses) else None
        return self.draws.plan(self.blocks, reuses, values, levels)

    def _reference(self, steps: int, spaced: bool) -> Tensor:
        if (steps, spaced) not in self._references:
            self._references[steps, spaced] = self.draws.images(steps, spaced=spaced)
        return self._references[steps, spaced]


def first_that_differs(plan: DeltaPlan, other: DeltaPlan) -> int:
    """Return the step from which a plan has to be drawn if the steps before are known from another plan's run.

    That is the full step before the last one on which they agree: the Δs that come later are of it, or newer. 0 if they
    have different numbers of steps.
    """
    if plan.steps != other.steps:
        return 0
    mine, theirs = (list(zip(p.reuses, p.moved[1] if p.moved else [0.0] * p.steps)) for p in (plan, other))
    agreed = next((step for step in range(plan.steps) if mine[step] != theirs[step]), plan.steps)
    # a solver's step leads to the next noise level: where that differs, so does what the step leads to, not its output
    full = [step for step in range(agreed) if plan.reuses[step] is None]
    return full[-2] if len(full) > 1 else 0

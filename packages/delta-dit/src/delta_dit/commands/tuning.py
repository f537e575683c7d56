"""How the methods that have settings get theirs: all in the same way, on the same samples, with the same allowance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from delta_dit.commands.annealed_mask import anneal, reusing
from delta_dit.commands.foreign import TUNING_SEED, Dial, Option, Peer, Setting
from delta_dit.commands.methods import UNCACHED, Method, counted, macs
from delta_dit.commands.models import Sampler
from delta_dit.config import DeltaCacheConfig
from delta_dit.moved_steps import Spacing
from delta_dit.planning.draws import Draws
from delta_dit.planning.fidelity import psnr
from delta_dit.planning.trial import Trial

NEAR = 0.96  # of the wanted cost or its inverse: how far from it a setting may be, because it cannot always be hit
SAMPLES = 24
"""On so many samples a setting is tried at most,"""
RUNS = 40
"""and on so few that as many full runs are within the allowance."""
TURNS = 12
"""So often a dial is turned at most; then it is known to 1 ÷ 4096 of its range."""


@dataclass(frozen=True)
class Outcome:
    """What one setting cost, in full steps, and gave."""

    method: Method
    setting: str
    cost: float
    psnr: float


@dataclass(frozen=True)
class Ground:
    """So many steps, and where they lie; of the scheduler's own steps there is no spacing."""

    steps: int
    spacing: Spacing | None = None

    def method(self, name: str) -> Method:
        """Return the uncached run."""
        moved = None if self.spacing is None else (self.spacing.argument, self.spacing.values(self.steps))
        return Method(name, self.steps, moved=moved)


class Tuning:
    """Finds what is best at a cost, on samples of its own.

    Args:
        sampler: draws them.
        steps: of the uncached run, which costs as many full steps.
        exact: how many steps count as exact, if the exact images are to be met and not the uncached ones.
        allowance: how much may be drawn for each, in uncached samples: the reference, measurements and every try.
        batch: how many samples fit.
    """

    def __init__(self, sampler: Sampler, steps: int, exact: int | None, allowance: int, batch: int) -> None:
        self.sampler, self.steps, self.exact, self.allowance = sampler, steps, exact, allowance
        self.indices = range(min(SAMPLES, batch, max(1, allowance // RUNS)))
        self.step_macs = macs(Method(UNCACHED, steps), sampler) / steps
        """Of a full step of one sample: the unit of every cost."""

    @cached_property
    def reference(self) -> Tensor:
        """The images to be met, ``(B, 3, H, W)``."""
        return self.sampler.draw(TUNING_SEED, self.indices, steps=self.exact or self.steps)

    def of_peer(self, name: str, peer: Peer, grounds: list[Ground], cost: float) -> tuple[Outcome, float]:
        """Return the best setting of a foreign cache, on one of some grounds, and how much was drawn for it."""
        outcomes: list[Outcome] = []
        spent = len(self.indices) * (self.exact or self.steps) / self.steps
        for number, ground in enumerate(grounds):
            limit = self._limit(spent, len(grounds) - number)
            plain = ground.method(name)
            counter = FlopCounterMode(display=False)
            with plain.on(self.sampler), counter:
                options = peer(self.sampler, ground.steps, ground.steps / cost)
            spent += counter.get_total_flops() / 2 / self.step_macs / self.steps
            for place, option in enumerate(options):
                dials = isinstance(option, Dial)
                own = spent + (limit - spent) / (len(options) - place if dials else 1)
                spent = self._turn(option, plain, cost, spent, own, outcomes)
        return best(outcomes, cost, self.steps), spent

    def _turn(
        self, option: Option, plain: Method, cost: float, spent: float, limit: float, outcomes: list[Outcome]
    ) -> float:
        """Try an option until the limit is reached, add what came out, and return what is spent then."""

        def attempt(setting: Setting) -> float | None:
            nonlocal spent
            if outcomes and spent + len(self.indices) * cost / self.steps > limit:
                return None
            method = replace(plain, attach=setting.attach)
            found, images = counted(method, self.sampler, TUNING_SEED, self.indices)
            spent += len(self.indices) * found / self.step_macs / self.steps
            db = psnr(images, self.reference).mean().item()
            told = told_of(setting, method, self.steps)
            outcomes.append(Outcome(method, told, found / self.step_macs, db))
            return outcomes[-1].cost

        if isinstance(option, Setting):
            attempt(option)
        else:
            bisect(option, cost, attempt)
        return spent

    def of_mask(self, name: str, grounds: list[Ground], cost: float) -> tuple[Outcome, float]:
        """Return the best steps to reuse all blocks at, found by simulated annealing, and how much was drawn for it."""

        def draw(indices: range, steps: int) -> Tensor:
            return self.sampler.draw(TUNING_SEED, indices, steps=steps)

        trial = Trial.of(Draws(self.sampler.pipe, draw, [self.indices]))
        outcomes: list[Outcome] = []
        for number, ground in enumerate(grounds):
            limit = self._limit(trial.draws.evaluations / self.steps, len(grounds) - number)
            outcomes += self._annealed(name, ground, trial, cost, limit)
        return best(outcomes, cost, self.steps), trial.draws.evaluations / self.steps

    def _annealed(self, name: str, ground: Ground, trial: Trial, cost: float, limit: float) -> list[Outcome]:
        """Return the best mask on a ground, found until the limit is reached; none if no mask is as cheap."""
        trial.space(ground.spacing)
        begun, blocks = trial.draws.evaluations / self.steps, trial.blocks

        def method(mask: Sequence[bool]) -> Method:
            return Method(name, ground.steps, DeltaCacheConfig(plan=trial.draws.plan(blocks, reusing(mask, blocks))))

        once = method([False, True, *[False] * (ground.steps - 2)])
        saved = ground.steps - macs(once, self.sampler) / self.step_macs  # of one reuse step
        reused = max(0, math.ceil((ground.steps - cost) / saved - 1e-6))
        if reused > ground.steps - 1:
            return []
        mask, db = anneal(
            ground.steps,
            reused,
            lambda mask: trial(reusing(mask, blocks), exact=self.exact).mean().item(),
            lambda: (trial.draws.evaluations / self.steps - begun) / max(limit - begun, 1e-9),
        )
        setting = "".join("." if each else "F" for each in mask)
        return [Outcome(method(mask), setting, ground.steps - reused * saved, db)]

    def _limit(self, spent: float, places: int) -> float:
        """Return what may be spent in all when the first of some places, which share what is left, has had its part."""
        return spent + (self.allowance - spent) / places


def told_of(setting: Setting, method: Method, steps: int) -> str:
    """Return a setting in words, and the steps it is on if they are others than the uncached run's."""
    knobs = [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in setting.knobs.items()
    ]
    return ", ".join([*([f"{method.steps} moved steps"] if method.moved else []), *knobs])


def best(outcomes: list[Outcome], cost: float, steps: int) -> Outcome:
    """Return the outcome to compete with: of those near to the cost the highest PSNR; where none is, the nearest.

    Raises:
        ValueError: there is none.
    """
    if not outcomes:
        raise ValueError(f"nothing was found at a cost of {cost:g} full steps")
    near = [outcome for outcome in outcomes if NEAR <= cost / outcome.cost <= 1 / NEAR]
    if near:
        return max(near, key=lambda outcome: outcome.psnr)
    saving = [outcome for outcome in outcomes if steps / outcome.cost > 1.001] or outcomes
    return min(saving, key=lambda outcome: abs(math.log(outcome.cost / cost)))


def bisect(dial: Dial, cost: float, attempt: Callable[[Setting], float | None]) -> None:
    """Turn a dial, in equal ratios, to where ``attempt``, which returns the cost, comes closest to a cost.

    It ends early when ``attempt`` returns None.
    """
    low, high = math.log(dial.low), math.log(dial.high)
    for _ in range(TURNS):
        middle = (low + high) / 2
        found = attempt(dial.setting(math.exp(middle)))
        if found is None:
            return
        low, high = (middle, high) if found > cost else (low, middle)

"""Which sampling step runs which blocks, as plain data and pure Python.

A :class:`DeltaPlan` says for every sampling step either FULL, run all blocks and record the Δ of some ranges, or REUSE,
run the blocks outside one range and add a forecast of the range's Δ instead of running it. Step 0 is the noisiest. A
range ``(start, stop)`` is half open: blocks ``start .. stop - 1``.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from delta_dit.resampling import mean_within, position, scaled, thinned
from delta_dit.writing import write_bytes

SCHEMA = 1

Range = tuple[int, int]
FORECASTS = {(0, False): "held", (1, False): "linear", (0, True): "scaled", (1, True): "fitted"}
"""By order, and whether a calibration fitted the weights."""


@dataclass(frozen=True)
class Full:
    """Run every block; record the Δ of these ranges for the reuse steps that follow."""

    records: tuple[Range, ...] = ()


@dataclass(frozen=True)
class Reuse:
    """Run the blocks outside ``[start, stop)`` and add a forecast of that range's Δ.

    At step t it is a·Δ_s + b·Δ_p, from the Δ of the last full step s and that of the one before it, p:

    * *held*: a = 1, b = 0, which is order 0.
    * *linear*: the line through both, a = 1 + r and b = −r with r = (t − s) / (s − p), which is order 1. Of schedules,
      which nobody tried, t, s and p are not the numbers of the steps but their λ (:mod:`delta_dit.noise`).
    * *scaled*, order 0, and *fitted*, order 1: what a calibration found for (p, s, t), the ``weights`` ``(a,)`` or
      ``(a, b)``.
    """

    start: int
    stop: int
    order: int = 0
    weights: tuple[float, ...] | None = None

    @property
    def range(self) -> Range:
        """The range that is not run."""
        return self.start, self.stop

    @property
    def width(self) -> int:
        """How many blocks are not run."""
        return self.stop - self.start

    @property
    def forecast(self) -> str:
        """The forecast's name: held, linear, scaled or fitted."""
        return FORECASTS[self.order, self.weights is not None]

    def coefficients(self, newest: float, previous: float | None, step: float) -> tuple[float, float]:
        """Return (a, b) at a step, given where it and the two full steps lie; without the second the newest is held."""
        if previous is None and self.order == 1:
            return 1.0, 0.0
        if self.weights is not None:
            return self.weights[0], self.weights[1] if self.order else 0.0
        r = (step - newest) / (newest - previous) if self.order and previous is not None else 0.0
        return 1 + r, -r


Argument = Literal["timesteps", "sigmas"]
"""Of a scheduler's ``set_timesteps``, what takes steps from outside."""
Action = Full | Reuse
Reuses = tuple[Reuse | None, ...]
"""A plan as one entry per step, None for a full step."""


@dataclass(frozen=True)
class DeltaPlan:
    """One action per sampling step.

    Args:
        blocks: L, the number of transformer blocks the plan is for.
        actions: T actions, the first of them FULL.
        levels: noise level of each step in [0, 1], 1 = pure noise (timestep / training timesteps); needed only to carry
            the plan over to another number of steps.
        provenance: where the plan comes from: model, scheduler, guidance, data.
        timesteps: steps of the plan's own, as the scheduler takes them; default: the scheduler's.
        sigmas: the same for a scheduler that takes noise levels.

    Raises:
        ValueError: a plan that cannot be carried out.
    """

    blocks: int
    actions: tuple[Action, ...]
    levels: tuple[float, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check that every reuse step finds a recorded Δ."""
        if self.blocks < 1 or not self.actions:
            raise ValueError(
                f"{len(self.actions)} steps of {self.blocks} blocks make no plan; allowed: 1 or more of each"
            )
        if self.levels is not None and len(self.levels) != len(self.actions):
            raise ValueError(f"a plan has {len(self.levels)} noise levels for {len(self.actions)} steps")
        if self.moved is not None and (len(self.moved[1]) != self.steps or not _falling(self.moved[1])):
            raise ValueError(f"{self.moved[0]} are {len(self.moved[1])} numbers; allowed: {self.steps} that fall")
        recorded: set[Range] = set()
        for step, action in enumerate(self.actions):
            for start, stop in action.records if isinstance(action, Full) else (action.range,):
                if not 0 <= start < stop <= self.blocks:
                    raise ValueError(f"step {step} names blocks [{start}, {stop}); allowed: within [0, {self.blocks})")
            if isinstance(action, Full):
                recorded = set(action.records)
            elif action.range not in recorded:
                raise ValueError(f"step {step} reuses blocks {list(action.range)}, not recorded by the last full step")
            elif action.order not in (0, 1):
                raise ValueError(f"step {step} has order {action.order}; allowed: 0 or 1")
            elif action.weights is not None and not _are_weights(action.weights, 1 + action.order):
                raise ValueError(f"step {step} has weights {action.weights}; allowed: {1 + action.order} numbers")

    @classmethod
    def of(cls, blocks: int, reuses: Sequence[Reuse | None], **rest: Any) -> Self:
        """Build a plan from one entry per step, None for FULL; what to record follows by looking ahead."""
        actions: list[Action] = []
        for step, reuse in enumerate(reuses):
            actions.append(Full(_needed(reuses, step)) if reuse is None else reuse)
        return cls(blocks, tuple(actions), **rest)

    @property
    def steps(self) -> int:
        """T, the number of sampling steps."""
        return len(self.actions)

    @property
    def moved(self) -> tuple[Argument, tuple[float, ...]] | None:
        """The argument of a scheduler's ``set_timesteps`` that takes the plan's own steps, and these; None if none."""
        if self.timesteps is not None:
            return "timesteps", self.timesteps
        return None if self.sigmas is None else ("sigmas", self.sigmas)

    @property
    def reuses(self) -> Reuses:
        """The plan as one entry per step, None for a full step."""
        return tuple(action if isinstance(action, Reuse) else None for action in self.actions)

    @property
    def full_steps(self) -> int:
        """How many steps run every block."""
        return self.reuses.count(None)

    def blocks_run(self) -> int:
        """Return how many block evaluations the plan needs; without a cache it is T·L."""
        return self.steps * self.blocks - sum(reuse.width for reuse in self.reuses if reuse)

    def cost_steps(self, block_share: float = 1.0) -> float:
        """Return what the plan costs in full steps; ``block_share`` of a step's MACs is in the blocks."""
        return self.steps - block_share * (self.steps - self.blocks_run() / self.blocks)

    def mac_speedup(self, block_macs: Sequence[float] | None = None, other_macs: float = 0.0) -> float:
        """Return MACs without the plan ÷ MACs with it.

        Args:
            block_macs: MACs of each of the L blocks; default: all alike.
            other_macs: MACs per step outside the blocks (embeddings, final layer), in the same unit.
        """
        macs = [1.0] * self.blocks if block_macs is None else list(block_macs)
        if len(macs) != self.blocks:
            raise ValueError(f"block_macs has {len(macs)} entries; allowed: {self.blocks}, one per block")
        step = sum(macs) + other_macs
        saved = sum(sum(macs[slice(*reuse.range)]) for reuse in self.reuses if reuse)
        return self.steps * step / (self.steps * step - saved)

    def delta_bytes(self, tensor_bytes: int) -> int:
        """Return the peak memory of the recorded Δs; ``tensor_bytes`` is the size of one Δ (all its streams)."""
        peak = max(len(action.records) for action in self.actions if isinstance(action, Full))
        extrapolates = any(reuse.order == 1 for reuse in self.reuses if reuse)
        return peak * (2 if extrapolates else 1) * tensor_bytes

    def resample(self, levels: Sequence[float]) -> "DeltaPlan":
        """Return this plan carried over to other sampling steps by their noise levels; it saves as much as before.

        Around each noise level about as large a share of steps is reused as here: a full step and the reuse steps after
        it are one cycle, and where a cycle now has twice the steps it takes place twice, so that runs of reuse do not
        become longer. What is reused keeps its order. The share of blocks that is saved stays, to within one reuse
        step; of a run that begins late, as image-to-image does, that of the rest of this plan. A plan that was made for
        such a run stays as it is: its steps are the last.

        Raises:
            ValueError: this plan does not know its own noise levels.
        """
        if self.levels is None:
            raise ValueError(f"a plan for {self.steps} steps without noise levels; allowed: {self.steps} steps only")
        if levels[0] < levels[-1]:  # 1 is the image, as some schedulers have it
            levels = [1 - level for level in levels]
        before = len(levels) - self.steps
        if before >= 0 and all(math.isclose(a, b, abs_tol=0.005) for a, b in zip(levels[before:], self.levels)):
            # of a run that begins late, the scheduler has steps before it
            actions = DeltaPlan.of(self.blocks, (*(None,) * before, *self.reuses)).actions
            return replace(self, actions=actions, levels=tuple(levels)) if before else self
        begin = self._first_covered(levels)
        reused = [reuse for reuse in self.reuses[begin + 1 :] if reuse]
        kept = thinned([reuse.width for reuse in reused], len(levels), self.steps - begin)
        chosen = [reused[index] for index in kept]
        # Step i of the new schedule covers the cell [edges[i], edges[i + 1]) of the old one, in units of old steps.
        at = [position(self.levels, level) for level in levels]
        edges = [begin - 0.5, *((a + b) / 2 for a, b in itertools.pairwise(at)), self.steps - 0.5]
        shares = self._reuse_shares()
        wanted = [0.0, *(mean_within(shares, low, high) for low, high in itertools.pairwise(edges[1:]))]
        if self.reuses[-1] is None:  # the image is most sensitive to the last step
            wanted[-1] = 0.0
        reuses: list[Reuse | None] = []
        debt = 0.0
        for share in scaled(wanted, len(chosen), max(shares)):
            debt += share
            due = debt > 1 - 1e-6
            reuses.append(replace(chosen.pop(0), weights=None) if due else None)
            debt -= due
        return DeltaPlan.of(self.blocks, reuses, levels=tuple(levels), provenance=self.provenance)

    def _first_covered(self, levels: Sequence[float]) -> int:
        """Return the first step of this plan that a run of these levels does not begin behind."""
        assert self.levels is not None
        gap = levels[0] - levels[1] if len(levels) > 1 else 0.0
        return math.ceil(position(self.levels, levels[0] + gap / 2) - 1e-6)

    def _reuse_shares(self) -> list[float]:
        """Return for each step the share of reuse steps in its cycle."""
        starts = [step for step, reuse in enumerate(self.reuses) if reuse is None]
        cycles = [stop - start for start, stop in itertools.pairwise([*starts, self.steps])]
        return [(length - 1) / length for length in cycles for _ in range(length)]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        steps = [
            {"action": "full", "record": [list(r) for r in action.records]}
            if isinstance(action, Full)
            else _reuse_json(action)
            for action in self.actions
        ]
        return {
            "schema": SCHEMA,
            "blocks": self.blocks,
            "mac_speedup": self.mac_speedup(),
            "steps": steps,
            "levels": None if self.levels is None else list(self.levels),
            **({} if self.moved is None else {self.moved[0]: list(self.moved[1])}),
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            ValueError: not such a plan, or one of another schema.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"a plan of schema {value['schema']!r}; allowed: {SCHEMA}")
            actions = tuple(_action(step) for step in value["steps"])
            levels = None if value["levels"] is None else tuple(float(level) for level in value["levels"])
            moved = {name: tuple(map(float, value[name])) for name in ("timesteps", "sigmas") if value.get(name)}
            return cls(int(value["blocks"]), actions, levels, dict(value["provenance"]), **moved)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a plan: {type(error).__name__} {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON: whole, or not at all."""
        write_bytes(Path(path), f"{json.dumps(self.to_json(), indent=1)}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan.

        Raises:
            ValueError: the file is not a plan.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"plan {str(path)!r} cannot be used: {error}") from error


def longest_run(reuses: Sequence[Any]) -> int:
    """Return how many steps in a row reuse, at most; of a plan as :attr:`DeltaPlan.reuses`, or of truth values."""
    return max((len(run) for run in "".join("r" if reuse else " " for reuse in reuses).split()), default=0)


def _needed(reuses: Sequence[Reuse | None], step: int) -> tuple[Range, ...]:
    """Return the ranges reused from the full step ``step``: until the next one or, with order 1, the one after."""
    ranges: list[Range] = []
    full_seen = 0
    for reuse in reuses[step + 1 :]:
        if reuse is None:
            full_seen += 1
        elif reuse.range not in ranges and full_seen <= reuse.order:
            ranges.append(reuse.range)
        if full_seen > 1:
            break
    return tuple(ranges)


def _falling(values: Sequence[float]) -> bool:
    return all(math.isfinite(a) and a > b for a, b in itertools.pairwise([*values, -math.inf]))


def _are_weights(weights: tuple[float, ...], count: int) -> bool:
    return len(weights) == count and all(map(math.isfinite, weights))


def _reuse_json(reuse: Reuse) -> dict[str, Any]:
    told = {"action": "reuse", "range": list(reuse.range), "order": reuse.order}
    return told if reuse.weights is None else told | {"weights": list(reuse.weights)}


def _action(value: dict[str, Any]) -> Action:
    if value["action"] == "full":
        return Full(tuple((int(start), int(stop)) for start, stop in value["record"]))
    if value["action"] == "reuse":
        start, stop = value["range"]
        weights = value.get("weights")
        return Reuse(
            int(start), int(stop), int(value["order"]), None if weights is None else tuple(map(float, weights))
        )
    raise ValueError(f"action {value['action']!r} is unknown; allowed: full, reuse")

"""Which sampling step runs which blocks: the schedule of Δ-DiT (arXiv 2406.01125, §4) and others. Pure Python.

A :class:`DeltaPlan` says for every sampling step either FULL, run all blocks and record the Δ of some ranges, or REUSE,
run the blocks outside one range and add the range's recorded Δ instead of running it. Step 0 is the noisiest. A range
``(start, stop)`` is half open: blocks ``start .. stop - 1``.

The paper's text fixes the idea (rear blocks early, front blocks late, every ``interval`` steps a full one); the exact
rounding of its budget formula and the exact meaning of its boundary b are reconstructed here from its published
speed-ups.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from delta_dit.resampling import mean_within, position, scaled, thinned
from delta_dit.writing import write_bytes

SCHEMA = 1

Range = tuple[int, int]


@dataclass(frozen=True)
class Full:
    """Run every block; record the Δ of these ranges for the reuse steps that follow."""

    records: tuple[Range, ...] = ()


@dataclass(frozen=True)
class Reuse:
    """Run the blocks outside ``[start, stop)`` and add that range's Δ.

    ``order`` 0 adds the Δ of the last full step; 1 extrapolates it linearly from the last two.
    """

    start: int
    stop: int
    order: int = 0

    @property
    def range(self) -> Range:
        """The range that is not run."""
        return self.start, self.stop

    @property
    def width(self) -> int:
        """How many blocks are not run."""
        return self.stop - self.start


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

    Raises:
        ValueError: a plan that cannot be carried out.
    """

    blocks: int
    actions: tuple[Action, ...]
    levels: tuple[float, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every reuse step finds a recorded Δ."""
        if self.blocks < 1 or not self.actions:
            raise ValueError(
                f"{len(self.actions)} steps of {self.blocks} blocks make no plan; allowed: 1 or more of each"
            )
        if self.levels is not None and len(self.levels) != len(self.actions):
            raise ValueError(f"a plan has {len(self.levels)} noise levels for {len(self.actions)} steps")
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
        step; of a run that begins late, as image-to-image does, that of the rest of this plan.

        Raises:
            ValueError: this plan does not know its own noise levels.
        """
        if self.levels is None:
            raise ValueError(f"a plan for {self.steps} steps without noise levels; allowed: {self.steps} steps only")
        if levels[0] < levels[-1]:  # 1 is the image, as some schedulers have it
            levels = [1 - level for level in levels]
        if len(levels) == self.steps and all(math.isclose(a, b, abs_tol=0.005) for a, b in zip(levels, self.levels)):
            return self
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
            reuses.append(chosen.pop(0) if due else None)
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
            else {"action": "reuse", "range": list(action.range), "order": action.order}
            for action in self.actions
        ]
        return {
            "schema": SCHEMA,
            "blocks": self.blocks,
            "mac_speedup": self.mac_speedup(),
            "steps": steps,
            "levels": None if self.levels is None else list(self.levels),
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
            return cls(int(value["blocks"]), actions, levels, dict(value["provenance"]))
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


def paper(steps: int, blocks: int, interval: int, cached_blocks: int, early_steps: int | None = None) -> DeltaPlan:
    """Return the paper's schedule: full every ``interval`` steps, between them rear blocks early, front blocks late.

    Args:
        steps: T.
        blocks: L.
        interval: N; 1 never reuses.
        cached_blocks: N_c, how many of the L blocks a reuse step does not run; 0 never reuses.
        early_steps: how many of the T steps belong to the early (noisy) stage. The paper's b counts the remaining
            steps, so b=12 of 20 means 8 (reconstructed reading); default: 40 % of the steps.
    """
    early = round(0.4 * steps) if early_steps is None else early_steps
    if not 0 <= early <= steps:
        raise ValueError(f"early_steps={early!r} is not possible; allowed: 0 to {steps}")
    rear, front = (blocks - cached_blocks, blocks), (0, cached_blocks)
    return _uniform(steps, blocks, interval, cached_blocks, [rear if step < early else front for step in range(steps)])


def front(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the first ``cached_blocks`` blocks in both stages."""
    return _uniform(steps, blocks, interval, cached_blocks, [(0, cached_blocks)] * steps)


def rear(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the last ``cached_blocks`` blocks in both stages."""
    return _uniform(steps, blocks, interval, cached_blocks, [(blocks - cached_blocks, blocks)] * steps)


def middle(steps: int, blocks: int, interval: int, cached_blocks: int) -> DeltaPlan:
    """Return the schedule that reuses the central ``cached_blocks`` blocks in both stages."""
    start = (blocks - cached_blocks) // 2
    return _uniform(steps, blocks, interval, cached_blocks, [(start, start + cached_blocks)] * steps)


def for_speedup(steps: int, blocks: int, speedup: float) -> tuple[int, int]:
    """Return the paper's ``(interval N, cached_blocks N_c)`` for a speed-up S counted in blocks.

    With F = ⌈T/N⌉ full steps, S = T·L / (F·L + (T − F)(L − N_c)). N is the smallest that lets N_c ≤ L. The paper's
    exact rounding is not known; this one reproduces its published pairs (1.6× at T=20: N=2 and 21 of 28 blocks).

    Raises:
        ValueError: no schedule is as fast as that.
    """
    _check_speedup(speedup, steps)
    for interval in range(2, steps + 1):
        reuse_steps = steps - math.ceil(steps / interval)
        cached = round(blocks * steps * (1 - 1 / speedup) / reuse_steps)
        if cached <= blocks:
            return interval, cached
    return 1, 0  # a single step: only a speed-up of 1 came this far


def generic(steps: int, blocks: int, speedup: float) -> DeltaPlan:
    """Return the plan to use without calibration: all blocks are reused, where reuse is cheap.

    The first quarter and the last tenth of the steps stay full, because the final image is most sensitive to them; the
    reuse steps are spread evenly over the rest. Faster plans than that allows eat into the full ends.

    Raises:
        ValueError: no schedule is as fast as that.
    """
    _check_speedup(speedup, steps)
    saved = round(steps * blocks * (1 - 1 / speedup))  # block evaluations to save
    count, left = divmod(saved, blocks)
    slots = math.ceil(saved / blocks)
    head, tail = math.ceil(steps / 4), math.ceil(steps / 10)
    tail = min(tail, max(0, steps - 1 - slots))
    head = max(1, min(head, steps - tail - slots))
    free = steps - tail - head
    # every reuse step gets the middle of its share of the free steps
    chosen = [head + math.floor((k + 0.5) * free / slots) for k in range(slots)]
    run = longest_run([step in chosen for step in range(steps)])
    reuses: list[Reuse | None] = [None] * steps
    for number, step in enumerate(chosen):
        width = blocks if number < count else left
        # extrapolation pays while full steps are close, and overshoots in longer runs
        reuses[step] = Reuse(blocks - width, blocks, order=1 if run <= 2 else 0)
    return DeltaPlan.of(blocks, reuses)


def longest_run(reuses: Sequence[Any]) -> int:
    """Return how many steps in a row reuse, at most; of a plan as :attr:`DeltaPlan.reuses`, or of truth values."""
    return max((len(run) for run in "".join("r" if reuse else " " for reuse in reuses).split()), default=0)


def _uniform(steps: int, blocks: int, interval: int, cached_blocks: int, ranges: list[Range]) -> DeltaPlan:
    if interval < 1:
        raise ValueError(f"interval={interval!r} is not possible; allowed: 1 or more")
    if not 0 <= cached_blocks <= blocks:
        raise ValueError(f"cached_blocks={cached_blocks!r} is not possible; allowed: 0 to {blocks}")
    reuses = [None if step % interval == 0 or cached_blocks == 0 else Reuse(*ranges[step]) for step in range(steps)]
    return DeltaPlan.of(blocks, reuses)


def _check_speedup(speedup: float, steps: int) -> None:
    if not 1 <= speedup <= steps:
        raise ValueError(f"speedup={speedup!r} is not possible; allowed: 1 to {steps}, the largest at {steps} steps")


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


def _action(value: dict[str, Any]) -> Action:
    if value["action"] == "full":
        return Full(tuple((int(start), int(stop)) for start, stop in value["record"]))
    if value["action"] == "reuse":
        start, stop = value["range"]
        return Reuse(int(start), int(stop), int(value["order"]))
    raise ValueError(f"action {value['action']!r} is unknown; allowed: full, reuse")

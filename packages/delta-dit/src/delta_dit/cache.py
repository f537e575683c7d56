"""What each block does in the transformer call at hand: the state of one transformer's Δ-cache, and its decisions.

A call is recognised by its position in the run (see :mod:`delta_dit.clock`) and by its branch: with separate
classifier-free guidance a step has two calls, each with Δs of its own. The plan says what such a call should do.
Whatever does not fit costs a full call, counted by reason, and never an image: the first call of a run or of a branch,
other shapes or conditions in mid-run, a Δ older than the plan has it, a scheduler that does not know where it is.
"""

import itertools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from delta_dit.adapters import Block
from delta_dit.clock import Clock
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta import DeltaRecord, DeltaSum, Streams, add_delta
from delta_dit.delta_plan import DeltaPlan, Full, Range, Reuse

MAX_BRANCHES = 16
"""Bounds the memory of a loop that makes endless calls at one step; guidance makes 2 or 3, tiled sampling more."""


@dataclass
class DeltaCacheStats:
    """What a cached transformer did since the cache was enabled, calls with gradients on (never cached) apart."""

    calls: int = 0
    reuse_calls: int = 0
    blocks_run: int = 0
    blocks_total: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    """Calls that the plan wanted to reuse and that ran in full, by reason."""

    @property
    def block_speedup(self) -> float:
        """Block evaluations without the cache ÷ with it."""
        return self.blocks_total / self.blocks_run if self.blocks_run else float("nan")

    def __add__(self, other: "DeltaCacheStats") -> "DeltaCacheStats":
        return DeltaCacheStats(
            self.calls + other.calls,
            self.reuse_calls + other.reuse_calls,
            self.blocks_run + other.blocks_run,
            self.blocks_total + other.blocks_total,
            self.fallbacks + other.fallbacks,
        )


@dataclass
class Branch:
    """The calls, one per step, that share their conditions (prompt or class labels), and the Δs recorded from them."""

    signature: list[Any]
    inputs: list[weakref.ref[Tensor]]
    step: int = -1  # of the newest call
    constant: int = 0  # how many input tensors were the very same in the newest two calls
    called: list[int] = field(default_factory=list)  # the blocks that our hooks saw in the newest full call
    records: dict[Range, DeltaRecord] = field(default_factory=dict)

    def shared(self, inputs: Iterable[Tensor]) -> int:
        """Return how many of these tensors are the very same as in the newest call."""
        return sum(known() is tensor for known, tensor in zip(self.inputs, inputs))


@dataclass
class Call:
    """What every block does in one transformer call. As it stands: run, and record nothing."""

    branch: Branch | None = None
    step: int = -1
    skips: Range = (0, 0)  # blocks that do not run
    deltas: dict[Range, Streams] = field(default_factory=dict)  # their Δs by piece, each taken out when it is added
    sums: dict[Range, DeltaSum] = field(default_factory=dict)  # what to record, by piece
    fallback: str | None = None  # why the call runs in full although the plan reuses
    called: list[int] = field(default_factory=list)  # the blocks that our hooks have seen so far
    skipped: int = 0

    @property
    def reuses(self) -> bool:
        """Whether any block is to be skipped."""
        return self.skips[0] < self.skips[1]

    def skips_block(self, block: int) -> bool:
        """Return whether this block does not run."""
        return self.skips[0] <= block < self.skips[1]

    def in_place_of(self, block: int, inputs: Streams) -> Streams:
        """Return what a skipped block gives: its input, to which the first of its piece adds the piece's Δ."""
        self.called.append(block)
        self.skipped += 1
        piece = next((piece for piece in self.deltas if piece[0] <= block < piece[1]), None)
        return inputs if piece is None else add_delta(inputs, self.deltas.pop(piece))

    def enter(self, block: int, inputs: Streams) -> None:
        """Take the input of a block that runs."""
        self.called.append(block)
        for total in self._sums_of(block):
            total.enter(inputs)

    def leave(self, block: int, outputs: Streams) -> None:
        """Take the output of that block."""
        for total in self._sums_of(block):
            total.leave(outputs)

    def _sums_of(self, block: int) -> list[DeltaSum]:
        return [total for piece, total in self.sums.items() if piece[0] <= block < piece[1]]


class DeltaCache:
    """One transformer's cache: its plan, its branches with their Δs, and the call in progress."""

    def __init__(self, config: DeltaCacheConfig, blocks: list[Block], clock: Clock) -> None:
        self.config = config
        self.blocks = blocks
        self.clock = clock
        self.stats = DeltaCacheStats()
        self.writes_in_place = False  # whether the model changes a block's output afterwards, see DeltaSum
        self.reset()

    def reset(self) -> None:
        """Forget the run and all recorded Δs; the next call begins a new run."""
        self.clock.restart()
        self._forget()

    def _forget(self) -> None:
        self.call = Call()
        self.run: int | None = None
        self.plan: DeltaPlan | None = None
        self.branches: list[Branch] = []

    def begin(self, timestep: Any, inputs: Any) -> None:
        """Decide what the blocks will do in the call with these inputs that is about to happen."""
        position = self.clock.tick(timestep)
        if position is None:
            self.call = Call(fallback="the scheduler does not know the step")
            return
        if position.run != self.run:
            self._forget()
            self.plan = self.config.plan_for(self.clock.steps, len(self.blocks), self.clock.levels)
            self.run = position.run
        self.call = self._decide(position.step, self._branch(position.step, inputs))

    def end(self) -> bool:
        """Keep what the call recorded. Return whether its output is good.

        It is not where our hooks saw other blocks than in the call that recorded the Δs: another hook began to bypass
        blocks, or a hook of ours was lost. Then the call must be made again, without the cache.
        """
        call, self.call = self.call, Call()
        good = True
        if call.branch is not None:
            if call.called != call.branch.called:
                call.branch.records.clear()
                good = not call.reuses
            if not call.reuses:
                call.branch.called = call.called
                self._record(call.branch, call)
        self._count(call, good)
        return good

    def _branch(self, step: int, inputs: Any) -> Branch:
        """Return the branch that a call belongs to, a new one if need be.

        Branches have an order within a step, but a guidance interval may drop any of them. What tells them apart for
        sure are the tensors that a pipeline hands over again and again, above all the prompt's.
        """
        leaves = list(_leaves(inputs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        signature = [_describe(leaf) for leaf in leaves]
        shared = [
            (known.shared(tensors), known)
            for known in self.branches
            if known.step != step and known.signature == signature
        ]
        shared = [(count, known) for count, known in shared if count >= known.constant]
        constant, branch = max(shared, key=lambda pair: pair[0], default=(0, None))
        if branch is None:
            branch = Branch(signature, [])
            self.branches = [*self.branches[-MAX_BRANCHES + 1 :], branch]
        branch.step, branch.constant = step, constant
        branch.inputs = [weakref.ref(tensor) for tensor in tensors]
        return branch

    def _decide(self, step: int, branch: Branch) -> Call:
        assert self.plan is not None
        action, call = self.plan.actions[step], Call(branch, step)
        full, wanted = next((i, a.records) for i in range(step, -1, -1) if isinstance(a := self.plan.actions[i], Full))
        if isinstance(action, Reuse):
            pieces = self._pieces(action.range)
            records = [branch.records.get(piece) for piece in pieces]
            if all(record is not None and record.steps[0] >= full for record in records):
                call.skips = action.range
                call.deltas = {p: r.forecast(step, action) for p, r in zip(pieces, records) if r is not None}
                return call
            call.fallback = "the Δ is out of date" if branch.records else "no Δ was recorded yet"
        # a reuse that is not possible stands in for the full step before it
        pieces = {piece for blocks in wanted for piece in self._pieces(blocks)}
        call.sums = {piece: DeltaSum(copy=self.writes_in_place) for piece in sorted(pieces)}
        return call

    def _pieces(self, blocks: Range) -> list[Range]:
        """Split a range where no single sum of Δ can span it."""
        start, stop = blocks
        cuts = [start, *(i for i in range(start + 1, stop) if self.blocks[i].opens_piece), stop]
        return list(itertools.pairwise(cuts))

    def _record(self, branch: Branch, call: Call) -> None:
        assert self.plan is not None
        order = max((a.order for a in self.plan.actions if isinstance(a, Reuse)), default=0)
        for piece, total in call.sums.items():
            delta = total.total()
            self.writes_in_place |= total.spoilt
            if delta is not None:
                branch.records.setdefault(piece, DeltaRecord()).push(call.step, delta, keep=1 + order)

    def _count(self, call: Call, good: bool) -> None:
        ran = len(call.called) - call.skipped
        self.stats.calls += 1
        self.stats.reuse_calls += call.reuses and good
        self.stats.blocks_run += ran if good else ran + len(call.called)
        self.stats.blocks_total += len(call.called)
        fallback = call.fallback if good else "other hooks changed which blocks are called"
        if fallback is not None:
            self.stats.fallbacks[fallback] += 1


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what nested arguments are made of: keys, lengths and values."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        yield len(value)
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _describe(leaf: Any) -> Any:
    """Return what must not change from one call of a branch to the next."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, str | int | torch.Size | None) else type(leaf)

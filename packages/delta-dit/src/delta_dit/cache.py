"""What each block does in the transformer call at hand: the state of one transformer's Δ-cache, and its decisions.

A call is recognised by its position in the run (see :mod:`delta_dit.clock`) and by its branch (see
:mod:`delta_dit.branch`). The plan says what such a call should do. Whatever does not fit costs a full call, counted by
reason, and never an image: the first call of a run or of a branch, other shapes or conditions in mid-run, a Δ older
than the plan has it, a scheduler that does not know where it is, another cache, a number of steps without a plan.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from delta_dit.adapters import Block
from delta_dit.branch import Branch, branch_of
from delta_dit.clock import Clock
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta import DeltaRecord, DeltaSum, Streams, add_delta
from delta_dit.delta_plan import DeltaPlan, Range, Reuse
from delta_dit.run import Run
from delta_dit.stats import DeltaCacheStats

LOST = "the scheduler does not know the step"
ALIKE = "the calls of a step cannot be told apart"
NOTHING_DUE = "no step of the run was one that reuses"
OUTSIDE = "the blocks are called by somebody else"
_ADVICE = {
    LOST: "is it the scheduler of the pipeline that draws? If not, enable the cache on that pipeline",
    ALIKE: "name them with the transformer's cache_context",
    NOTHING_DUE: "it broke off or began late, or requests take turns, which need names: see delta_cache_request",
    OUTSIDE: "another cache was put on after this one; disable one of them",
}
_PATIENCE = 4
"""After how many calls in a row whose step is not known this is told."""


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
    """One transformer's cache in one thread or request: its run, its branches with their Δs, the call in progress.

    Args:
        config: what to do.
        blocks: the transformer's.
        clock: tells where in a run a call stands.
        look: called when a run begins; says why nothing can be reused in it, if so.
        tell: called with what the user should know.
        shares_runs: whether another transformer has some of a run's steps, perhaps all those that reuse.
    """

    def __init__(
        self,
        config: DeltaCacheConfig,
        blocks: list[Block],
        clock: Clock,
        look: Callable[[], str | None] = lambda: None,
        tell: Callable[[str], None] = warnings.warn,
        shares_runs: bool = False,
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.clock = clock
        self.look = look
        self.tell = tell
        self.shares_runs = shares_runs
        self.stats = DeltaCacheStats()
        self.writes_in_place = False  # whether the model changes a block's output afterwards, see DeltaSum
        self._forget()

    def reset(self) -> None:
        """End the run, and forget it and all recorded Δs; the next call begins a new one."""
        self._end_run()
        self.abort()

    def abort(self) -> None:
        """Forget a run that failed, and all recorded Δs."""
        self.clock.restart()
        self._forget()

    def _forget(self) -> None:
        self.call: Call | None = None  # outside of the transformer's forward
        self.run: Run | None = None
        self.branches: list[Branch] = []
        self.lost = 0  # calls in a row whose step was not known

    def begin(self, timestep: Any, inputs: dict[str, Any], name: str | None = None) -> None:
        """Decide what the blocks will do in the call with these inputs that is about to happen.

        Args:
            timestep: the transformer's.
            inputs: the transformer's other arguments.
            name: the call's, where somebody names the calls of a step.
        """
        with self.timed():
            position = self.clock.tick(timestep)
            if position is None:
                self._lose()
                return
            self.lost = 0
            run = self._run_of(position.run)
            self._go_to(run, position.step)
            if run.obstacle is not None:
                self.call = Call(fallback=run.obstacle)
            elif position.step > run.last_reuse:
                self.call = Call()
            else:
                self.call = self._decide(run, branch_of(self.branches, position.step, name, inputs))

    def end(self) -> bool:
        """Keep what the call recorded. Return whether its output is good.

        It is not where our hooks saw other blocks than in the call that recorded the Δs: another hook began to bypass
        blocks, or a hook of ours was lost. Then the call must be made again, without the cache.
        """
        with self.timed():
            call, self.call = self.call or Call(), Call()
            good = True
            if call.branch is not None:
                if call.called != call.branch.called:
                    call.branch.records.clear()
                    good = not call.reuses
                if not call.reuses:
                    call.branch.called = call.called
                    self._record(call.branch, call)
            self._count(call, good)
            if self.run is not None and self.run.at_its_last_step:
                self._end_run()
        return good

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what the cache itself does."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stats.seconds += time.perf_counter() - start

    def pass_by(self) -> None:
        """Let every block of the call that is about to happen run, and count nothing."""
        self.call = Call()

    def leave(self) -> None:
        """Note that the transformer's forward is over."""
        self.call = None

    def surprised(self, block: int) -> Call:
        """Return what a block does that is called outside of the transformer's forward, and count it once per call."""
        if block == 0 and not torch.is_grad_enabled():  # as gradient checkpointing does
            self._explain(OUTSIDE)
            self.stats.fallbacks[OUTSIDE] += 1
        return Call()

    # Runs

    def _run_of(self, number: int) -> Run:
        if self.run is not None and self.run.number == number:
            return self.run
        self._end_run()
        self._forget()
        obstacle = self.look()
        try:
            plan = self.config.plan_for(self.clock.steps, len(self.blocks), self.clock.levels)
        except ValueError as error:  # a warm-up of one step, or a number of steps that the plan is not for
            plan = DeltaPlan.of(len(self.blocks), [None] * self.clock.steps)
            obstacle = obstacle or f"no plan: {error}"
        if obstacle is not None:
            self._explain(obstacle)
        self.stats.plan = plan
        # what Δ follows; but a calibrated plan was tried along its steps, and does worse when carried over otherwise
        ratios = self.clock.ratios if self.config.plan is None else None
        self.run = Run(number, plan, self._pieces, obstacle, ratios)
        return self.run

    def _end_run(self) -> None:
        run = self.run
        if run is None or run.ended:
            return
        run.ended = True
        if run.reused_nothing and run.obstacle is None and (run.fallbacks or not self.shares_runs):
            if not run.fallbacks:
                self.stats.fallbacks[NOTHING_DUE] += run.calls
            self._explain(max(run.fallbacks, key=run.fallbacks.__getitem__, default=NOTHING_DUE))

    def _lose(self) -> None:
        self.call = Call(fallback=LOST)
        self.lost += 1
        if self.lost == _PATIENCE:
            self._explain(LOST)

    def _explain(self, reason: str) -> None:
        advice = _ADVICE.get(reason)
        self.tell(f"the delta cache reuses nothing: {reason}" + (f"; {advice}" if advice else ""))

    # Calls

    def _go_to(self, run: Run, step: int) -> None:
        """Let go of what no step from here on reads."""
        if step == run.step:
            return
        run.step = step
        if step > run.last_reuse:
            self.branches = []
        for branch in self.branches:
            branch.trim(run.needs[step - 1] if step else {})

    def _decide(self, run: Run, branch: Branch | None) -> Call:
        step = run.step
        action = run.plan.actions[step]
        if branch is None:
            return Call(fallback=ALIKE if isinstance(action, Reuse) else None)
        call, needed = Call(branch, step), run.needs[step]
        full, wanted = run.last_full(step)
        if isinstance(action, Reuse):
            pieces = self._pieces(action.range)
            records = [branch.records.get(piece, DeltaRecord()) for piece in pieces]
            if all(record.steps and record.steps[0] >= full for record in records):
                call.skips = action.range
                call.deltas = {piece: record.forecast(step, action, run.axis) for piece, record in zip(pieces, records)}
                branch.trim(needed)
                return call
            call.fallback = "the Δ is out of date" if branch.records else "no Δ was recorded yet"
        # a reuse that is not possible stands in for the full step before it
        for piece in sorted({piece for blocks in wanted for piece in self._pieces(blocks)} & needed.keys()):
            call.sums[piece] = DeltaSum(copy=self.writes_in_place)
            if piece in branch.records:
                branch.records[piece].trim(needed[piece] - 1)  # makes room for the new one
        return call

    def _pieces(self, blocks: Range) -> list[Range]:
        """Split a range where no single sum of Δ can span it."""
        start, stop = blocks
        cuts = [start, *(i for i in range(start + 1, stop) if self.blocks[i].opens_piece), stop]
        return list(itertools.pairwise(cuts))

    def _record(self, branch: Branch, call: Call) -> None:
        assert self.run is not None
        for piece, total in call.sums.items():
            delta = total.total()
            self.writes_in_place |= total.spoilt
            if delta is not None:
                record = branch.records.setdefault(piece, DeltaRecord())
                record.push(call.step, delta, keep=self.run.needs[call.step][piece])
        held = sum(record.nbytes for each in self.branches for record in each.records.values())
        self.stats.delta_bytes = max(self.stats.delta_bytes, held)

    def _count(self, call: Call, good: bool) -> None:
        ran = len(call.called) - call.skipped
        self.stats.calls += 1
        self.stats.reuse_calls += call.reuses and good
        self.stats.blocks_run += ran if good else ran + len(call.called)
        self.stats.blocks_total += len(call.called)
        fallback = call.fallback if good else "other hooks changed which blocks are called"
        if fallback is not None:
            self.stats.fallbacks[fallback] += 1
        if self.run is not None:
            self.run.count(call.reuses and good, fallback)

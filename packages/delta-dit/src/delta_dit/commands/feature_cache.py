"""The naive feature cache of the paper's §3: the range's *output* is kept, where Δ-DiT keeps what the range adds."""

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from delta_dit.adapters import blocks_of
from delta_dit.clock import Position
from delta_dit.commands.foreign import Attach, watch
from delta_dit.delta_plan import DeltaPlan, Full, Range, Reuse

KEPT = 2
"""Full steps whose outputs are kept: what a forecast is made from."""


def features_of(plan: DeltaPlan) -> Attach:
    """Return what puts a cache on a pipeline that reuses outputs where ``plan`` reuses Δs, by the same forecasts."""
    return lambda pipe, steps: FeatureCache(plan).attach(pipe)


@dataclass
class FeatureCache:
    """Keeps block outputs at the full steps of a plan, and forecasts them at its reuse steps.

    Raises:
        ValueError: when attached, if a range spans stacks whose blocks return different things.
    """

    plan: DeltaPlan
    outputs: dict[tuple[int, Range], list[tuple[int, Any]]] = field(default_factory=lambda: defaultdict(list))
    run: int = -1
    step: int = 0
    branch: int = 0

    def attach(self, pipe: Any) -> None:
        """Wrap the blocks of a pipeline's transformer."""
        blocks = blocks_of(pipe.transformer)
        for start, stop in {action.range for action in self.plan.actions if isinstance(action, Reuse)}:
            if any(block.opens_piece for block in blocks[start + 1 : stop]):
                raise ValueError(f"blocks [{start}, {stop}) return different things; one output cannot replace them")
        for index, block in enumerate(blocks):
            self._wrap(block.module, index)
        watch(pipe, self._begin)

    def _begin(self, position: Position, branch: int) -> None:
        if position.run != self.run:
            self.outputs.clear()
        self.run, self.step, self.branch = *position, branch

    def _wrap(self, block: nn.Module, index: int) -> None:
        forward = block.forward

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            action = self.plan.actions[self.step]
            if isinstance(action, Reuse) and action.start <= index < action.stop:
                return self._forecast(action)
            output = forward(*args, **kwargs)
            if isinstance(action, Full):
                for kept in action.records:
                    if kept[1] == index + 1:
                        known = self.outputs[self.branch, kept]
                        self.outputs[self.branch, kept] = [(self.step, output), *known][:KEPT]
            return output

        block.forward = wrapped

    def _forecast(self, reuse: Reuse) -> Any:
        (newest, output), *older = self.outputs[self.branch, reuse.range]
        previous, before = older[0] if older else (None, output)
        a, b = reuse.coefficients(newest, previous, self.step)
        if (a, b) == (1.0, 0.0):
            return output
        if isinstance(output, Tensor):
            return a * output + b * before
        return tuple(a * new + b * old for new, old in zip(output, before))

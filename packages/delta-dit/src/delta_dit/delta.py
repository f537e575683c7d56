"""The Δ-cache (Δ-DiT, arXiv 2406.01125, §3): what a range of blocks adds to its input, kept and added again later.

For blocks f_a … f_b at one sampling step, Δ = F_a^b(h) − h. At a later step the range is not run: its output is
h′ + Δ. Unlike a cached *output*, h′ + Δ still carries everything the current step knows. Tensors only; nothing here
knows diffusers.

A block carries one or more *streams*, e.g. image tokens, or image and text tokens: tuples of tensors here, with None
where a model's last block gives no text stream.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Streams = tuple[Tensor | None, ...]


class DeltaSum:
    """Σ_l (out_l − in_l) over the blocks of a range, one block after the other.

    The sum telescopes to (last output − first input) − Σ gaps, where a gap is what somebody added *between* two blocks,
    such as a ControlNet's residual: it will be added again at the reuse step and must not be counted twice. Where
    nothing was added, the next block gets the very tensor that the last one gave, and a range costs one subtraction.
    """

    def __init__(self) -> None:
        self.first: Streams | None = None
        self.last: Streams = ()
        self.gaps: list[Tensor | None] = []

    def add(self, inputs: Streams, outputs: Streams) -> None:
        """Take one block's streams, in the order in which the blocks run."""
        if self.first is None:
            self.first = inputs
            self.gaps = [None] * len(inputs)
        else:
            for i, (before, after) in enumerate(zip(self.last, inputs)):
                if before is not after and before is not None and after is not None:
                    gap = after - before
                    self.gaps[i] = gap if self.gaps[i] is None else self.gaps[i] + gap
        self.last = outputs

    def total(self) -> Streams:
        """Return Δ per stream; None for a stream that ended inside the range."""
        assert self.first is not None, "no block was added"
        return tuple(
            None if out is None or start is None else (out - start if gap is None else out - start - gap)
            for start, out, gap in zip(self.first, self.last, self.gaps)
        )


def add_delta(streams: Streams, delta: Streams) -> Streams:
    """Return h′ + Δ per stream."""
    return tuple(h if h is None or d is None else h + d for h, d in zip(streams, delta))


@dataclass
class DeltaRecord:
    """The Δ of one range from its last two full steps, newest first."""

    steps: list[int] = field(default_factory=list)
    deltas: list[Streams] = field(default_factory=list)

    def push(self, step: int, delta: Streams, keep: int) -> None:
        """Record the Δ of full step ``step`` and forget all but the newest ``keep``."""
        self.steps = [step, *self.steps][:keep]
        self.deltas = [delta, *self.deltas][:keep]

    def at(self, step: int, order: int) -> Streams:
        """Return the Δ to add at ``step``: the newest (order 0), or the line through the newest two (order 1)."""
        if order == 0 or len(self.deltas) < 2:
            return self.deltas[0]
        new, old = self.deltas
        ratio = (step - self.steps[0]) / (self.steps[0] - self.steps[1])
        return tuple(d if d is None or o is None else torch.lerp(d, o, -ratio) for d, o in zip(new, old))

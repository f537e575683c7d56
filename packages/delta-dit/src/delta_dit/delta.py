"""The Δ-cache (Δ-DiT, arXiv 2406.01125, §3): what a range of blocks adds to its input, kept and added again later.

For blocks f_a … f_b at one sampling step, Δ = F_a^b(h) − h. At a later step the range is not run: its output is
h′ + Δ. Unlike a cached *output*, h′ + Δ still carries everything the current step knows. Tensors only; nothing here
knows diffusers.

A block carries one or more *streams*, e.g. image tokens, or image and text tokens: tuples of tensors here, with None
where a model's last block gives no text stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from delta_dit.delta_plan import Reuse

Streams = tuple[Tensor | None, ...]


class DeltaSum:
    """Σ_l (out_l − in_l) over the blocks of a range, one block after the other.

    The sum telescopes to (last output − first input) − Σ gaps, where a gap is what somebody added *between* two blocks,
    such as a ControlNet's residual: it will be added again at the reuse step and must not be counted twice. Where
    nothing was added, the next block gets the very tensor that the last one gave, and a range costs one subtraction.

    Args:
        copy: keep copies of what the blocks get and give: for models that write into those tensors afterwards.
    """

    def __init__(self, copy: bool = False) -> None:
        self.copy = copy
        self.first: _Kept | None = None
        self.last: _Kept | None = None
        self.gaps: list[Tensor | None] = []
        self.spoilt = False
        """Whether a tensor was written into while only a reference to it was kept."""

    def enter(self, inputs: Streams) -> None:
        """Take what the next block gets, before it runs."""
        if self.first is None or self.last is None:
            self.first = _Kept(inputs, self.copy)
            self.gaps = [None] * len(inputs)
            return
        self.spoilt |= self.last.changed()
        for i, (before, after) in enumerate(zip(self.last.streams, inputs)):
            if before is not after and before is not None and after is not None:
                known = self.gaps[i]
                self.gaps[i] = after - before if known is None else known + (after - before)

    def leave(self, outputs: Streams) -> None:
        """Take what that block gives."""
        self.last = _Kept(outputs, self.copy)

    def total(self) -> Streams | None:
        """Return Δ per stream, None for a stream that ends inside the range; None if no block ran, or if spoilt."""
        if self.first is None or self.last is None:
            return None
        self.spoilt |= self.first.changed() or self.last.changed()
        if self.spoilt:
            return None
        return tuple(
            None if out is None or start is None else (out - start if gap is None else out - start - gap)
            for start, out, gap in zip(self.first.streams, self.last.streams, self.gaps)
        )


class _Kept:
    """Streams to be read later, which nobody may have written into until then."""

    def __init__(self, streams: Streams, copy: bool) -> None:
        # under inference_mode a tensor does not know whether it was written into
        self.streams = tuple(h.clone() if h is not None and (copy or h.is_inference()) else h for h in streams)
        self.versions = self._versions()

    def changed(self) -> bool:
        return self.versions != self._versions()

    def _versions(self) -> list[int]:
        return [h._version for h in self.streams if h is not None and not h.is_inference()]


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

    def trim(self, keep: int) -> None:
        """Forget all but the newest ``keep``."""
        del self.steps[keep:], self.deltas[keep:]

    @property
    def nbytes(self) -> int:
        """How much memory the Δs take."""
        return sum(stream.nbytes for delta in self.deltas for stream in delta if stream is not None)

    def forecast(self, step: int, reuse: Reuse, axis: Sequence[float]) -> Streams:
        """Return the Δ to add at ``step``: a·Δ_s + b·Δ_p of the newest two.

        Args:
            step: t.
            reuse: what the plan has there.
            axis: where each step lies, for linear forecasts.
        """
        newest, *older = (axis[known] for known in self.steps)
        a, b = reuse.coefficients(newest, older[0] if older else None, axis[step])
        total = a + b  # a·Δ_s + b·Δ_p is one interpolation, and where the weights do not sum to 1 one product more
        streams = self.deltas[0] if b == 0 else _lerp(self.deltas[0], self.deltas[1], b / total)
        return streams if math.isclose(total, 1) else tuple(None if d is None else total * d for d in streams)


def _lerp(new: Streams, old: Streams, share: float) -> Streams:
    return tuple(d if d is None or o is None else torch.lerp(d, o, share) for d, o in zip(new, old))

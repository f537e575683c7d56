"""Which calls of a run belong together: those, one per step, that share their conditions.

Guidance in two calls has two such branches, each with Δs of its own. What tells them apart for sure is the name of
diffusers' ``cache_context``, where a pipeline gives it, and the tensors that a pipeline hands over again and again,
above all the prompt's. Only where both leave a choice, as between the tiles of one picture, values are compared: the
one case in which the cache waits for a GPU.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from delta_dit.delta import DeltaRecord
from delta_dit.delta_plan import Range

MAX_BRANCHES = 16
"""Bounds the memory of a loop that makes endless calls at one step; guidance makes 2 or 3, tiled sampling more."""
_SAMPLE = 4096
"""How many numbers of a tensor are compared."""
_CLEARLY = 0.9
"""How far the nearest branch may be, at most, of the distance of the second nearest, to be no matter of chance."""


@dataclass
class Branch:
    """Calls that share their conditions (prompt or class labels), and the Δs recorded from them."""

    signature: list[Any]
    inputs: list[weakref.ref[Tensor]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # of those the few that are compared by value
    step: int = -1  # of the newest call
    constant: int = 0  # how many input tensors were the very same in the newest two calls
    called: list[int] = field(default_factory=list)  # the blocks that our hooks saw in the newest full call
    records: dict[Range, DeltaRecord] = field(default_factory=dict)

    def shared(self, inputs: Iterable[Tensor]) -> int:
        """Return how many of these tensors are the very same as in the newest call."""
        return sum(known() is tensor for known, tensor in zip(self.inputs, inputs))

    def trim(self, needed: Mapping[Range, int]) -> None:
        """Let go of all but the newest so many Δs of each piece."""
        for piece, record in self.records.items():
            record.trim(needed.get(piece, 0))


def branch_of(branches: list[Branch], step: int, name: str | None, inputs: dict[str, Any]) -> Branch | None:
    """Return the branch that a call belongs to, a new one if need be; None if there is no telling.

    Branches have an order within a step, but a guidance interval may drop any of them.

    Args:
        branches: those of the run; a new one is put to them.
        step: of the run.
        name: the call's own, if it has one.
        inputs: the transformer's arguments.
    """
    leaves = list(_leaves(inputs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    kept = [value for value in inputs.values() if isinstance(value, Tensor)]
    signature = [name, *map(_describe, leaves)]
    fitting = [known for known in branches if known.step != step and known.signature == signature]
    shared = [(known.shared(tensors), known) for known in fitting]
    shared = [(count, known) for count, known in shared if count >= known.constant]
    constant = max((count for count, _ in shared), default=0)
    best = [known for count, known in shared if count == constant]
    if not best:
        best = [Branch(signature)]
        branches[:] = [*branches[-MAX_BRANCHES + 1 :], *best]
    branch = best[0] if len(best) == 1 else nearest(kept, best)
    if branch is not None:
        branch.step, branch.constant, branch.kept = step, constant, kept
        branch.inputs = [weakref.ref(tensor) for tensor in tensors]
    return branch


def nearest(tensors: Sequence[Tensor], branches: Sequence[Branch]) -> Branch | None:
    """Return the branch whose newest inputs are the nearest to these; None if that may be chance, and matters.

    It does not where the branches are nearer to each other than the step that the call is away from them: the stages of
    a Runge-Kutta solver.
    """
    distances = [_distance(tensors, branch.kept) for branch in branches]
    order = torch.stack(distances).argsort().tolist()
    first, second = (branches[index] for index in order[:2])
    near, far = (distances[index] for index in order[:2])
    apart = _distance(first.kept, second.kept)
    return first if bool((near < _CLEARLY * far) | (apart < _CLEARLY * near)) else None


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    terms = [torch.zeros((), device=tensor.device) for tensor in some[:1]] or [torch.zeros(())]
    for a, b in ((_sample(a), _sample(b)) for a, b in zip(some, others)):
        terms.append(((a - b).norm() / (a.norm() + b.norm()).clamp_min(1e-12)).to(terms[0].device))
    return torch.stack(terms).sum()


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[:: 1 + tensor.numel() // _SAMPLE].float()


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

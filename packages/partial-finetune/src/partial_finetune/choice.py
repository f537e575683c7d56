"""Angle-guided selection: which layers to tune, told by how far a short full fine-tuning turns them.

1. Tune everything for a short while, from a fitted head; take every layer's angle; go back to the pretrained bytes.
2. Layers of one homogeneous group (same kind, same shapes) are ranked by their angle, and ``top_k`` of each are taken:
   the *largest* angles (influential layers, for a task far from the pretraining) or the *smallest* (redundant layers,
   for a near one).
3. ``auto`` lets largest, smallest and as many random layers race on validation images. That random layers take part
   is what makes a win say something.

Source: arXiv 2312.15681; its k, the length of the full fine-tuning and which weights count are a reconstruction.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from torch import Tensor, nn

from partial_finetune.deltas import overwrite
from partial_finetune.fine_tuned_angle import angles
from partial_finetune.parts import Anatomy, Unit, anatomy
from partial_finetune.strategy import select_parameters

Direction = Literal["largest", "smallest", "auto"]
Tune = Callable[[str, str, int], float]
"""Maps (strategy, name of this training, seed) to a validation score, and leaves the model tuned. It starts from the
same bytes every time."""


@dataclass(frozen=True)
class Choice:
    """What was selected, and how sure one can be of it."""

    expression: str
    """The strategy, such as ``"attn[1,4,7] | ffn[0,2,3]"``."""
    direction: str
    """"largest", "smallest", or, where it won the race, "random"."""
    angles: dict[str, float]
    """Unit → mean angle over the repeats, in radians."""
    stability: float
    """Mean Kendall τ between the repeats' rankings within the groups, in [−1, 1]; NaN of a single repeat."""
    race: dict[str, float]
    """Candidate → validation score; empty if the direction was given."""


def select(
    model: nn.Module,
    start: Mapping[str, Tensor],
    tune: Tune,
    *,
    top_k: int,
    direction: Direction = "auto",
    repeats: int = 2,
    seed: int = 0,
) -> Choice:
    """Select layers by the fine-tuned angle; afterwards the model holds the bytes of ``start`` again.

    Args:
        model: what ``tune`` tunes.
        start: its parameters and buffers before, by name.
        tune: one short training.
        top_k: layers of every homogeneous group; of a smaller group all.
        direction: "largest", "smallest", or "auto".
        repeats: full fine-tunings, with other seeds; their angles are averaged.
        seed: of the trainings, and of the random layers.

    Raises:
        ValueError: the model has no layers to choose from, or none of them was turned; ``start`` is not complete.
    """
    parts = anatomy(model)
    if missing := sorted(model.state_dict().keys() - start.keys()):
        raise ValueError(f"start lacks {missing[0]!r}; allowed: every parameter and buffer of the model")
    found = []
    for repeat in range(repeats):
        tune("full", f"full-{repeat}", seed + repeat)
        found.append({unit.name: value for unit, value in _layer_angles(start, model, parts).items()})
        overwrite(model, start)
    mean = {name: fmean(each[name] for each in found) for name in found[0] if all(name in each for each in found)}
    candidates = {way: expression_of(ranked(parts, mean, way), top_k) for way in ("largest", "smallest")}
    race: dict[str, float] = {}
    if direction == "auto":
        candidates["random"] = expression_of(random_order(parts, mean, seed), top_k)
        race = {way: tune(expression, f"race-{way}", seed) for way, expression in candidates.items()}
        overwrite(model, start)
    winner = max(race, key=lambda way: race[way]) if race else direction
    select_parameters(candidates[winner], parts)  # that it parses and selects something
    return Choice(candidates[winner], winner, mean, stability(parts, found), race)


def ranked(parts: Anatomy, angle_of: Mapping[str, float], direction: str) -> list[list[Unit]]:
    """Return the layers of every group, the most wanted first; of equal angles the earlier block."""
    sign = -1 if direction == "largest" else 1
    return [sorted(group, key=lambda unit: sign * angle_of[unit.name]) for group in turned(parts, angle_of)]


def random_order(parts: Anatomy, angle_of: Mapping[str, float], seed: int) -> list[list[Unit]]:
    """Return the layers of every group in a random order."""
    random = np.random.default_rng(seed)
    return [[group[index] for index in random.permutation(len(group))] for group in turned(parts, angle_of)]


def turned(parts: Anatomy, angle_of: Mapping[str, float]) -> list[list[Unit]]:
    """Return the homogeneous groups, of every one the layers that have an angle.

    Raises:
        ValueError: no layer has one.
    """
    groups = [[unit for unit in group if unit.name in angle_of] for group in parts.groups()]
    if not any(groups):
        raise ValueError("no layer was turned by the full fine-tuning; allowed: a model with layers, trained a while")
    return [group for group in groups if group]


def expression_of(groups: Iterable[Sequence[Unit]], top_k: int) -> str:
    """Return the strategy that names the first ``top_k`` layers of every group, such as ``attn[0,3] | ffn[1,2]``."""
    blocks: dict[str, list[int]] = {}
    for unit in itertools.chain.from_iterable(group[:top_k] for group in groups):
        assert unit.block is not None  # layers lie in blocks
        blocks.setdefault(unit.kind, []).append(unit.block)
    return " | ".join(f"{kind}[{','.join(map(str, sorted(chosen)))}]" for kind, chosen in blocks.items())


def stability(parts: Anatomy, found: Sequence[Mapping[str, float]]) -> float:
    """Return the mean Kendall τ over pairs of repeats and groups of two layers or more; NaN if there is none."""
    taus = [
        kendall([one[unit.name] for unit in group], [other[unit.name] for unit in group])
        for one, other in itertools.combinations(found, 2)
        for group in turned(parts, {name: value for name, value in one.items() if name in other})
        if len(group) > 1
    ]
    return fmean(taus) if taus else float("nan")


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's τ: the share of pairs in the same order minus the share in opposite order."""
    rows, columns = np.triu_indices(len(a), 1)
    x, y = np.asarray(a), np.asarray(b)
    return float(np.mean(np.sign(x[rows] - x[columns]) * np.sign(y[rows] - y[columns])))


def _layer_angles(start: Mapping[str, Tensor], model: nn.Module, parts: Anatomy) -> dict[Unit, float]:
    found = angles(start, model, parts)
    return {unit: found[unit.name] for unit in parts.layers if unit.name in found}

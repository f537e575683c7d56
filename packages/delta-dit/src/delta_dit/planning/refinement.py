"""Small changes of a plan, that keep its cost: tried on the model itself, or on what a calibration predicts."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import itemgetter

from delta_dit.delta_plan import Reuse, Reuses, longest_run
from delta_dit.planning.error_model import ErrorModel

PREDICTIONS = 10_000
"""How many plans are looked at from one beginning."""
LONGEST = 3
"""How many steps in a row may reuse in a plan that nobody tries, unless they did before."""


def climb(start: Reuses, quality: Callable[[Reuses], float], model: ErrorModel) -> Reuses:
    """Improve a plan by what is predicted, until no small change does, or :data:`PREDICTIONS` were made.

    Args:
        start: the plan.
        quality: what to maximise; cheap.
        model: fits forecasts.
    """
    best, value, longest = start, quality(start), max(longest_run(start), LONGEST)
    left, improved = PREDICTIONS, True
    while improved and left > 0:
        improved = False
        near = (model.fit(plan) for plan in changes(best, model.blocks) if longest_run(plan) <= longest)
        for plan in itertools.islice(near, left):
            left -= 1
            if (found := quality(plan)) > value:
                best, value, improved = plan, found, True
                break
    return best


def refine(
    start: Reuses,
    quality: Callable[[Reuses], float],
    predicted: Callable[[Reuses], float],
    model: ErrorModel,
    evaluations: int,
) -> tuple[Reuses, float]:
    """Improve a plan by small changes, each tried on the model itself, in the order in which a calibration likes them.

    The first change that helps is kept, as long as no run of reuse becomes longer than the longest.

    Args:
        start: the plan.
        quality: what to maximise, e.g. the mean PSNR to the uncached images.
        predicted: the same as a calibration has it, which ranks the changes.
        model: fits forecasts.
        evaluations: how many plans may be tried.

    Returns:
        The plan and its quality.
    """
    best, best_quality, run = start, quality(start), longest_run(start)
    tried = {start}
    while len(tried) <= evaluations:
        near = dict.fromkeys(model.fit(plan) for plan in changes(best, model.blocks) if longest_run(plan) <= run)
        liked = ((predicted(plan), plan) for plan in near if plan not in tried)
        ranked = sorted(liked, key=itemgetter(0), reverse=True)
        fresh = [plan for value, plan in ranked if value > -math.inf]  # the others cannot be carried out
        for plan in fresh[: evaluations + 1 - len(tried)]:
            tried.add(plan)
            if (value := quality(plan)) > best_quality:
                best, best_quality = plan, value
                break
        else:
            break
    return best, best_quality


def changes(plan: Reuses, blocks: int) -> Iterator[Reuses]:
    """Yield the plans one small change away, all of the same cost.

    A full and a reuse step change places; a reuse step changes its order; it reuses another range of the same width; or
    it gives some of its width to another step.
    """
    yield from _flipped(plan)
    for i, j in itertools.permutations(range(1, len(plan)), 2):
        first, second = plan[i], plan[j]
        if first is None:
            continue
        if second is None:
            yield _with(plan, {i: None, j: first})
        room = blocks if second is None else blocks - second.width
        most = min(first.width, room)
        for width in {*(2**k for k in range(most.bit_length()) if 2**k <= most), most} - {0}:
            for less in _resized(first, first.width - width, blocks):
                for more in _resized(second or replace(first, start=0, stop=blocks), blocks - room + width, blocks):
                    yield _with(plan, {i: less, j: more})
    for i, reuse in enumerate(plan):
        if reuse is None:
            continue
        for start in range(blocks - reuse.width + 1):
            yield _with(plan, {i: replace(reuse, start=start, stop=start + reuse.width)})


def _flipped(plan: Reuses) -> Iterator[Reuses]:
    for i, reuse in enumerate(plan):
        if reuse is not None:
            for order, weights in itertools.product((0, 1), (None, (1.0, 0.0))):
                if (order, weights is None) != (reuse.order, reuse.weights is None):
                    yield _with(plan, {i: replace(reuse, order=order, weights=weights and weights[: 1 + order])})


def _resized(reuse: Reuse, width: int, blocks: int) -> Iterator[Reuse | None]:
    """Yield a reuse of another width that shares its front end or its rear end; None for no width at all."""
    if width == 0:
        yield None
        return
    for start in {min(reuse.start, blocks - width), max(reuse.stop - width, 0)}:
        yield replace(reuse, start=start, stop=start + width)


def _with(plan: Reuses, changed: dict[int, Reuse | None]) -> Reuses:
    return tuple(changed.get(step, reuse) for step, reuse in enumerate(plan))

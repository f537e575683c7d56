"""The search finds the best plan there is, and the closed loop never makes it worse."""

import itertools
import math

import numpy as np
import pytest

from delta_dit.calibration import Calibration
from delta_dit.delta_plan import DeltaPlan, Reuse, Reuses
from delta_dit.error_model import NONE, ErrorModel
from delta_dit.frontier import Frontier
from delta_dit.planner import Planner, saved_blocks
from delta_dit.refinement import changes, refine

STEPS, BLOCKS = 4, 3


def calibration(steps: int = STEPS, blocks: int = BLOCKS, seed: int = 0) -> Calibration:
    """Return a made-up model whose Δs drift at random."""
    random = np.random.default_rng(seed)
    drift = random.normal(size=(2, steps, blocks, 8)) * random.uniform(0.2, 2, size=(1, steps, blocks, 1))
    probes = (Reuse(0, blocks), Reuse(0, blocks, 1), Reuse(0, blocks // 2), Reuse(blocks // 2, blocks))
    harm = random.uniform(0.1, 10, size=(steps, 4))
    harm[0], harm[1, 1] = np.nan, np.nan
    levels = tuple(np.linspace(1, 0.05, steps).tolist())
    about = {"model": "made up", "steps": steps, "guidance": 1.0, "seed": 0, "class_labels": [0]}
    return Calibration(drift.cumsum(1).astype(np.float32), harm, probes, levels, 0.2, about)


def every_plan(steps: int, blocks: int) -> list[Reuses]:
    """Return all plans there are; order 1 only where two full steps went before."""
    ranges = itertools.combinations(range(blocks + 1), 2)
    options = [None, *(Reuse(start, stop, order) for start, stop in ranges for order in (0, 1))]
    plans = [(None, *rest) for rest in itertools.product(options, repeat=steps - 1)]
    return [
        plan
        for plan in plans
        if all(reuse is None or reuse.order == 0 or plan[:i].count(None) > 1 for i, reuse in enumerate(plan))
    ]


def saves(plan: Reuses) -> int:
    return sum(reuse.stop - reuse.start for reuse in plan if reuse)


def by_hand(found: Calibration, model: ErrorModel, plan: Reuses) -> list[float]:
    """Return the error of each reuse step, straight from the definition."""
    errors, before, last = [], NONE, 0
    for step, reuse in enumerate(plan):
        if reuse is None:
            before, last = (last if step else NONE), step
            continue
        delta = found.sketches[:, :, reuse.start : reuse.stop].sum(2).astype(np.float64)
        used = delta[:, last]
        if reuse.order:
            used = used + (step - last) / (last - before) * (delta[:, last] - delta[:, before])
        errors.append(model.weights(reuse)[step] * np.square(delta[:, step] - used).sum(1).mean())
    return errors


@pytest.mark.parametrize(
    ("power", "longest_run"), [(1.0, None), (0.5, None), (math.inf, None), (1.0, 1), (math.inf, 2)]
)
def test_frontier_is_brute_force(power: float, longest_run: int | None) -> None:
    found = calibration()
    model = found.errors
    frontier = Frontier(model, power, longest_run)
    best: dict[int, float] = {}
    for plan in every_plan(STEPS, BLOCKS):
        if longest_run is not None and any(all(plan[i : i + longest_run + 1]) for i in range(STEPS - longest_run)):
            continue
        errors = by_hand(found, model, plan)
        total = max(errors, default=0) if power == math.inf else sum(error**power for error in errors)
        best[saves(plan)] = min(total, best.get(saves(plan), math.inf))
    if longest_run is None:
        assert sorted(best) == list(range((STEPS - 1) * BLOCKS + 1))
    else:
        assert frontier.error(max(best) + 1) == math.inf
    for saved, error in best.items():
        assert frontier.error(saved) == pytest.approx(error, rel=1e-5)
        plan = frontier.plan(saved)
        assert saves(plan) == saved
        errors = by_hand(found, model, plan)
        assert (max(errors, default=0) if power == math.inf else sum(e**power for e in errors)) == pytest.approx(
            error, rel=1e-5
        )


def test_predict_is_the_definition() -> None:
    found = calibration(seed=1)
    model = found.errors
    for plan in every_plan(STEPS, BLOCKS)[::97]:
        assert model.predict(plan) == pytest.approx(sum(by_hand(found, model, plan)), rel=1e-5, abs=1e-9)


def test_weights_reproduce_what_was_measured() -> None:
    found = calibration(seed=2)
    model = found.errors
    for column, probe in enumerate(found.probes):
        for step in range(1 + probe.order, STEPS):
            once = tuple(probe if i == step else None for i in range(STEPS))
            assert model.predict(once) == pytest.approx(found.harm[step, column], rel=1e-4)


def test_plans_of_the_frontier_can_be_carried_out() -> None:
    found = calibration(steps=8, blocks=6)
    frontier = Frontier(found.errors)
    for saved in range(frontier.largest + 1):
        plan = DeltaPlan.of(6, frontier.plan(saved), levels=found.levels)
        assert plan.blocks_run() == 8 * 6 - saved
    with pytest.raises(ValueError, match="allowed: 0 to 42"):
        frontier.plan(43)


def test_constant_deltas_cost_nothing() -> None:
    found = calibration()
    constant = Calibration(np.repeat(found.sketches[:, :1], STEPS, 1), found.harm, found.probes, found.levels, 0.2, {})
    assert Frontier(constant.errors).error((STEPS - 1) * BLOCKS) == pytest.approx(0, abs=1e-3)


def test_changes_keep_the_cost() -> None:
    start = Frontier(calibration(steps=6, blocks=4).errors).plan(9)
    near = set(changes(start, 4))
    assert len(near) > 20
    for plan in near:
        assert saves(plan) == 9
        DeltaPlan.of(4, plan)


def test_refine_never_loses_and_keeps_to_its_budget() -> None:
    model = calibration(steps=6, blocks=4).errors
    seen: list[Reuses] = []

    def quality(plan: Reuses) -> float:
        seen.append(plan)
        return -sum(
            step for step, reuse in enumerate(plan) if reuse
        )  # early reuse is best here, whatever the model says

    start = Frontier(model).plan(9)
    best, value = refine(start, quality, model, evaluations=40)
    assert value == quality(best) >= quality(start)
    assert len(set(seen)) <= 41
    assert refine(start, quality, model, evaluations=1000)[1] >= value


def test_fastest_is_where_the_error_crosses() -> None:
    model = calibration(steps=6, blocks=4).errors
    frontier, planner = Frontier(model), Planner(model)
    saved = planner.fastest(-10 * math.log10(frontier.error(10) * 1.0001))
    assert frontier.error(saved) <= frontier.error(10) * 1.0001 and saved >= 10
    assert planner.fastest(1e9) == 0


def test_saved_blocks_rounds_as_the_schedules_do() -> None:
    assert saved_blocks(20, 28, 1.6) == 210
    assert saved_blocks(20, 12, 1.33) == 60
    with pytest.raises(ValueError, match="allowed: 1 to 20"):
        saved_blocks(20, 28, 21)

"""The search finds the best plan there is, and the closed loop never makes it worse."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from delta_dit.delta_plan import DeltaPlan, Reuse, Reuses
from delta_dit.planning.calibration import Calibration
from delta_dit.planning.convergence import Convergence
from delta_dit.planning.error_model import DOUBT, NONE, ErrorModel
from delta_dit.planning.frontier import Frontier
from delta_dit.planning.planner import Planner
from delta_dit.planning.refinement import changes, refine

STEPS, BLOCKS = 4, 3


def calibration(steps: int = STEPS, blocks: int = BLOCKS, seed: int = 0) -> Calibration:
    """Return a made-up model whose Δs drift at random."""
    random = np.random.default_rng(seed)
    drift = random.normal(size=(2, steps, 1 + blocks, 3, 8)) * random.uniform(0.2, 2, size=(1, steps, 1 + blocks, 1, 1))
    drift[:, 0, 0] += 20  # the state is long
    probes = (Reuse(0, blocks), Reuse(0, blocks // 2), Reuse(blocks // 2, blocks))
    harm = random.uniform(0.1, 10, size=(steps, 3))
    harm[0] = np.nan
    levels = tuple(np.linspace(1, 0.05, steps).tolist())
    about = {"model": "made up", "steps": steps, "guidance": 1.0, "seed": 0, "class_labels": [0]}
    return made_up(drift.cumsum(1).astype(np.float32), harm, probes, levels, about)


def made_up(sketches, harm, probes, levels, about) -> Calibration:
    return Calibration(sketches, harm, probes, levels, 0.2, 0.9, Convergence(1.0, 1.0), None, about)


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
    return [float(np.square(error).sum(2).mean()) for error in vectors(found, model, plan, lengthened=False)]


def vectors(found: Calibration, model: ErrorModel, plan: Reuses, *, lengthened: bool) -> list[np.ndarray]:
    """Return each reuse step's error across the state, ``(N, M, K)``, over its length, that with the error or not."""
    errors, before, last = [], NONE, 0
    for step, reuse in enumerate(plan):
        if reuse is None:
            before, last = (last if step else NONE), step
            continue
        sketches = found.sketches.astype(np.float64)
        delta, state = (
            sketches[:, :, 1 + reuse.start : 1 + reuse.stop].sum(2),
            sketches[:, step, : 1 + reuse.stop].sum(1),
        )
        used = delta[:, last]
        if reuse.order:
            used = used + (step - last) / (last - before) * (delta[:, last] - delta[:, before])
        error, length = used - delta[:, step], np.linalg.norm(state, axis=2, keepdims=True)
        along = (error * state).sum(2, keepdims=True) / length
        across = (error - along * state / length) / np.maximum(length + lengthened * along, 0.1 * length)
        errors.append(across * math.sqrt(model.weights(reuse.range)[step]))
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


def test_predict_adds_errors_with_their_directions() -> None:
    found = calibration(seed=1)
    model = found.errors
    for plan in every_plan(STEPS, BLOCKS)[::97]:
        errors = vectors(found, model, plan, lengthened=True)
        added = np.square(sum(errors, np.zeros((2, 3, 8)))).sum(2).mean(1)
        alone = sum(np.square(error).sum(2).mean(1) for error in errors)
        np.testing.assert_allclose(model.predict(plan), added + DOUBT * alone, rtol=1e-4, atol=1e-9)


def test_the_length_of_a_state_is_not_seen() -> None:
    grown = calibration(seed=3).sketches.copy()
    grown[:, 2] = grown[:, 1]
    grown[:, 2, BLOCKS] += 0.2 * grown[:, 2].sum(1)  # the last block adds some of the state itself
    assert np.square(grown[:, 2] - grown[:, 1]).sum() > 100
    model = replace(calibration(), sketches=grown).errors
    model._planes[:] = 0  # weights of 1
    assert model.error((0, BLOCKS), "held")[1, 2] == pytest.approx(0, abs=1e-6)
    assert model.predict((None, None, Reuse(0, BLOCKS), None)).max() < 1e-6


def test_weights_reproduce_what_was_measured() -> None:
    found = calibration(seed=2)
    for column, probe in enumerate(found.probes):
        for step in range(1, STEPS):
            error = found.errors.error(probe.range, "held")[step - 1, step]
            assert error == pytest.approx(found.harm[step, column], rel=1e-4)


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
    constant = made_up(np.repeat(found.sketches[:, :1], STEPS, 1), found.harm, found.probes, found.levels, {})
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

    def predicted(plan: Reuses) -> float:
        return -model.predict(plan).mean()

    best, value = refine(start, quality, predicted, model, evaluations=40)
    assert value == quality(best) >= quality(start)
    assert len(set(seen)) <= 41
    assert refine(start, quality, predicted, model, evaluations=1000)[1] >= value


def test_refine_tries_nothing_that_cannot_be_carried_out() -> None:
    model = calibration(steps=6, blocks=4).errors
    start = Frontier(model).plan(9)
    tried: list[Reuses] = []

    def quality(plan: Reuses) -> float:
        tried.append(plan)
        return 0.0

    full = start.index(None, 1)  # another transformer takes over there, say
    refine(start, quality, lambda plan: -math.inf if plan[full] else 0.0, model, evaluations=1000)
    assert len(tried) > 10 and not any(plan[full] for plan in tried)


def test_fastest_is_where_the_error_crosses() -> None:
    model = calibration(steps=6, blocks=4).errors
    planner = Planner(model)

    def quality(saved: int) -> float:
        return planner.quality(planner.candidates(saved)[0])

    saved = planner.fastest(lambda saved: quality(saved) >= quality(10))
    assert quality(saved) >= quality(10) and saved >= 10
    assert planner.fastest(lambda saved: False) == 0 and planner.fastest(lambda saved: True) == planner.most


def test_a_speedup_saves_what_the_fixed_schedules_save() -> None:
    for steps, blocks, speedup, saved in [(5, 4, 1.6, 8), (6, 4, 1.33, 6)]:
        assert saves(calibration(steps, blocks).plan(speedup=speedup).reuses) == saved
    with pytest.raises(ValueError, match="allowed: 1 to 4"):
        calibration().plan(speedup=5)


@pytest.mark.parametrize("order", [0, 1])
def test_fitted_weights_are_least_squares(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delta_dit.planning.error_model.RIDGE", 0.0)
    found = calibration(steps=6, blocks=4)
    plan = (None, None, Reuse(1, 3, order, (1.0, 0.0)[: 1 + order]), None, Reuse(0, 4), None)
    fitted = found.errors.fit(plan)[2]
    delta, state = found.sketches[:, :, 2:4].sum(2), found.sketches[:, 2, :4].sum(1)
    length = np.linalg.norm(state, axis=2, keepdims=True)
    across = np.eye(8) - (state / length)[..., None] * (state / length)[..., None, :]
    seen = np.einsum("nmkj,ntmj->tnmk", across / length[..., None], delta).reshape(6, -1)
    known = np.stack([seen[1], seen[0]][: 1 + order], 1)
    assert fitted is not None and fitted.weights == pytest.approx(
        np.linalg.lstsq(known, seen[2], rcond=None)[0], rel=1e-3
    )
    assert found.errors.fit(plan)[4] == plan[4]  # what is held stays held


def test_fitted_forecasts_have_the_smallest_error_and_never_lack_a_delta() -> None:
    model = calibration(steps=6, blocks=4).errors
    scaled, held = model.error((0, 4), "scaled"), model.error((0, 4), "held")
    fitted, linear = model.error((0, 4), "fitted"), model.error((0, 4), "linear")
    later = np.triu(np.ones((6, 6), bool), 1)
    assert (scaled[later] <= held[later] * 1.01).all()
    assert (fitted <= linear * 1.01)[~np.isnan(linear)].all()
    first = model.fit((None, Reuse(0, 4, 1, (1.0, 0.0)), None))[1]
    assert first is not None and first.weights is None  # no full step before the last


def test_other_numbers_of_steps_are_the_same_curve() -> None:
    steps = 12
    at = np.linspace(0, 1, steps, endpoint=False)[None, :, None, None]
    smooth = np.concatenate([at**2, at, 1 - at**3, np.ones_like(at)], 3).repeat(3, 2)[..., None, :].astype(np.float32)
    probes = (Reuse(0, 2),)
    harm = np.full((steps, 1), np.nan)
    harm[[1, 6, 11]] = 0.1
    model = ErrorModel(smooth, probes, harm)
    same, finer = model.resampled(steps), model.resampled(2 * steps)
    np.testing.assert_allclose(same.gram((0, 2)), model.gram((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(finer.gram((0, 2))[::2, ::2, ::2], model.gram((0, 2)), rtol=1e-3)
    assert finer.error((0, 2), "held")[10, 12] == pytest.approx(model.error((0, 2), "held")[5, 6] / 4, rel=0.05)


def test_a_budget_chooses_the_number_of_steps_and_is_kept() -> None:
    found = replace(calibration(steps=8, blocks=6), convergence=Convergence(1e3, 1.0))
    plan = found.plan(budget=4)
    assert plan.provenance["target"] == "exact" and plan.steps > 4
    assert 3.5 < plan.cost_steps(found.block_share) <= 4
    same = found.plan(budget=4, target="uncached")
    assert same.steps == 8 and same.cost_steps(found.block_share) <= 4
    assert found.plan(speedup=2, target="exact").reuses == plan.reuses


def test_a_harder_converging_sampler_takes_more_steps() -> None:
    found = calibration(steps=8, blocks=6)
    slow, exact = (replace(found, convergence=Convergence(c, 1.0)) for c in (1e3, 1e-9))
    assert slow.plan(budget=4).steps > exact.plan(budget=4).steps == 4


def test_without_an_exact_image_a_budget_is_for_the_uncached_one() -> None:
    found = replace(calibration(steps=8, blocks=6), convergence=Convergence(math.inf, 0.0))
    assert found.plan(budget=4).provenance["target"] == "uncached"
    with pytest.raises(ValueError, match=r"target='exact' means nothing here.*allowed: uncached"):
        found.plan(budget=4, target="exact")


BAD_GOALS = {
    "budget=0.5": {"budget": 0.5},
    "budget=nan": {"budget": math.nan},
    "budget=1.01": {"budget": 1.01, "target": "uncached"},
    "target='best'": {"budget": 3, "target": "best"},
    "objective='max'": {"speedup": 2, "objective": "max"},
    "target='exact' needs": {"min_psnr": 30, "target": "exact"},
}


@pytest.mark.parametrize("named", BAD_GOALS)
def test_a_goal_that_cannot_be_is_told(named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}.*; allowed: "):
        calibration().plan(**BAD_GOALS[named])

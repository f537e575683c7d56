"""The best plan for a budget: exact on what was calibrated, then tried and improved on the model itself.

From the projections of a :class:`~delta_dit.commands.calibrate.Calibration` follows, for every range R, the Gram matrix of what
it adds at the steps, G_R[s, t] = ⟨D_{R,s}, D_{R,t}⟩ with D_{R,t} = Σ_{l∈R} d_{l,t}. All errors are quadratic forms of
it: of the Δ of step s at step t, ‖D_t − D_s‖², and of the line through those of steps p < s,
‖D_t − (1 + r) D_s + r D_p‖² with r = (t − s)/(s − p). How much the final image minds is a weight w_t, which
also depends on the range and on the order.

Between two full steps nothing is recorded, so what a reuse step costs depends on the last two full steps alone, and a
plan's cost is a sum (or a maximum) over steps: :class:`Frontier` finds the best plan of every price at once, by dynamic
programming over (step, last full step, full step before it, block evaluations saved).

What the sum leaves out is that errors of neighbouring steps go in one direction and that they change the trajectory
itself. :func:`refine` therefore tries the best plans, and small changes of the winner, on real samples.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from delta_dit.commands.calibrate import Calibration
from delta_dit.commands.methods import Method, psnr
from delta_dit.commands.models import Sampler, load_sampler
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Range, Reuse, generic
from frugal_shared.evaluation import chunks

Reuses = tuple[Reuse | None, ...]
"""A plan as one entry per step, None for a full step."""
NOTHING = 1e-12  # squared errors below this are rounding
STARTS = 3  # plans that are refined
BATCH = 24  # images drawn at once
NONE = -1  # "no full step before the last one"


class ErrorModel:
    """What a calibration predicts: the mean squared error that one reuse puts into the final image."""

    def __init__(self, calibration: Calibration) -> None:
        self.steps, self.blocks = calibration.steps, calibration.blocks
        samples, size = calibration.sketches.shape[0], calibration.sketches.shape[3]
        first = np.zeros((samples, self.steps, 1, size), np.float32)
        self._sums = np.concatenate([first, calibration.sketches.cumsum(2)], 2)  # Σ over blocks below l
        self._known: dict[Reuse, np.ndarray] = {}
        self._planes = self._fit_weights(calibration)

    def gram(self, blocks: Range) -> np.ndarray:
        """Return G_R ``(T, T)``, the mean over samples of ⟨D_{R,s}, D_{R,t}⟩."""
        start, stop = blocks
        added = (self._sums[:, :, stop] - self._sums[:, :, start]).swapaxes(0, 1).reshape(self.steps, -1)
        return (added @ added.T).astype(np.float64) / len(self._sums)

    def weights(self, reuse: Reuse) -> np.ndarray:
        """Return w_t ``(T,)``: mean squared error of the final image ÷ squared error of the Δ that is reused."""
        return np.exp(self._planes @ _coordinates(reuse))

    def held(self, blocks: Range) -> np.ndarray:
        """Return the error of Δ_s at t, ``(T, T)`` over [s, t]."""
        gram = self.gram(blocks)
        square = np.diag(gram)
        return self.weights(Reuse(*blocks)) * np.maximum(square[None, :] + square[:, None] - 2 * gram, 0)

    def extrapolated(self, blocks: Range) -> np.ndarray:
        """Return the error of the line through Δ_p and Δ_s at t, ``(T, T, T)`` over [p, s, t]; NaN unless p < s."""
        gram = self.gram(blocks)
        square = np.diag(gram)
        p, s, t = np.ogrid[: self.steps, : self.steps, : self.steps]
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(p < s, (t - s) / (s - p), np.nan)
        error = square[t] + (1 + r) ** 2 * square[s] + r**2 * square[p]
        error = error - 2 * (1 + r) * gram[s, t] + 2 * r * gram[p, t] - 2 * r * (1 + r) * gram[p, s]
        return self.weights(Reuse(*blocks, order=1)) * np.maximum(error, 0)

    def predict(self, reuses: Sequence[Reuse | None], power: float = 1.0) -> float:
        """Return (Σ error^power)^(1/power) over a plan's reuse steps."""
        total, before, last = 0.0, NONE, 0
        for step, reuse in enumerate(reuses):
            if reuse is None:
                before, last = (last if step else NONE), step
            elif reuse.order == 0 or before == NONE:
                total += self._errors(Reuse(*reuse.range))[last, step] ** power
            else:
                total += self._errors(reuse)[before, last, step] ** power
        return float(total ** (1 / power))

    def _errors(self, reuse: Reuse) -> np.ndarray:
        if reuse not in self._known:
            self._known[reuse] = (self.extrapolated if reuse.order else self.held)(reuse.range)
        return self._known[reuse]

    def _fit_weights(self, calibration: Calibration) -> np.ndarray:
        """Return ``(T, 4)``: log w_t as a linear function of the range's ends and the order, through the probes."""
        self._planes = np.zeros((self.steps, 4))  # weights of 1 while errors are all that is asked for
        planes = self._planes.copy()
        for step in range(1, self.steps):
            tried = [(probe, harm) for probe, harm in zip(calibration.probes, calibration.harm[step]) if harm == harm]
            errors = [self._once(probe, step) for probe, _ in tried]
            logs = np.log([max(harm, NOTHING) / max(error, NOTHING) for (_, harm), error in zip(tried, errors)])
            planes[step] = np.linalg.lstsq(np.array([_coordinates(probe) for probe, _ in tried]), logs, rcond=None)[0]
        return planes

    def _once(self, reuse: Reuse, step: int) -> float:
        """Return the error of a single reuse, from the step(s) just before."""
        if reuse.order == 0:
            return float(self.held(reuse.range)[step - 1, step])
        return float(self.extrapolated(reuse.range)[step - 2, step - 1, step])


def _coordinates(reuse: Reuse) -> list[float]:
    return [1.0, reuse.start, reuse.stop, reuse.order]


class Frontier:
    """The cheapest plan for every number of saved block evaluations, exactly.

    V_t[p, s, b] is the least total error of steps 0 … t that end with full steps p < s and have saved b. A full step
    turns (p, s) into (s, t); a reuse step of width w adds the error of the best range and order of that width::

        V_t[s, t, b] = min_p V_{t−1}[p, s, b]
        V_t[p, s, b] = min_w V_{t−1}[p, s, b − w] + error[w, p, s, t]

    Args:
        model: the errors.
        power: errors are raised to this power before they are summed; ``math.inf`` minimises the largest one.
        longest_run: how many steps in a row may reuse; default: any number.
    """

    def __init__(self, model: ErrorModel, power: float = 1.0, longest_run: int | None = None) -> None:
        self.steps, self.blocks = model.steps, model.blocks
        self.largest = (self.steps - 1) * self.blocks
        self._combine: Callable[..., np.ndarray] = np.maximum if power == math.inf else np.add
        self._errors, self._reuses = self._cheapest(model, 1.0 if power == math.inf else power)
        s, t = np.ogrid[: self.steps, : self.steps]
        self._errors[:, :, t - s > (longest_run or self.steps)] = np.inf
        self._run()

    def error(self, saved: int) -> float:
        """Return the total (or largest) error of :meth:`plan`, in the power that is minimised; ∞ if there is none."""
        return float(self._last[:, :, saved].min())

    def plan(self, saved: int) -> Reuses:
        """Return the plan with the least error of all that save exactly ``saved`` block evaluations.

        Raises:
            ValueError: no plan saves as much.
        """
        if not 0 <= saved <= self.largest or self.error(saved) == math.inf:
            raise ValueError(f"no plan saves {saved} block evaluations; allowed: 0 to {self.largest}, or longer runs")
        p, s = np.unravel_index(self._last[:, :, saved].argmin(), self._last.shape[:2])
        reuses: list[Reuse | None] = [None] * self.steps
        for step in range(self.steps - 1, 0, -1):
            if s == step:
                p, s = self._before[step][p - 1, saved], p - 1
            else:
                width = int(self._width[step][p, s, saved])
                reuses[step] = self._reuses[self._chosen[width - 1, p, s, step]]
                saved -= width
        return tuple(reuses)

    def _cheapest(self, model: ErrorModel, power: float) -> tuple[np.ndarray, list[Reuse]]:
        """Return the least error per width, ``(L, 1 + T, T, T)`` over [w − 1, 1 + p, s, t], and what attains it."""
        reuses = [
            Reuse(start, start + width, order)
            for width in range(1, self.blocks + 1)
            for start in range(self.blocks - width + 1)
            for order in (0, 1)
        ]
        shape = (self.blocks, 1 + self.steps, self.steps, self.steps)
        errors = np.full(shape, np.inf, np.float32)
        self._chosen = np.zeros(shape, np.int16)
        for number, reuse in enumerate(reuses):
            best, chosen = errors[reuse.stop - reuse.start - 1], self._chosen[reuse.stop - reuse.start - 1]
            if reuse.order == 0:
                error = np.broadcast_to(model.held(reuse.range) ** power, best.shape)
            else:
                error = np.pad(
                    model.extrapolated(reuse.range) ** power, ((1, 0), (0, 0), (0, 0)), constant_values=np.nan
                )
            better = error < best  # False for NaN
            best[better], chosen[better] = error[better], number
        return errors, reuses

    def _run(self) -> None:
        """Fill V step by step; keep, for going back, the width of each reuse and the p of each full step."""
        values = np.full((1 + self.steps, self.steps, self.largest + 1), np.inf, np.float32)
        values[0, 0, 0] = 0
        self._width: list[np.ndarray] = [np.zeros(0)]
        self._before: list[np.ndarray] = [np.zeros(0)]
        for step in range(1, self.steps):
            known = values[:step, :step]  # 1 + p ≤ s < step
            after = np.full_like(values, np.inf)
            width_of = np.zeros(known.shape, np.int16)
            for width in range(1, self.blocks + 1):
                tried = self._combine(known[..., :-width], self._errors[width - 1, :step, :step, step, None])
                best = after[:step, :step, width:]
                better = tried < best
                best[better], width_of[..., width:][better] = tried[better], width
            after[1 : step + 1, step] = known.min(0)
            self._before.append(known.argmin(0))
            self._width.append(width_of)
            values = after
        self._last = values


def saved_blocks(steps: int, blocks: int, speedup: float) -> int:
    """Return how many block evaluations a speed-up has to save, rounded as the fixed schedules round it.

    Raises:
        ValueError: no plan is as fast as that.
    """
    if not 1 <= speedup <= steps:
        raise ValueError(f"speedup={speedup!r} is not possible; allowed: 1 to {steps}, the largest at {steps} steps")
    return round(steps * blocks * (1 - 1 / speedup))


def refine(
    start: Reuses, quality: Callable[[Reuses], float], model: ErrorModel, evaluations: int
) -> tuple[Reuses, float]:
    """Improve a plan by small changes that keep its cost, each tried on the model itself.

    The first change that helps is kept. What a calibration misjudges comes first, that is which steps extrapolate; the
    rest in the order in which it likes them, as long as no run of reuse becomes longer than the longest.

    Args:
        start: the plan.
        quality: what to maximise, e.g. the mean PSNR to the uncached images.
        model: ranks the changes.
        evaluations: how many plans may be tried.

    Returns:
        The plan and its quality.
    """
    best, best_quality, run = start, quality(start), longest_run(start)
    tried = {start}
    while len(tried) <= evaluations:
        near = {plan for plan in changes(best, model.blocks) if longest_run(plan) <= run}
        flips = set(_flipped(best))
        fresh = sorted(near - tried, key=lambda plan: (plan not in flips, model.predict(plan, power=0.5)))
        for plan in fresh[: evaluations + 1 - len(tried)]:
            tried.add(plan)
            if (value := quality(plan)) > best_quality:
                best, best_quality = plan, value
                break
        else:
            break
    return best, best_quality


def longest_run(plan: Reuses) -> int:
    """Return how many steps in a row reuse, at most."""
    return max(sum(1 for _ in group) * reuses for reuses, group in itertools.groupby(map(bool, plan)))


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
        room = blocks if second is None else blocks - _width(second)
        most = min(_width(first), room)
        for width in {*(2**k for k in range(most.bit_length()) if 2**k <= most), most} - {0}:
            for less in _resized(first, _width(first) - width, blocks):
                for more in _resized(second or Reuse(0, blocks, first.order), blocks - room + width, blocks):
                    yield _with(plan, {i: less, j: more})
    for i, reuse in enumerate(plan):
        if reuse is None:
            continue
        for start in range(blocks - _width(reuse) + 1):
            yield _with(plan, {i: Reuse(start, start + _width(reuse), reuse.order)})


def _flipped(plan: Reuses) -> Iterator[Reuses]:
    for i, reuse in enumerate(plan):
        if reuse is not None:
            yield _with(plan, {i: Reuse(*reuse.range, 1 - reuse.order)})


def _resized(reuse: Reuse, width: int, blocks: int) -> Iterator[Reuse | None]:
    """Yield a reuse of another width that shares its front end or its rear end; None for no width at all."""
    if width == 0:
        yield None
        return
    for start in {min(reuse.start, blocks - width), max(reuse.stop - width, 0)}:
        yield Reuse(start, start + width, reuse.order)


def _with(plan: Reuses, changed: dict[int, Reuse | None]) -> Reuses:
    return tuple(changed.get(step, reuse) for step, reuse in enumerate(plan))


def _width(reuse: Reuse) -> int:
    return reuse.stop - reuse.start


def reuses_of(plan: DeltaPlan) -> Reuses:
    """Return a plan as one entry per step, None for a full step."""
    return tuple(action if isinstance(action, Reuse) else None for action in plan.actions)


class Candidates:
    """The plans that the calibration thinks best, by several measures of best.

    Errors add like random directions (power 1), like one direction (power ½), or the worst one decides (``math.inf``).
    What is reused in long runs was measured on a trajectory that the run itself leaves: shorter runs may do better.
    """

    POWERS = (1.0, 0.5, math.inf)
    RUNS = (None, 3, 2, 1)

    def __init__(self, model: ErrorModel) -> None:
        self.model = model
        self._frontiers: dict[tuple[float, int | None], Frontier] = {}

    def at(self, saved: int) -> list[Reuses]:
        """Return the candidates that save this many block evaluations, each once; also the generic plan."""
        steps, blocks = self.model.steps, self.model.blocks
        frontiers = [self._frontier(power, run) for run in self.RUNS for power in self.POWERS]
        plans = [frontier.plan(saved) for frontier in frontiers if frontier.error(saved) < math.inf]
        uncalibrated = generic(steps, blocks, steps * blocks / (steps * blocks - saved))
        return list(dict.fromkeys([*plans, reuses_of(uncalibrated)]))

    def best(self, saved: int, trial: "Trial | None") -> Reuses:
        """Return the best candidate: by trial, or as the calibration has it."""
        return max(self.at(saved), key=trial) if trial else self._frontier(1.0, None).plan(saved)

    def refined(self, saved: int, trial: "Trial", evaluations: int) -> Reuses:
        """Return the best plan that :func:`refine` reaches from the best candidate of each longest run."""
        starts: dict[int, Reuses] = {}
        for plan in sorted(self.at(saved), key=trial):
            starts[longest_run(plan)] = plan
        best = sorted(starts.values(), key=trial)[-STARTS:]
        return max((refine(plan, trial, self.model, evaluations // len(best))[0] for plan in best), key=trial)

    def fastest(self, psnr_db: float, trial: "Trial | None") -> int:
        """Return the largest saving at which the best candidate has at least this PSNR, by bisection."""

        def good(saved: int) -> bool:
            if trial is None:
                return self._frontier(1.0, None).error(saved) <= 10 ** (-psnr_db / 10)
            return trial(self.best(saved, trial)) >= psnr_db

        low, high = 0, (self.model.steps - 1) * self.model.blocks
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if good(middle) else (low, middle - 1)
        return low

    def _frontier(self, power: float, longest_run: int | None) -> Frontier:
        if (power, longest_run) not in self._frontiers:
            self._frontiers[power, longest_run] = Frontier(self.model, power, longest_run)
        return self._frontiers[power, longest_run]


class Trial:
    """Tries plans on the model itself: other noise than the calibration's, the same conditions.

    Args:
        calibration: of the model to try on.
        samples: images per plan.
        sampler: default: the calibration's model, loaded by its name.
    """

    def __init__(self, calibration: Calibration, samples: int, sampler: Sampler | None = None) -> None:
        about = calibration.about
        sampler = load_sampler(about["model"]) if sampler is None else sampler
        conditions = about[sampler.argument]
        self.sampler = replace(sampler, conditions=conditions, steps=about["steps"], guidance=about["guidance"])
        self.calibration, self.samples, self.seed = calibration, samples, about["seed"] + 1
        self.known: dict[Reuses, float] = {}
        self._reference = self._draw(None)

    def __call__(self, reuses: Reuses) -> float:
        """Return the mean PSNR of the images in dB to the uncached ones."""
        if reuses not in self.known:
            plan = DeltaPlan.of(self.calibration.blocks, reuses, levels=self.calibration.levels)
            self.known[reuses] = psnr(self._draw(DeltaCacheConfig(plan=plan)), self._reference).mean().item()
        return self.known[reuses]

    def _draw(self, cache: DeltaCacheConfig | None) -> Tensor:
        batches = chunks(self.samples, BATCH, 0, 1)
        with Method("trial", self.sampler.steps, cache).on(self.sampler):
            return torch.cat([self.sampler.draw(self.seed, batch) for batch in batches])

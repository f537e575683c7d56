"""The calibration: measured once per model, what reusing any Δ at any step would cost.

Three measurements, on a few samples of the uncached model:

* **How wrong a reused Δ is.** Block l changes its input by d_{l,t} at step t. Reusing the range R from step s at step t
  puts Σ_{l∈R} (d_{l,s} − d_{l,t}) in the wrong. One uncached run keeps random projections of some tokens' states and of
  every d_{l,t}; sums and inner products of projections are, on average, those of what was projected, so this one run
  knows the error of *every* range, reused from *every* step, by *every* forecast, at *every* step, as the norm that
  comes next sees it (:mod:`delta_dit.planning.error_model`).
* **How much the final image minds.** A wrong Δ at one step costs the image 25 dB more than the same at another. A few
  ranges are reused once, at some of the steps, and the error of the final image is measured. Such a run begins where it
  differs (:mod:`delta_dit.planning.replay`).
* **What the number of steps costs.** Runs of half and of twice the steps tell how the distance to the exact solution
  falls with it; so a plan of more steps that reuses more can be compared with one of fewer.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from delta_dit.attach import led_transformers, uncached
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.identity import KEY, identity
from delta_dit.moved_steps import Spacing
from delta_dit.planning.convergence import Convergence
from delta_dit.planning.draws import Draws, drawn_from, finite
from delta_dit.planning.error_model import ErrorModel
from delta_dit.planning.fidelity import psnr
from delta_dit.planning.goal import REFERENCE, Goal
from delta_dit.planning.macs import counting
from delta_dit.planning.objective import Objective, Target
from delta_dit.planning.recorder import recording
from delta_dit.planning.replay import Outputs
from delta_dit.planning.trial import Trial
from delta_dit.writing import write_bytes

SCHEMA = 4
ENTRY = "calibration"  # one entry, because safetensors writes several in an order that changes from run to run
PROBE_SHARE = 4
"""One in so many samples is drawn for the probes: a PSNR needs fewer than a Δ's direction, and many more runs."""
PROBED_STEPS = 6
"""At how many steps the probes are tried; between them the weights are interpolated."""
SHARES = (0.0, 0.4, 0.6, 0.8, 1.0)
"""Of the steps that are evenly spaced in λ, what is tried."""

Probe = tuple[int, Reuse]
"""One reuse, at one step."""


@dataclass(frozen=True)
class Calibration:
    """What was measured of one model, scheduler, number of steps and guidance.

    Args:
        sketches: ``(N, T, 1 + L, M, K)``, for each sample the projections of M tokens (of all its branches of
            guidance): of the state before the first block, and of each d_{l,t}.
        harm: ``(T, C)``, mean squared error of the final image, in [0, 1]², where step t alone is probe c, from the
            step before; geometric mean over samples, as of a mean PSNR. NaN where it was not tried.
        probes: the C ways to reuse that were tried.
        levels: noise level of each step in [0, 1], 1 = pure noise.
        power: mean square of the final images.
        block_share: share of a step's multiply-accumulates that is in the blocks.
        convergence: how the uncached images come nearer to the exact ones with the number of steps.
        spacing: where the steps lie; None where the scheduler has them.
        starts: steps but the first at which another transformer takes over, which has nothing there to reuse: two may
            share a run. A plan then says of each step what whichever runs there reuses.
        about: model, scheduler, guidance, seed, samples and conditions: the provenance of plans made from this.
    """

    sketches: np.ndarray
    harm: np.ndarray
    probes: tuple[Reuse, ...]
    levels: tuple[float, ...]
    power: float
    block_share: float
    convergence: Convergence
    spacing: Spacing | None
    about: dict[str, Any]
    starts: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """T."""
        return self.sketches.shape[1]

    @property
    def blocks(self) -> int:
        """L."""
        return self.sketches.shape[2] - 1

    @cached_property
    def errors(self) -> ErrorModel:
        """What this knows of every reuse."""
        return ErrorModel(self.sketches, self.probes, self.harm, self.starts)

    def plan(
        self,
        *,
        speedup: float | None = None,
        budget: float | None = None,
        min_psnr: float | None = None,
        max_error: float | None = None,
        target: Target | None = None,
        objective: Objective = "mean",
        trial: Trial | None = None,
        evaluations: int = 40,
    ) -> DeltaPlan:
        """Return the best plan at a cost, or the fastest that is good enough: one of the first four is given.

        Args:
            speedup: how many times fewer block evaluations than of the uncached run of T steps.
            budget: what the run may cost, in full steps, multiply-accumulates outside the blocks included.
            min_psnr: the PSNR in dB that the images shall have to the uncached ones of T steps.
            max_error: by how much the images may differ: root mean square ÷ that of the images.
            target: what the images shall be: ``"uncached"``, those of the same run without a cache, so the plan has T
                steps; or ``"exact"``, those of very many steps, and the plan has as many as come nearest to it.
                Default: exact for a budget, where there is one (:class:`~delta_dit.planning.convergence.Convergence`).
            objective: what counts, over the samples: the ``"mean"`` PSNR, that of the ``"worst"``, or the ``"median"``.
            trial: tries plans on the model itself, which takes minutes and finds better ones; default: predictions.
            evaluations: how many plans the trial may try.

        Raises:
            ValueError: not one of them is given, no plan is as cheap as that, or there is nothing exact.
        """
        wanted = {"speedup": speedup, "budget": budget, "min_psnr": min_psnr, "max_error": max_error}
        if len([value for value in wanted.values() if value is not None]) != 1:
            given = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
            raise ValueError(f"{given}; allowed: one of them")
        goal = Goal(self, target or self._target(budget), objective, trial, evaluations)
        if max_error is not None:
            min_psnr = -10 * math.log10(max_error**2 * self.power)
        if min_psnr is not None:
            return goal.good_enough(min_psnr)
        return goal.at_speedup(speedup) if speedup is not None else goal.at_budget(budget or 0.0)

    def _target(self, budget: float | None) -> Target:
        return "exact" if budget is not None and self.convergence.exists else "uncached"

    def save(self, path: str | Path) -> None:
        """Write one file: whole, or not at all."""
        probes = [(probe.start, probe.stop, probe.order) for probe in self.probes]
        facts = {"probes": probes, "levels": self.levels, "power": self.power, "about": self.about}
        spacing = None if self.spacing is None else [self.spacing.argument, self.spacing.share, self.spacing.quantiles]
        facts |= {"block_share": self.block_share, "convergence": list(self.convergence), "spacing": spacing}
        facts |= {"starts": self.starts} if self.starts else {}
        arrays = {"sketches": self.sketches, "harm": self.harm}
        entry = {"schema": SCHEMA, "facts": facts, "sha256": _digest(facts, arrays)}
        write_bytes(Path(path), save(arrays, {ENTRY: json.dumps(entry)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: there is no calibration, a damaged one, or not one of this schema.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                entry = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
                if entry.get("schema") != SCHEMA:
                    raise ValueError(f"it has schema {entry.get('schema')}, not {SCHEMA}")
                arrays = {name: file.get_tensor(name) for name in ("sketches", "harm")}
            facts = entry["facts"]
            if arrays["sketches"].ndim != 5:
                raise ValueError(f"its sketches have {arrays['sketches'].ndim} axes, not 5")
            if entry["sha256"] != _digest(facts, arrays):
                raise ValueError("it was changed")
            told = {name: facts[name] for name in ("power", "block_share", "about")}
            told |= {"probes": tuple(Reuse(*probe) for probe in facts["probes"]), "levels": tuple(facts["levels"])}
            told["starts"] = tuple(facts.get("starts", ()))
            argument, share, quantiles = facts["spacing"] or (None, 0.0, ())
            spacing = None if argument is None else Spacing(argument, share, tuple(quantiles))
            return cls(**arrays, **told, convergence=Convergence(*facts["convergence"]), spacing=spacing)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"calibration={str(path)!r} cannot be read ({error}); allowed: a file that Calibration.save wrote, "
                "such as calibration.safetensors in the run folder of delta-dit calibrate"
            ) from error


def calibrate(
    pipe: Any,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    steps: int = 20,
    seed: int = 1000,
    move_steps: bool = False,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Calibration:
    """Measure what reusing each range of blocks at each step would cost a pipeline; it is the same afterwards.

    The pipeline draws as it is set up: on its device, in its dtype, with its scheduler and adapters. It costs as
    much as drawing :func:`generations` samples.

    Args:
        pipe: a diffusers pipeline; one of two transformers gets one calibration, and one plan that spans both.
        inputs: what the pipeline is called with, a mapping for each call; a call may draw several images. Of videos the
            latents are compared; ``"output_type": "pt"`` among the inputs compares pixels.
        prompts: instead of ``inputs``, a text for each call.
        steps: sampling steps T, 2 or more.
        seed: of the noise; call i takes ``seed + i``.
        move_steps: first find where the steps should lie (:mod:`delta_dit.moved_steps`), and measure there; plans made
            from it have steps of their own.
        progress: wraps the list of the measuring runs, e.g. ``tqdm.tqdm``.

    Returns:
        The measurement; its :meth:`Calibration.plan` finds plans.

    Raises:
        ValueError: inputs and prompts are both given, or none of them; too few steps; a pipeline that does not fit, or
            one that draws infinite numbers.
    """
    draws = drawn_from(pipe, inputs, prompts, seed)
    if steps < 2:
        raise ValueError(f"steps={steps!r} leaves nothing to reuse; allowed: 2 or more")
    probed = draws.first(draws.batches[: probe_count(len(draws.batches))])
    if move_steps:
        draws.spacing = probed.spacing = best_spacing(probed, steps)
    about = {"pipeline": type(pipe).__name__, "seed": seed, "calls": len(draws.batches)}
    return measure(draws, probed, steps, about=about, progress=progress)


def measure(
    draws: Draws,
    probed: Draws,
    steps: int,
    *,
    about: Mapping[str, Any],
    progress: Callable[[list[Probe]], Iterable[Probe]] = iter,
) -> Calibration:
    """Return what one pipeline's blocks do, and how much its images mind: :func:`calibrate` for any way to draw.

    Args:
        draws: the samples.
        probed: the first of them, which the probes are drawn for.
        steps: T.
        about: the provenance of plans that will be made from this, as plain JSON.
        progress: wraps the list of the probes.
    """
    run = draws.noted("recorded", lambda: record(draws, steps))
    images, sketches = run["images"], run["sketches"].numpy()
    levels, starts = tuple(run["levels"]), tuple(run["starts"])
    draws.evaluations += steps * len(images)
    calls, blocks = sketches.shape[1], sketches.shape[2] - 1
    if draws.spacing is not None and (starts or calls != steps):
        raise ValueError("move_steps=True needs one transformer and one call in each step; allowed: move_steps=False")

    def planned(reuses: Sequence[Reuse | None], outputs: Sequence[Outputs] = (), first: int = 0) -> Any:
        plan = probed.plan(blocks, reuses, levels=levels)
        return probed.planned(plan, steps, outputs, first)

    def harm_of(step: int, probe: Reuse) -> float:
        once, begin = [probe if i == step else None for i in range(calls)], step - 1
        found = probed.noted(f"{probe} at step {step}", lambda: mean_error(planned(once, outputs, begin)[0], plain))
        probed.count(probed.plan(blocks, once), len(plain), begin)
        return found

    plain, outputs = planned([None] * calls)  # not noted: the probes begin with these outputs
    probes = probes_of(blocks)
    harm = np.full((calls, len(probes)), np.nan)
    for step, probe in progress([(step, probe) for probe in probes for step in probed_steps(calls, starts)]):
        harm[step, probes.index(probe)] = harm_of(step, probe)
    with counting(draws.pipe) as count:
        planned([None] * calls, outputs, calls - 1)

    twice = probed.images(2 * steps)
    half = mean_error(probed.images(-(-steps // 2)), twice)
    cost = {"steps": steps, "generations": round((draws.evaluations + probed.evaluations) / steps, 1)}
    return Calibration(
        sketches,
        harm,
        probes,
        levels,
        power=images.square().mean().item(),
        block_share=round(count.block_share, 4),
        convergence=Convergence.of(steps, half, mean_error(plain, twice)),
        spacing=draws.spacing,
        about={**about, **origin(draws.pipe), **cost},
        starts=starts,
    )


def record(draws: Draws, steps: int) -> dict[str, Any]:
    """Draw all samples, and return them and what the blocks did: images, sketches, levels, starts."""
    with uncached(draws.pipe), recording(draws.pipe) as recorder, draws.spaced(steps):
        drawn, sketches, steps_of = [], [], []
        for batch in draws.batches:
            images = draws.draw(batch, steps)
            drawn.append((batch, images))
            sketches.append((batch, recorder.take(len(images))))
            begins = [float(step in recorder.starts) for step in range(len(recorder.levels))]
            steps_of.append((batch, torch.tensor([[recorder.levels, begins]], dtype=torch.float64)))
    levels, begins = draws.gather(steps_of)[0].tolist()
    return {
        "images": finite(draws.gather(drawn), draws.pipe),
        "sketches": draws.gather(sketches),
        "levels": levels,
        "starts": [step for step, begun in enumerate(begins) if begun],
    }


def origin(pipe: Any) -> dict[str, Any]:
    """Return which model and which scheduler a pipeline has, for a provenance."""
    transformers = led_transformers(pipe)
    return {
        "transformer": type(transformers[0]).__name__,
        KEY: sorted({identity(transformer) for transformer in transformers}),
        "scheduler": type(pipe.scheduler).__name__,
    }


def mean_error(images: Tensor, reference: Tensor) -> float:
    """Return the geometric mean over samples of the mean squared error, as of a mean PSNR."""
    return 10 ** (-psnr(images, reference).mean().item() / 10)


def best_spacing(draws: Draws, steps: int) -> Spacing:
    """Return where the steps of a run should lie to come nearest to the exact images, by trying a few mixtures.

    Raises:
        ValueError: the scheduler takes no steps from outside.
    """
    exact = draws.images(REFERENCE * steps, spaced=False)
    tried: list[tuple[float, Spacing]] = []
    for share in SHARES:
        draws.spacing = Spacing.of(draws.pipe.scheduler, share)
        tried.append((mean_error(draws.images(steps), exact), draws.spacing))
    return min(tried, key=lambda pair: pair[0])[1]


def generations(samples: int, steps: int, *, move_steps: bool = False) -> float:
    """Return what a calibration costs, in samples drawn uncached in so many steps."""
    probed = probe_count(samples)
    probes = [
        (steps - step) / steps for step in probed_steps(steps)
    ]  # a run begins a full step before, and saves most of one
    once = 3.5 + len(probes_of(12)) * sum(probes) + (REFERENCE + len(SHARES)) * move_steps
    return samples + probed * once


def probe_count(samples: int) -> int:
    """Return how many of so many samples are drawn for the probes."""
    return -(-samples // PROBE_SHARE)


def probed_steps(steps: int, starts: Sequence[int] = ()) -> list[int]:
    """Return the steps that the probes are tried at: the second, the last, and some between.

    Raises:
        ValueError: at every step a transformer starts.
    """
    wanted = {round(step) for step in np.linspace(1, steps - 1, min(PROBED_STEPS, steps - 1))}
    found = {step + (step in starts) for step in wanted} - {steps, *starts}
    if not found:
        raise ValueError(f"steps={steps!r} leaves nothing to reuse; allowed: more, so that each transformer has two")
    return sorted(found)


def probes_of(blocks: int) -> tuple[Reuse, ...]:
    """Return what is tried: all blocks, the front half, the rear half."""
    half = (blocks + 1) // 2
    return tuple(dict.fromkeys([Reuse(0, blocks), Reuse(0, half), Reuse(blocks - half, blocks)]))


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([facts, shapes]).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()

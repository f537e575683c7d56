"""``delta-dit plan``: a plan as JSON or as a table, from a fixed schedule or from a calibration.

A fixed schedule is arithmetic and must not wait for torch: what a calibration needs is imported where it is needed.
"""

import json
import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from delta_dit import delta_plan as plans
from delta_dit.commands.options import PlanConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Full

if TYPE_CHECKING:
    from delta_dit.commands.calibrate import Calibration
    from delta_dit.planner import Reuses, Trial

DEFAULT_SPEEDUP = 1.6


def plan_command(config: PlanConfig) -> None:
    """Make the plan, and write or print it."""
    plan = fixed(config) if config.calibration is None else calibrated(config)
    if config.json is None:
        show(plan)
    else:
        plans.write_text(config.json, json.dumps(plan.to_json() | schedule_facts(config), indent=1) + "\n")


def fixed(config: PlanConfig) -> DeltaPlan:
    """Return the plan of a fixed schedule.

    Raises:
        ValueError: no schedule is as fast as that.
    """
    cache = DeltaCacheConfig(speedup=config.speedup or DEFAULT_SPEEDUP, schedule=config.schedule)
    return cache.plan_for(config.steps, config.blocks)


def schedule_facts(config: PlanConfig) -> dict[str, int | None]:
    """Return N and N_c of a schedule that has them."""
    if config.calibration is not None or config.schedule == "generic":
        return {"interval": None, "cached_blocks": None}
    interval, cached = plans.for_speedup(config.steps, config.blocks, config.speedup or DEFAULT_SPEEDUP)
    return {"interval": interval, "cached_blocks": cached}


def calibrated(config: PlanConfig) -> DeltaPlan:
    """Return the best plan that a calibration allows.

    Raises:
        UsageError: no plan is as fast, or as faithful, as that.
    """
    from delta_dit.commands.calibrate import Calibration
    from delta_dit.planner import Candidates, ErrorModel, Trial, saved_blocks

    assert config.calibration is not None
    calibration = Calibration.load(config.calibration)
    model = ErrorModel(calibration)
    candidates = Candidates(model)
    trial = Trial(calibration, config.samples) if config.refine else None
    wanted = wanted_psnr(config, calibration)
    if wanted is None:
        saved = saved_blocks(model.steps, model.blocks, config.speedup or DEFAULT_SPEEDUP)
    else:
        saved = candidates.fastest(wanted, trial)
    if trial is None or not saved:
        reuses = candidates.best(saved, trial)
    else:
        reuses = candidates.refined(saved, trial, config.evaluations)
    provenance = calibration.about | promise(reuses, model.predict(reuses), trial)
    return DeltaPlan.of(calibration.blocks, reuses, levels=calibration.levels, provenance=provenance)


def wanted_psnr(config: PlanConfig, calibration: "Calibration") -> float | None:
    """Return the PSNR in dB that is asked for, directly or as an error; None where a speed-up is."""
    if config.max_error is not None:
        return -10 * math.log10(config.max_error**2 * calibration.power)
    return config.min_psnr


def promise(reuses: "Reuses", error: float, trial: "Trial | None") -> dict[str, Any]:
    """Return the provenance's account of how good the plan is, and how that is known."""
    predicted = -10 * math.log10(error) if error > 0 else None
    if trial is None:
        return {"predicted_psnr_db": predicted}
    return {
        "predicted_psnr_db": predicted,
        "psnr_db": trial(reuses),
        "psnr_samples": trial.samples,
        "psnr_seed": trial.seed,
        "plans_tried": len(trial.known),
    }


def show(plan: DeltaPlan) -> None:
    """Print a plan as a table."""
    cost = f"{plan.blocks_run()} of {plan.steps * plan.blocks} block evaluations"
    table = Table(title=f"{plan.mac_speedup():.3f}× fewer: {cost}")
    for heading in ("step", "noise level", "action", "blocks reused", "order of Δ"):
        table.add_column(heading, justify="right")
    for step, action in enumerate(plan.actions):
        level = "" if plan.levels is None else f"{plan.levels[step]:.3f}"
        if isinstance(action, Full):
            table.add_row(str(step), level, "full", "", "")
        else:
            table.add_row(str(step), level, "reuse", f"{action.start} to {action.stop - 1}", str(action.order))
    Console().print(table)

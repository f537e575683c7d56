"""``delta-dit plan``: a plan as JSON or as a table, from a fixed schedule or from a calibration.

A fixed schedule is arithmetic and must not wait for torch: what a calibration needs is imported where it is needed.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from delta_dit.commands.options import PlanConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Full
from delta_dit.schedules import for_speedup
from frugal_shared.config import ProcessConfig
from frugal_shared.errors import UsageError
from frugal_shared.writing import write_json

if TYPE_CHECKING:
    from delta_dit.calibration import Calibration
    from delta_dit.trial import Trial

DEFAULT_SPEEDUP = 1.6
BATCH = 24  # images drawn at once


def main(config: PlanConfig) -> None:
    """Make the plan, and write or print it."""
    plan = fixed(config) if config.calibration is None else calibrated(config, config.calibration)
    if config.json is None:
        print_plan(plan)
    else:
        write_json(config.json, plan.to_json() | schedule_facts(config))


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
    interval, cached = for_speedup(config.steps, config.blocks, config.speedup or DEFAULT_SPEEDUP)
    return {"interval": interval, "cached_blocks": cached}


def calibrated(config: PlanConfig, path: Path) -> DeltaPlan:
    """Return the best plan that a calibration allows.

    Args:
        config: the options.
        path: the calibration's file, or the run folder of `calibrate`.

    Raises:
        ValueError: no plan is as fast, or as faithful, as that; or it is no calibration.
    """
    from delta_dit.calibration import Calibration
    from delta_dit.commands.calibrate import FILE

    found = Calibration.load(path if path.is_file() else path / FILE)
    costs = ("speedup", "budget", "min_psnr", "max_error")
    wanted: dict[str, Any] = {name: getattr(config, name) for name in costs}
    if set(wanted.values()) == {None}:
        wanted["speedup"] = DEFAULT_SPEEDUP
    wanted |= {"target": config.target, "objective": config.objective}
    if not config.refine:
        return found.plan(**wanted)
    trial = trial_of(found, config)
    Console(stderr=True).print(f"plan: tries at most {config.evaluations} plans, each on {config.samples} images")
    plan = found.plan(**wanted, trial=trial, evaluations=config.evaluations)
    return replace(plan, provenance=plan.provenance | {"psnr_seed": found.about["seed"] + 1})


def trial_of(calibration: "Calibration", config: PlanConfig) -> "Trial":
    """Return what tries plans on the calibration's model: the same conditions, other noise.

    Raises:
        UsageError: the calibration was not made by the command, and does not say what it drew.
    """
    from accelerate import Accelerator

    from delta_dit.commands.calibrate import drawing
    from delta_dit.commands.models import load_sampler
    from delta_dit.trial import Trial
    from frugal_shared.evaluation import chunks
    from frugal_shared.launch import use_device

    about = calibration.about
    if "model" not in about:
        raise UsageError(f"calibration={str(config.calibration)!r} names no model to draw with; allowed: --no-refine")
    sampler = load_sampler(about["model"], dtype=config.dtype)
    drawn = {"conditions": about[sampler.argument], "steps": about["steps"], "guidance": about["guidance"]}
    sampler = replace(sampler, **drawn)
    with use_device(ProcessConfig(device=config.device)):
        sampler.pipe.to(Accelerator().device)
    batches = list(chunks(config.samples, BATCH, 0, 1))
    return Trial.of(drawing(sampler, about["seed"] + 1, batches), config.reference_steps)


def print_plan(plan: DeltaPlan) -> None:
    """Print a plan as a table."""
    cost = f"{plan.blocks_run()} of {plan.steps * plan.blocks} block evaluations"
    table = Table(title=f"{plan.mac_speedup():.3f}× fewer: {cost}")
    for heading in ("step", "noise level", "action", "blocks reused", "forecast of Δ"):
        table.add_column(heading, justify="right")
    for step, action in enumerate(plan.actions):
        level = "" if plan.levels is None else f"{plan.levels[step]:.3f}"
        if isinstance(action, Full):
            table.add_row(str(step), level, "full", "", "")
        else:
            table.add_row(str(step), level, "reuse", f"{action.start} to {action.stop - 1}", action.forecast)
    Console().print(table)

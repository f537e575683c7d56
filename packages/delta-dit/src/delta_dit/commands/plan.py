"""``delta-dit plan``: a plan as JSON or as a table, from a fixed schedule or from a calibration.

A fixed schedule is arithmetic and must not wait for torch: what a calibration needs is imported where it is needed.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from delta_dit.commands.options import PlanConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Full
from delta_dit.schedules import for_speedup
from frugal_shared.errors import UsageError
from frugal_shared.writing import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from delta_dit.commands.models import Sampler
    from delta_dit.planning.calibration import Calibration
    from delta_dit.planning.draws import Notes
    from delta_dit.planning.trial import Trial

DEFAULT_SPEEDUP = 1.6
FILE = "plan.json"  # in a run folder


def main(config: PlanConfig) -> None:
    """Make the plan, and write or print it."""
    if config.calibration is None:
        tell(config, fixed(config))
    elif not config.tries:
        tell(config, load(config.calibration).plan(**wanted(config)))
    else:
        tried(config, config.calibration)


def tell(config: PlanConfig, plan: DeltaPlan) -> None:
    """Write a plan, or print it."""
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


def load(path: Path) -> "Calibration":
    """Return a calibration, of its file or of the run folder of `calibrate`.

    Raises:
        ValueError: there is none.
    """
    from delta_dit.planning.calibration import Calibration

    return Calibration.load(file_of(path))


def file_of(path: Path) -> Path:
    """Return the file of a calibration that may be named by its folder."""
    from delta_dit.commands.calibrate import FILE

    return path if path.is_file() else path / FILE


def wanted(config: PlanConfig) -> dict[str, Any]:
    """Return what the plan is to be like."""
    costs = {name: getattr(config, name) for name in ("speedup", "budget", "min_psnr", "max_error")}
    if set(costs.values()) == {None}:
        costs["speedup"] = DEFAULT_SPEEDUP
    return costs | {"target": config.target, "objective": config.objective}


def tried(config: PlanConfig, path: Path) -> None:
    """Try plans on the calibration's model; write or print the best one.

    Raises:
        ValueError: no plan is as fast, or as faithful, as that; or it is no calibration.
        UsageError: the calibration was not made by the command, and does not say what it drew.
    """
    from delta_dit.commands.notes import KeptNotes
    from frugal_shared.run import Run

    found = load(path)
    sampler = sampler_of(found, config)
    with ExitStack() as held:
        if config.output_dir is None:
            run, notes, accelerator = None, {}, alone(config)
        else:
            run = held.enter_context(Run(config, "delta-dit"))
            digest = hashlib.sha256(file_of(path).read_bytes()).hexdigest()
            notes, accelerator = KeptNotes(run, digest), run.accelerator
        seed = found.about["seed"] + 1 + config.seed
        trial = trial_of(sampler, seed, config, accelerator, notes)
        if accelerator.is_main_process:
            Console(stderr=True).print(
                f"plan: tries at most {config.evaluations} plans, each on {config.samples} images"
            )
        plan = found.plan(**wanted(config), trial=trial, evaluations=config.evaluations)
        plan = replace(plan, provenance=plan.provenance | {"psnr_seed": seed})
        if accelerator.is_main_process:
            if run is not None:
                plan.save(run.folder / FILE)
            tell(config, plan)
        if run is not None:
            told = ("psnr_db", "predicted_psnr_db", "plans_tried", "generations")
            costs = {
                "steps": plan.steps,
                "mac_speedup": plan.mac_speedup(),
                "cost_steps": plan.cost_steps(found.block_share),
            }
            run.finish(costs | {name: plan.provenance[name] for name in told})


def alone(config: PlanConfig) -> "Accelerator":
    """Return the processes of a run without a folder."""
    from accelerate import Accelerator

    from frugal_shared.launch import check_launcher, check_world

    check_launcher("no")
    accelerator = Accelerator(cpu=config.on_cpu)
    check_world(accelerator.num_processes)
    return accelerator


def sampler_of(found: "Calibration", config: PlanConfig) -> "Sampler":
    """Return the calibration's model, which draws what it was calibrated on.

    Raises:
        UsageError: the calibration was not made by the command, and does not say what it drew.
    """
    from delta_dit.commands.models import load_sampler

    about = found.about
    if "model" not in about:
        raise UsageError(f"calibration={str(config.calibration)!r} names no model to draw with; allowed: --no-refine")
    sampler = load_sampler(about["model"], dtype=config.dtype)
    drawn = {"conditions": about[sampler.argument], "steps": about["steps"], "guidance": about["guidance"]}
    return replace(sampler, **drawn, size=about.get("size", {}))


def trial_of(sampler: "Sampler", seed: int, config: PlanConfig, accelerator: "Accelerator", notes: "Notes") -> "Trial":
    """Return what tries plans on a model: the conditions of its calibration, and noise of this seed."""
    from delta_dit.commands.calibrate import drawing
    from delta_dit.planning.trial import Trial
    from frugal_shared.evaluation import chunks

    sampler.pipe.to(accelerator.device)
    world = accelerator.process_index, accelerator.num_processes
    batches = list(chunks(config.samples, config.batch_size, *world))
    return Trial.of(drawing(sampler, seed, batches, notes), config.reference_steps)


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

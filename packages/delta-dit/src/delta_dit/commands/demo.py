"""``delta-dit demo``: the same seeds uncached, with fewer steps, and with Δ-DiT on several schedules, at one cost."""

import math
from collections.abc import Callable
from typing import Any

from safetensors.torch import save
from torch import Tensor

from delta_dit.adapters import blocks_of
from delta_dit.commands import exact_pictures
from delta_dit.commands.demo_report import CALIBRATED, FEWER, OURS, PAPER, report
from delta_dit.commands.methods import UNCACHED, Method, draw_all, macs, quality
from delta_dit.commands.models import Sampler, load_sampler
from delta_dit.commands.options import DemoConfig
from delta_dit.commands.pictures import to_bytes
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan
from delta_dit.embedded.judge import load_judge
from delta_dit.embedded.plans import shipped_plan
from frugal_shared.run import Run
from frugal_shared.timing import compare
from frugal_shared.writing import write_bytes

TIMED = 10  # images at most of a timed draw


def main(config: DemoConfig) -> None:
    """Draw, judge, time, and write the results, the samples and the report."""
    sampler = load_sampler("demo", dtype=config.dtype)
    judge = load_judge()
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        rows, images = [], {}
        compared = contestants(config)
        full = macs(compared[0], sampler)
        for number, method in enumerate(compared, 1):
            run.accelerator.print(f"drawing, judging and timing {method.name} ({number} of {len(compared)})")
            drawn = draw_all(method, sampler, run, config.seed, config.samples, config.batch_size)
            row = cost(method, full, sampler)
            row["wall_speedup"] = wall_speedup(method, compared[0], sampler, config)
            row |= quality(drawn, images.get(UNCACHED), sampler.labels(range(config.samples)), judge)
            rows.append({"method": method.name, **row})
            images[method.name] = drawn
        run.accelerator.print("drawing a few in very many steps, and by a plan that is made to be near to them")
        exact = exact_pictures.draw(sampler, run, config.seed, config.steps)
        if run.accelerator.is_main_process:
            samples = {name: to_bytes(drawn) for name, drawn in images.items()}
            write_bytes(run.folder / "samples.safetensors", save(samples))
            exact.plot().savefig(run.folder / "exact.png")
            report(rows, images, exact, plans_of(compared, sampler), config, timed(config)).write(run.folder)
        run.finish(flat(rows, config) | exact.results())
        run.accelerator.print((run.folder / "report.html").resolve().as_uri())


def contestants(config: DemoConfig) -> list[Method]:
    """Return what is compared; the first is the reference, the others cost about the same."""
    steps, speedup = config.steps, config.speedup
    compared = [
        Method(UNCACHED, steps),
        Method(FEWER, math.ceil(steps / speedup)),  # where it does not divide, in favour of this one
        Method(PAPER, steps, DeltaCacheConfig(speedup=speedup, schedule="paper")),
        Method(OURS, steps, DeltaCacheConfig(speedup=speedup)),
    ]
    try:
        plan = shipped_plan("demo", speedup)
    except ValueError:  # none was calibrated for this speed-up
        return compared
    return [*compared, Method(CALIBRATED, steps, DeltaCacheConfig(plan=plan))] if plan.steps == steps else compared


def plans_of(compared: list[Method], sampler: Sampler) -> dict[str, DeltaPlan]:
    """Return the plans of the methods that have one, by the methods' names."""
    blocks = len(blocks_of(sampler.pipe.transformer))
    return {each.name: each.cache.plan_for(each.steps, blocks) for each in compared if each.cache is not None}


def timed(config: DemoConfig) -> int:
    """Return how many images a timed draw has: the demo would else spend half its time on timing."""
    return min(TIMED, config.batch_size)


def cost(method: Method, full: float, sampler: Sampler) -> dict[str, float]:
    """Return how much a method computes, and how many times less than the ``full`` MACs."""
    blocks = len(blocks_of(sampler.pipe.transformer))
    run = method.steps * blocks
    if method.cache is not None:
        run = method.cache.plan_for(method.steps, blocks).blocks_run()
    own = macs(method, sampler)
    return {
        "steps": method.steps,
        "block_evaluations": run,
        "gmacs": own / 1e9,
        "mac_speedup": full / own,
    }


def wall_speedup(method: Method, reference: Method, sampler: Sampler, config: DemoConfig) -> float:
    """Return the median over alternating pairs of the reference's time ÷ the method's; 1 for the reference itself."""
    if method is reference:
        return 1.0

    def drawn_by(each: Method) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with each.on(sampler):
                return sampler.draw(config.seed, range(timed(config)), steps=each.steps)

        return call

    return compare(drawn_by(reference), drawn_by(method), repeats=config.repeats).ratio


def flat(rows: list[dict], config: DemoConfig) -> dict[str, Any]:
    """Return the results as flat floats: ours under plain names, the others with their method as a prefix."""
    prefixes = {UNCACHED: "uncached_", FEWER: "fewer_steps_", PAPER: "paper_", OURS: "", CALIBRATED: "calibrated_"}
    values = {prefixes[row["method"]] + key: value for row in rows for key, value in row.items() if key != "method"}
    return values | {"samples": config.samples, "seed": config.seed}

"""``clipsam eval``: any checkpoint on any data set, measured as in ``measure.py``, told as in ``eval_report.py``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clipsam.commands.eval_report import eval_page, print_table, results_of, write_rows
from clipsam.commands.measure import evaluate_all
from clipsam.commands.models import open_model
from clipsam.commands.options import EvalConfig, batch_of
from clipsam.commands.outputs import show_failures
from clipsam.data.origin import seen_in_training
from clipsam.data.sources import check_mask_dir, open_data, open_references
from clipsam.evaluation import STAGES, Stage
from clipsam.memories import MUTUAL
from clipsam.pipeline import ClipSAM
from clipsam.samples import AnomalyData
from frugal_shared.checkpoint import write_json
from frugal_shared.errors import RunError, UsageError
from frugal_shared.run import Run


def main(config: EvalConfig) -> None:
    """Evaluate every data set, then write rows, results and report.

    Raises:
        UsageError: an unknown data set, or a "zero-shot" one that the checkpoint was trained on.
        RunError: some of the images could not be read; everything else is written.
    """
    model = open_model(config)
    stages = possible_stages(model, config)
    data_sets = open_all(config)
    references = open_all_references(config, model, data_sets)
    if config.zero_shot:
        check_zero_shot(model, data_sets)
    options: dict[str, Any] = {"batch_size": batch_of(config), "fpr_limit": config.fpr_limit, "references": references}
    options["scores"] = config.score
    with Run(config, "clipsam") as run:
        found = evaluate_all(run, model, data_sets, stages, **options)
        rows = [row for each in found for row in each.rows]
        failures = [reason for each in found for reason in each.failures]
        if run.accelerator.is_main_process:
            write_rows(run.folder, rows, config)
            write_json(run.folder / "config.json", asdict(config) | {"provenance": model.provenance})
            eval_page(found, config, model).write(run.folder)
            print_table(rows)
            show_failures(failures)
        run.finish(results_of(rows))
        if failures:
            raise RunError(f"{len(failures)} images could not be used: {'; '.join(failures)}")


def possible_stages(model: ClipSAM, config: EvalConfig) -> tuple[Stage, ...]:
    """Return the wanted stages in the pipeline's order, without those that would only repeat the one before.

    Raises:
        UsageError: none is left.
    """
    parts: dict[Stage, object] = {"clip": model.backbone, "umci": model.umci, "mmr": model.segmenter}
    possible: tuple[Stage, ...] = tuple(stage for stage in STAGES if parts[stage] is not None)
    stages: tuple[Stage, ...] = tuple(stage for stage in possible if stage in config.stages)
    if not stages:
        allowed = ", ".join(possible)
        raise UsageError(f"stages={config.stages!r} need heads or a SAM that this pipeline lacks; allowed: {allowed}")
    return stages


def open_all(config: EvalConfig) -> list[AnomalyData]:
    """Open all data sets.

    Raises:
        ValueError: one cannot be had, or two have one name.
        RunError: the ``[demo]`` extra is missing.
    """
    check_mask_dir(config.data, config.reading)
    data_sets = [open_data(name, config.samples, config.seed, config.reading) for name in config.data]
    names = [data.name for data in data_sets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"data={config.data!r} has {name!r} twice; allowed: each name once")
    return data_sets


def open_all_references(config: EvalConfig, model: ClipSAM, data_sets: Sequence[AnomalyData]) -> dict[str, AnomalyData]:
    """Return every data set's references by its name; none if none are wanted.

    Raises:
        ValueError: they cannot be had, or there are no heads to use them.
        RunError: the ``[demo]`` extra is missing.
    """
    if model.umci is None and (config.references or MUTUAL in config.score):
        raise UsageError(f"references={config.references!r} need heads; allowed: 0 with checkpoint='none'")
    if not config.references:
        return {}
    found = {}
    for name, data in zip(config.data, data_sets):
        found[data.name] = open_references(name, config.references, config.seed, config.reading)
        for category in data.categories:
            if category not in found[data.name].categories:
                lacking = f"the train split of {data.name} lacks {category!r}"
                raise UsageError(f"references={config.references!r}: {lacking}; allowed: 0")
    return found


def check_zero_shot(model: ClipSAM, data_sets: Sequence[AnomalyData]) -> None:
    """Refuse to call a result zero-shot that is not.

    Raises:
        UsageError: the checkpoint was trained on one of the data sets, on a category or on image files of it.
    """
    for data in data_sets:
        seen = seen_in_training(data, model.provenance)
        if seen is not None:
            names = ", ".join(model.provenance.get("data", ["data without a name"]))
            raise UsageError(
                f"data={data.name!r} is not zero-shot (seen: {seen}): the checkpoint was trained on {names}; "
                "allowed: other data sets, or no --zero-shot"
            )

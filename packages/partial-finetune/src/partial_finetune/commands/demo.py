"""``partial-finetune demo``: DINOv2 on photographs of solar cells, tuned in five ways, and trained from scratch."""

from collections.abc import Sequence
from dataclasses import replace

import timm
import torch
from matplotlib.figure import Figure as Plot

from frugal_shared.report import Claim, Figure, Report
from frugal_shared.run import Run
from frugal_shared.weights import DINOV2_VITS14
from partial_finetune.choice import Choice
from partial_finetune.commands.conditions import CLEAN, Condition, judge
from partial_finetune.commands.fitting import fit
from partial_finetune.commands.options import ANGLE, DemoConfig, SelectionConfig
from partial_finetune.commands.plots import angle_plot
from partial_finetune.commands.rows import Row, write_rows
from partial_finetune.commands.select import choose
from partial_finetune.commands.task import Task, open_task
from partial_finetune.deltas import base_hashes
from partial_finetune.head import linear_classifier
from partial_finetune.parts import anatomy

STRATEGIES = ("linear", "full", "attn", "ffn", ANGLE)
SCRATCH = "from scratch"
RATE, SCRATCH_RATE = 3e-5, 1e-3  # not searched: the demo has no time to, `sweep` has
IMAGE_SIZE = 84  # pixels: 37 tokens
VAL_IMAGES, TEST_IMAGES = 120, 200


def main(config: DemoConfig) -> None:
    """Train, judge on test photographs, and write rows, results and the report."""
    recipe = recipe_of(config)
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        task = open_task(recipe, run)
        run.accelerator.print("fine-tuning in full for an epoch, which shows by the angle what to tune")
        choice = choose(run, task, recipe, run.folder / "selection", config.seed)
        expressions = {name: choice.expression if name == ANGLE else name for name in STRATEGIES}
        rows = [tuned_row(run, task, recipe, name, expression) for name, expression in expressions.items()]
        rows.append(tuned_row(run, scratch(task, config.seed), recipe, SCRATCH, "full"))
        if run.accelerator.is_main_process:
            write_rows(run.folder, None, rows)
            report(rows, choice, config).write(run.folder)
        run.finish({f"{row['strategy']}/{key}": row[key] for row in rows for key in ("accuracy", "train_seconds")})
        run.accelerator.print((run.folder / "report.html").resolve().as_uri())


def recipe_of(config: DemoConfig) -> SelectionConfig:
    """Return the recipe of all six trainings."""
    return SelectionConfig(
        output_dir=config.output_dir,
        seed=config.seed,
        cpu=config.cpu,
        device=config.device,
        dtype=config.dtype,
        image_size=IMAGE_SIZE,
        samples=config.samples,
        val_samples=VAL_IMAGES,
        epochs=config.epochs,
        batch_size=16,
        learning_rate=RATE,
        select_epochs=1,
        direction="largest",
    )


def tuned_row(run: Run, task: Task, recipe: SelectionConfig, name: str, expression: str) -> Row:
    """Train one model and return its row: accuracy on test photographs, and what it cost."""
    rate = SCRATCH_RATE if name == SCRATCH else recipe.learning_rate
    folder = run.folder / "models" / name.replace(" ", "-")
    run.accelerator.print(f"tuning {expression}" if name == expression else f"tuning {expression} ({name})")
    facts = fit(run, task, replace(recipe, learning_rate=rate), expression, folder, recipe.seed)
    images = task.splits.test.limited(TEST_IMAGES)
    found = judge(task.base, Condition("clean", CLEAN, None, images), run.accelerator, recipe.batch_size)
    kept = ("tuned_parameters", "train_seconds", "state_bytes", "activation_bytes", "val_accuracy", "learning_rate")
    return {
        "strategy": name,
        "tuned": expression,
        **{key: found[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "images")},
        **{key: facts[key] for key in kept},
    }


def scratch(task: Task, seed: int) -> Task:
    """Return the same task with a network of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = task.base.image_size
        model = timm.create_model(DINOV2_VITS14.name, img_size=size, num_classes=len(task.splits.train.classes))
    model.to(next(task.model.parameters()).device)
    linear_classifier(model).reset_parameters()
    start = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
    head = anatomy(model).unit("classifier").parameters
    base = replace(task.base, model=model)
    return replace(task, base=base, start=start, hashes=base_hashes(model), head=head, linear_accuracy=None)


def report(rows: Sequence[Row], choice: Choice, config: DemoConfig) -> Report:
    """Return the report: accuracy against tuned parameters, the angles, the table, and the paper's claims."""
    page = Report(
        "Partial fine-tuning: which parts of DINOv2 to tune",
        "on photographs of solar cells: functional or defective, mono or poly",
    )
    points = (f"{row['strategy']}: {row['tuned_parameters']:,} tuned, {row['accuracy']:.1%}" for row in rows)
    turned = sorted(choice.angles.items(), key=lambda pair: -pair[1])
    page.figures(
        [
            Figure(
                accuracy_plot(rows),
                f"Accuracy on {rows[0]['images']} test photographs against tuned parameters, with 95 % intervals: "
                "further left is cheaper.",
                "; ".join(points),
            ),
            Figure(
                angle_plot(choice.angles),
                f"How far a short full fine-tuning turned every layer. The angle chose {choice.expression}.",
                "; ".join(f"{name}: {1000 * value:.2f} milliradians" for name, value in turned),
            ),
        ]
    )
    page.table(
        [lead_row(row) for row in rows],
        f"seed {config.seed}; low, high: exact 95 % interval (Clopper and Pearson)",
    )
    page.command(f"partial-finetune demo --samples {config.samples} --epochs {config.epochs} --seed {config.seed}")
    page.claims("Partial Fine-Tuning, arXiv 2312.15681", claims(rows, config))
    page.section("All that was measured")
    page.table(list(rows))
    page.note(
        f"One seed and {config.samples} training photographs of ELPV (CC BY-NC-SA 4.0) are no evidence that "
        "one strategy is better than another; `partial-finetune sweep` is made for that. The angle takes the layers "
        f"that turned most, {choice.expression}; how well two repeats agree on the order: Kendall τ "
        f"{choice.stability:.2f}. All but the last start from a head fitted to the pretrained features. Learning "
        f"rates: not searched. Network: {DINOV2_VITS14.provenance}."
    )
    return page


def lead_row(row: Row) -> Row:
    """Return the most telling columns of a row under the headings of the report."""
    return {
        "strategy": row["strategy"],
        "tuned weights": row["tuned_parameters"],
        "accuracy": row["accuracy"],
        "low": row["accuracy_low"],
        "high": row["accuracy_high"],
        "seconds": row["train_seconds"],
        "weights, gradients, optimizer MB": row["state_bytes"] / 1e6,
        "activations MB": row["activation_bytes"] / 1e6,
    }


def claims(rows: Sequence[Row], config: DemoConfig) -> list[Claim]:
    """Return what the paper's abstract says beside the rows."""
    of = {row["strategy"]: row for row in rows}
    scale = (
        f"DINOv2 ViT-S/14 at {IMAGE_SIZE} pixels, {config.samples} training and {of['full']['images']} test "
        f"photographs of solar cells, {config.epochs} epochs, one seed."
    )

    def reached(name: str) -> str:
        low, high = (of[name][f"accuracy_{end}"] for end in ("low", "high"))
        return f"{of[name]['accuracy']:.1%} ({low:.1%} to {high:.1%}) with {of[name]['tuned_parameters']:,} weights"

    return [
        Claim(
            "Tuning only some parts, such as FFN or attention alone, beats full fine-tuning with fewer weights.",
            f"Attention: {reached('attn')}. FFN: {reached('ffn')}. Full: {reached('full')}. Head alone: "
            f"{reached('linear')}. Overlapping intervals tell nothing apart.",
            scale,
        ),
        Claim(
            "The fine-tuned angle tells which layers to tune.",
            f"Its choice, {of[ANGLE]['tuned']}: {reached(ANGLE)}. Whether random layers do as well is not in this run; "
            "`partial-finetune sweep` measures it.",
            scale,
        ),
        Claim(
            "Partially tuned models make better soups, with fewer tuned weights.",
            "Not in this run; `partial-finetune sweep` cooks them.",
        ),
    ]


def accuracy_plot(rows: Sequence[Row]) -> Plot:
    """Return accuracy against tuned parameters."""
    plot = Plot(figsize=(5.6, 3.8), layout="constrained")
    axes = plot.subplots()
    for row in rows:
        x, y, top = row["tuned_parameters"] / 1e6, row["accuracy"], row["accuracy_high"]
        axes.errorbar(x, y, [[y - row["accuracy_low"]], [top - y]], fmt="o", capsize=3)
        axes.annotate(row["strategy"], (x, top), (0, 3), textcoords="offset points", fontsize=8, ha="center")
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel("tuned parameters (millions)")
    axes.set_ylabel("accuracy")
    return plot

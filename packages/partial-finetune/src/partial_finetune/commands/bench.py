"""``partial-finetune bench``: what a training step of every strategy costs, in pairs with full fine-tuning.

Beside every measured ratio stands the ideal one, of the operations that autograd really does; and beside the strategies
PEFT's LoRA of the same budget as APLA. Random weights are as slow as trained ones.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from frugal_shared.parts import measure_parts
from frugal_shared.report import Report
from frugal_shared.run import Run
from frugal_shared.timing import compare, peak_memory
from partial_finetune.commands.models import DINOV2_SIZE, DTYPES
from partial_finetune.commands.options import DINOV2, BenchConfig
from partial_finetune.commands.rows import Row
from partial_finetune.cost import saved_bytes, training_cost
from partial_finetune.frozen import Frozen, freeze
from partial_finetune.strategy import GRID8

FULL = "full"
REFERENCES = ("linear", "norm", "bitfit", "apla", "last_2")
LORA = "lora (peft)"
CLASSES = 4
COLUMNS = ("model", "strategy", "tuned_parameters", "step_ratio", "ideal_ratio", "step_over_ideal", "peak_bytes")


def main(config: BenchConfig) -> None:
    """Time every strategy on every model and write rows and report; a resumed run keeps the rows it has."""
    cells = [(model, strategy) for model in config.models for strategy in (*GRID8, *REFERENCES, LORA)]
    with Run(config, "partial-finetune", mixed_precision=config.mixed_precision) as run:
        device = run.accelerator.device
        rows = measure_parts(run, [partial(measure, *cell, config, device) for cell in cells], config.seed, config.json)
        if run.accelerator.is_main_process:
            report(rows, config).write(run.folder)
            show(rows)
        run.finish({f"{row['model']}/{row['strategy']}": row["step_over_ideal"] for row in rows if "step_ratio" in row})


def build(name: str) -> tuple[Any, int]:
    """Return a model with random weights and the side of its images."""
    if name == DINOV2:
        return timm.create_model("vit_small_patch14_dinov2", img_size=DINOV2_SIZE, num_classes=CLASSES), DINOV2_SIZE
    model: Any = timm.create_model(name, num_classes=CLASSES)
    return model, model.pretrained_cfg["input_size"][-1]


def measure(name: str, strategy: str, config: BenchConfig, device: torch.device) -> list[Row]:
    """Return one row: a step of the strategy against a step of full fine-tuning, and both ideals."""
    model, size = build(name)
    row: Row = {"model": name, "strategy": strategy, "dtype": config.dtype}
    row |= {"image_size": size, "batch_size": config.batch_size}
    ideal: float | None = None
    if strategy != LORA:
        costs = [training_cost(model, each, (3, size, size)).flops for each in (strategy, FULL)]
        ideal = costs[0] / costs[1]
    try:
        part = step_of(name, strategy, config, device)
    except ImportError:
        return [row | {"why": "peft is not installed: pip install peft"}]
    found = compare(part, full := step_of(name, FULL, config, device), repeats=config.repeats)
    row |= {
        "tuned_parameters": part.tuned,
        "step_seconds": found.a_seconds,
        "full_seconds": found.b_seconds,
        "step_ratio": found.ratio,
        "step_ratio_low": found.ratio_low,
        "step_ratio_high": found.ratio_high,
        "ideal_ratio": ideal,
        "step_over_ideal": found.ratio / ideal if ideal else None,
        "peak_bytes": peak_bytes(name, strategy, config, device),
        "full_peak_bytes": peak_bytes(name, FULL, config, device),
        "activation_bytes": part.activation_bytes(),
        "full_activation_bytes": full.activation_bytes(),
    }
    return [row]


def step_of(name: str, strategy: str, config: BenchConfig, device: torch.device) -> "Step":
    """Return a step of a strategy on random images.

    Raises:
        ImportError: it is LoRA, and PEFT is not installed.
    """
    model, size = build(name)
    images = torch.randn(config.batch_size, 3, size, size, device=device)
    labels = torch.arange(config.batch_size, device=device) % CLASSES
    if strategy == LORA:
        return Step(lora(model).to(device), None, images, labels, DTYPES[config.dtype])
    return Step(model.to(device), strategy, images, labels, DTYPES[config.dtype])


@cache
def peak_bytes(name: str, strategy: str, config: BenchConfig, device: torch.device) -> int | None:
    """Return the peak memory of two steps in a process of their own: model, gradients, optimizer, activations."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak_bytes, name, strategy, config, device).result()


def _peak_bytes(name: str, strategy: str, config: BenchConfig, device: torch.device) -> int | None:
    def two_steps() -> None:
        step = step_of(name, strategy, config, device)
        step()
        step()

    libraries, everything = peak_memory(lambda: None), peak_memory(two_steps)
    return None if libraries is None or everything is None else everything - libraries


class Step:
    """One optimizer step on fixed images: forward, backward, AdamW.

    Args:
        model: on its device.
        strategy: what is tuned; None: what wants a gradient already.
        images: ``(B, 3, H, W)``.
        labels: ``(B,)``.
        dtype: what the forward pass computes in.
    """

    def __init__(
        self, model: nn.Module, strategy: str | None, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.model, self.images, self.labels, self.dtype = model.train(), images, labels, dtype
        frozen: Frozen | None = freeze(model, strategy) if strategy else None
        values = frozen.parameters() if frozen else [value for value in model.parameters() if value.requires_grad]
        self.tuned = sum(value.numel() for value in values)
        self.optimizer = torch.optim.AdamW(values, lr=1e-6, fused=True)

    def __call__(self) -> None:
        """Do one step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> torch.Tensor:
        """Return the cross-entropy."""
        with torch.autocast(self.images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return F.cross_entropy(self.model(self.images), self.labels)

    def activation_bytes(self) -> int:
        """Return what the forward pass keeps for the backward pass."""
        with saved_bytes(self.model) as saved:
            self.loss()
        return saved.bytes


def lora(model: nn.Module) -> nn.Module:
    """Return the model with PEFT's LoRA on every attention's qkv, of about as many parameters as APLA tunes."""
    peft = import_module("peft")  # an extra that the rest can do without
    layers: list[tuple[str, Any]] = [each for each in model.named_modules() if each[0].endswith("attn.qkv")]
    budget = sum(parameter.numel() for name, parameter in model.named_parameters() if ".attn.proj." in name)
    per_rank = sum(module.in_features + module.out_features for _, module in layers)
    rank = max(1, round(budget / per_rank))
    options = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=[name for name, _ in layers], modules_to_save=["head"]
    )
    return peft.get_peft_model(model, options)  # type: ignore[return-value]


def report(rows: Sequence[Row], config: BenchConfig) -> Report:
    """Return the report: the table."""
    page = Report(
        "What a step costs", f"batch {config.batch_size}, {config.repeats} pairs, {torch.get_num_threads()} threads"
    )
    page.table(
        list(rows), "step_ratio: time of a step ÷ that of full fine-tuning, median of pairs; ideal_ratio: of operations"
    )
    return page


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(*COLUMNS, "why")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in (*COLUMNS, "why")))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)

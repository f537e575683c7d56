"""What one or more CUDA GPUs have to show, in eight minutes: ``uvx nox -s gpu``, or ``python benchmarks/gpu.py``.

First the tests marked ``gpu``, then short benchmarks in pairs, with the shapes of published models and random weights.
It writes docs/results/gpu-<name>.json, and needs no more than that the packages can be imported, be it through
PYTHONPATH. ``--device cpu --tiny`` tries the script itself where there is no GPU, and writes nothing unless ``--json``
says where.
"""

import copy
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from bdp_nas import get_searcher, get_space
from bdp_nas.spaces.space import Size
from clipsam import ClipSAM, SamSegmenter, refine
from clipsam.commands.bench import map_of_components, published
from clipsam.umci import UMCIHead
from delta_dit import DeltaCacheConfig, disable_delta_cache, enable_delta_cache
from frugal_shared.checkpoint import write_json
from frugal_shared.machine import machine, versions
from frugal_shared.timing import Comparison, compare
from partial_finetune.commands.bench import Step
from partial_finetune.strategy import GRID8

ROOT = Path(__file__).parents[1]
TEST_SECONDS = 240.0  # of the limit, at most, for the tests
DTYPE = torch.bfloat16
LARGE = 40 * 2**30  # bytes of memory from which on FLUX is measured at its full depth

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how large the benchmarks are."""

    device: torch.device
    tiny: bool
    """Small enough for a CPU: tells that the script works, and nothing about speed."""

    @property
    def large(self) -> bool:
        """Whether the GPU holds a model of 12 billion weights."""
        return self.device.type == "cuda" and torch.cuda.get_device_properties(self.device).total_memory > LARGE

    def compare(self, a: Callable[[], object], b: Callable[[], object]) -> Comparison:
        """Time two calls in alternating pairs."""
        return compare(a, b, warmup=1, repeats=2 if self.tiny else 4)


# --- delta-dit: is the time saved what the operations say? ---


def dit_xl(bench: Bench) -> tuple[Any, Row]:
    """Return DiT-XL/2 at 256 pixels, with the inputs of a guided batch."""
    layers, heads, side, batch = (4, 2, 8, 2) if bench.tiny else (28, 16, 32, 16)
    size: Row = {"num_attention_heads": heads, "attention_head_dim": 72, "num_layers": layers, "sample_size": side}
    model = DiTTransformer2DModel(**size, in_channels=4, out_channels=8)
    return model, {"hidden_states": torch.randn(batch, 4, side, side), "class_labels": torch.arange(batch)}


def flux(bench: Bench) -> tuple[Any, Row]:
    """Return FLUX.1-dev at 1024 pixels, where it fits at its depth, with its inputs."""
    double, single = (2, 2) if bench.tiny else (19, 38) if bench.large else (3, 6)
    side, words, heads = (4, 8, 2) if bench.tiny else (64, 512, 24)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=double, num_single_layers=single, num_attention_heads=heads, guidance_embeds=True
    )
    place = torch.arange(side).float()
    places = torch.cartesian_prod(torch.zeros(1), place, place)  # (side², 3): no picture number, row, column
    return model, {
        "hidden_states": torch.randn(1, side * side, 64),
        "encoder_hidden_states": torch.randn(1, words, 4096),
        "pooled_projections": torch.randn(1, 768),
        "img_ids": places,
        "txt_ids": torch.zeros(words, 3),
        "guidance": torch.full((1,), 3.5),
    }


@torch.no_grad()
def delta_dit_rows(build: Callable[[Bench], tuple[Any, Row]], bench: Bench) -> Iterator[Row]:
    """Yield what the Δ-cache saves at 1.6×, and what it costs where it saves nothing."""
    steps = 6 if bench.tiny else 20
    dtype = DTYPE if bench.device.type == "cuda" else torch.float32  # CPUs compute in bfloat16 ten times as slowly
    torch.set_default_dtype(dtype)
    try:
        with bench.device:
            model, inputs = build(bench)
    finally:
        torch.set_default_dtype(torch.float32)
    inputs = {name: value.to(bench.device) for name, value in inputs.items()}
    batch = len(inputs["hidden_states"])

    def sample() -> None:
        for level in torch.linspace(1, 0.01, steps, device=bench.device, dtype=dtype):
            model(timestep=level.expand(batch) * (1000 if "class_labels" in inputs else 1), **inputs)

    def cached(speedup: float) -> None:
        enable_delta_cache(model, DeltaCacheConfig(speedup=speedup, num_inference_steps=steps))
        try:
            sample()
        finally:
            disable_delta_cache(model)

    def macs(call: Callable[[], None]) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 2

    for speedup in (1.6, 1.0):
        found = bench.compare(sample, partial(cached, speedup))
        saved = macs(sample) / macs(partial(cached, speedup))
        yield row(build.__name__, f"uncached ÷ cached at {speedup}×, {steps} steps, {dtype}", found) | {
            "mac_speedup": saved,
            "wall_over_mac": found.ratio / saved,
        }


# --- clipsam: what an image takes ---


def small_pipeline() -> ClipSAM:
    """Return a pipeline with other sizes than the published one."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    from clipsam import Backbone, PromptBank

    backbone = Backbone.from_open_clip("ViT-S-32-alt", image_size=64, stages=(2, 5, 8, 11))
    encoder = ImageEncoderViT(img_size=96, patch_size=8, embed_dim=16, depth=1, num_heads=2, out_chans=16)
    prompts = PromptEncoder(embed_dim=16, image_embedding_size=(12, 12), input_image_size=(96, 96), mask_in_chans=4)
    decoder = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(2, 16, 2, 32))
    head = UMCIHead(len(backbone.stages), backbone.width, backbone.text_dim)
    bank = PromptBank(normal_states=("{}",), abnormal_states=("damaged {}",), templates=("a photo of a {}.",))
    return ClipSAM(backbone, head, bank=bank, segmenter=SamSegmenter(Sam(encoder, prompts, decoder).eval()))


def clipsam_rows(bench: Bench) -> Iterator[Row]:
    """Yield the latency of CLIP with UMCI, and of SAM with MMR, in both precisions."""
    single = small_pipeline() if bench.tiny else published()
    half = copy.deepcopy(single).to(bench.device, DTYPE)  # to draw the weights takes longer
    single = single.to(bench.device)
    side = 128 if bench.tiny else 1024
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rough = map_of_components(side, side)

    def mmr(model: ClipSAM) -> None:
        assert model.segmenter is not None
        refine(image, rough, model.segmenter, model.mmr)

    parts: dict[str, Callable[[ClipSAM], object]] = {
        "CLIP ViT-L/14-336 + UMCI": lambda model: model.rough([image], "object"),
        "SAM ViT-B + MMR": mmr,
    }
    for name, call in parts.items():
        found = bench.compare(partial(call, single), partial(call, half))
        yield row(f"clipsam, {name}", f"float32 ÷ bfloat16, {side}×{side}", found)


# --- partial-finetune: a training step of every strategy ---


def partial_finetune_rows(bench: Bench) -> Iterator[Row]:
    """Yield a step of every strategy against one of full fine-tuning, in mixed precision."""
    import timm

    name, batch = ("test_vit", 4) if bench.tiny else ("vit_base_patch16_224", 64)
    size = timm.get_pretrained_cfg(name).input_size[-1]
    images = torch.randn(batch, 3, size, size, device=bench.device)
    labels = torch.arange(batch, device=bench.device) % 4

    def step_of(strategy: str) -> Step:
        return Step(timm.create_model(name, num_classes=4).to(bench.device), strategy, images, labels, DTYPE)

    full = step_of("full")
    for strategy in GRID8:
        yield row(
            f"partial-finetune, {name}", f"full ÷ {strategy}, batch {batch}", bench.compare(full, step_of(strategy))
        )


# --- bdp-nas: a step in the supernet ---


def bdp_nas_rows(bench: Bench) -> Iterator[Row]:
    """Yield a step of every searcher against one of first-order DARTS, in the published supernet."""
    size, batch, side = (Size(10, 4, 1), 8, 8) if bench.tiny else (Size(10, 16, 5), 64, 32)
    images = torch.randn(batch, 3, side, side, device=bench.device)
    labels = torch.arange(batch, device=bench.device) % 10

    def stepper(name: str) -> Callable[[], None]:
        searcher = get_searcher(name)()
        supernet = searcher.supernet(get_space("nasbench201"), size).to(bench.device)
        alphas = searcher.alpha_optimizer(supernet)
        weights = torch.optim.SGD(supernet.weights(), 0.025, 0.9)

        def step() -> None:
            searcher.arch_step(supernet, (images, labels), (images, labels), alphas, weights)
            searcher.weight_step(supernet, (images, labels), weights)

        return step

    darts = stepper("darts")
    for name in ("darts-2", "pc-darts"):
        what = f"darts ÷ {name}, {size.channels} channels, {size.cells} cells per stage, batch {batch}"
        yield row("bdp-nas, NAS-Bench-201", what, bench.compare(darts, stepper(name)))


# --- the session ---

PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "delta-dit, DiT-XL/2": partial(delta_dit_rows, dit_xl),
    "delta-dit, FLUX": partial(delta_dit_rows, flux),
    "clipsam": clipsam_rows,
    "partial-finetune": partial_finetune_rows,
    "bdp-nas": bdp_nas_rows,
}


def row(part: str, what: str, found: Comparison) -> Row:
    """Return a measurement under its names."""
    return {"part": part, "what": what, **found.as_dict()}


def measure(bench: Bench, end: float) -> Iterator[Row]:
    """Yield the rows of every part; a part that fails, or that no time is left for, says so."""
    for name, rows in PARTS.items():
        if time.monotonic() > end:
            yield {"part": name, "why": "no time was left"}
            continue
        try:
            yield from rows(bench)
        except Exception as error:  # the others are still worth measuring, on a machine that is hard to come by
            yield {"part": name, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def run_tests(seconds: float) -> Row:
    """Run the tests marked ``gpu``; return how they ended."""
    files = sorted(str(path) for path in ROOT.glob("packages/*/tests/test_*_gpu.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--show-capture=no", *files]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": f"not done after {seconds:.0f} s"}
    lines = (ended.stdout + ended.stderr).strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": ended.returncode == 0, "summary": lines[-1].strip("= "), "failed": failed}


def main(
    device: str = "cuda", tiny: bool = False, tests: bool = True, limit: float = 480, json: Path | None = None
) -> int:
    """Run the tests marked gpu, then the benchmarks, and write what came out.

    Args:
        device: where the benchmarks run.
        tiny: Small models: tells that the script works, and nothing about speed.
        tests: Run the tests, too.
        limit: Seconds after which nothing new is begun.
        json: The file to write; unset: docs/results/gpu-<name>.json, and none without a GPU.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        say("gpu: skipped, there is no CUDA GPU")
        return 0
    began = time.monotonic()
    bench = Bench(torch.device(device), tiny)
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    result: Row = {"gpu": name, "gpus": torch.cuda.device_count(), "tiny": tiny}
    result |= {"machine": machine(), "versions": versions()}
    result["tests"] = run_tests(min(limit, TEST_SECONDS)) if tests else None
    if result["tests"]:
        say(f"tests: {result['tests']['summary']}", *result["tests"]["failed"])
    result["rows"] = []
    for found in measure(bench, began + limit):
        result["rows"].append(found)
        say(told(found))
    result["seconds"] = time.monotonic() - began
    path = json
    if path is None and bench.device.type == "cuda":
        path = ROOT / f"docs/results/gpu-{'-'.join(re.findall('[a-z0-9]+', name.lower()))}.json"
    if path is not None:
        write_json(path, result)
        say(str(path))
    complete = all("why" not in found for found in result["rows"])
    return 0 if complete and (result["tests"] is None or result["tests"]["passed"]) else 1


def told(found: Row) -> str:
    """Return a row as one line."""
    if "why" in found:
        return f"{found['part']}: {found['why']}"
    saved = (
        f", MACs {found['mac_speedup']:.3f}×, wall/MAC {found['wall_over_mac']:.3f}" if "mac_speedup" in found else ""
    )
    return f"{found['part']}: {found['what']}: {found['ratio']:.3f}× ({found['b_seconds']:.4f} s){saved}"


def say(*lines: str) -> None:
    """Print lines at once."""
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

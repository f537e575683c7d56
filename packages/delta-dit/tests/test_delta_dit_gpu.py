"""The Δ-cache on a GPU: other dtypes, compiled blocks, offloaded weights, and several GPUs."""

import copy

import pytest
import torch
from devices import DEVICE, distance, on_gpu, on_gpus, run_module
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler
from diffusers.hooks import apply_group_offloading

from delta_dit import DeltaCacheConfig, PixelDiTPipeline, delta_cache_stats, disable_delta_cache, enable_delta_cache

STEPS = 8
FAST = DeltaCacheConfig(speedup=2.0)


def pipeline(dtype=torch.float32):
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "sample_size": 16, "patch_size": 2}
    transformer = DiTTransformer2DModel(**size, in_channels=3, num_embeds_ada_norm=4)
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1)  # gates that are not closed
    pipe = PixelDiTPipeline(transformer.eval(), DPMSolverMultistepScheduler()).to(DEVICE, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return pipe([0, 1], num_inference_steps=STEPS, guidance_scale=2.0, generator=generators, output_type="pt").images


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@on_gpu
def test_without_reuse_the_cache_changes_no_bit_in_any_dtype(dtype):
    pipe = pipeline(dtype)
    uncached = draw(pipe)
    enable_delta_cache(pipe, DeltaCacheConfig(speedup=1.0))
    assert torch.equal(draw(pipe), uncached)
    assert torch.isfinite(uncached).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@on_gpu
def test_half_precision_follows_single_precision(dtype):
    whole, half = (draw(enable_delta_cache(pipeline(kind), FAST)) for kind in (torch.float32, dtype))
    assert distance(half, whole) < 0.05
    assert half.std() > 0


@on_gpu
def test_compiled_blocks_draw_the_same():
    pipe = pipeline()
    wanted = draw(enable_delta_cache(pipe, FAST))
    disable_delta_cache(pipe)
    for block in pipe.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward)
    assert distance(draw(enable_delta_cache(pipe, FAST)), wanted) < 1e-2
    assert delta_cache_stats(pipe).reuse_calls > 0


@on_gpu
def test_offloaded_weights_draw_the_same():
    pipe = pipeline()
    wanted = draw(enable_delta_cache(copy.deepcopy(pipe), FAST))
    device = torch.device(DEVICE)
    apply_group_offloading(
        pipe.transformer,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    assert distance(draw(enable_delta_cache(pipe, FAST)), wanted) < 1e-5


@on_gpus
def test_several_gpus_draw_what_one_draws(tmp_path):
    words = ["generate", "--count", "12", "--batch-size", "4", "--steps", "6", "--speedup", "1.5"]
    for count in ("1", "2"):
        run_module("delta_dit", *words, "--num-processes", count, "--output-dir", count, folder=tmp_path)
    alone, together = (sorted((tmp_path / count).rglob("*.png")) for count in ("1", "2"))
    assert len(alone) >= 12
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in together]

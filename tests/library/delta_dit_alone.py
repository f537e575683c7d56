"""The Δ-cache on a tiny DiT with random weights: calls are saved, and taking the cache off leaves no trace.

Then a plan made for it: calibrated, kept in a file, tried, and put on.
"""

import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from delta_dit import (
    Calibration,
    DeltaCacheConfig,
    PixelDiTPipeline,
    Trial,
    calibrate,
    delta_cache,
    delta_cache_stats,
    disable_delta_cache,
    enable_delta_cache,
)

STEPS = 8

torch.manual_seed(0)
sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "sample_size": 8, "in_channels": 4}
model = DiTTransformer2DModel(**sizes).eval()


@torch.no_grad()
def sample():
    """Draw one sample by DDIM."""
    scheduler, labels = DDIMScheduler(), torch.tensor([1])
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in scheduler.timesteps:
        noise = model(x, step.expand(1), class_labels=labels).sample
        x = scheduler.step(noise, step, x).prev_sample
    return x


plain = sample()
enable_delta_cache(model, DeltaCacheConfig(speedup=2.0, num_inference_steps=STEPS))
cached, stats = sample(), delta_cache_stats(model)
assert stats.block_speedup == 2, stats
assert (cached - plain).abs().max() > 0, "nothing was reused"
disable_delta_cache(model)
assert torch.equal(sample(), plain)

pipe = PixelDiTPipeline(model, DDIMScheduler())
pipe.set_progress_bar_config(disable=True)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "calibration.safetensors")
    calibrate(pipe, [{"class_labels": [3]}], steps=3).save(path)
    calibration = Calibration.load(path)
plan = calibration.plan(speedup=1.5, trial=Trial(pipe, [{"class_labels": [1, 2]}]), evaluations=2)
with delta_cache(pipe, plan):
    pipe([1, 2], num_inference_steps=3)
    assert delta_cache_stats(pipe).block_speedup == 1.5, plan

"""Tiny diffusion transformers and pipelines of diffusers, whose blocks matter, and loops that sample with them."""

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)

from delta_dit import DeltaCacheConfig, PixelDiTPipeline, delta_cache_stats, disable_delta_cache, enable_delta_cache

BLOCKS = 4
STEPS = 8
FAST = DeltaCacheConfig(speedup=2.0)
PAPER = DeltaCacheConfig(schedule="paper", interval=2, cached_blocks=3)  # full at even steps
NOTHING = DeltaCacheConfig(speedup=1.0)
BARE = DeltaCacheConfig(speedup=2.0, num_inference_steps=STEPS)


def shaken(model, scale=0.15):
    """Give a model weights (and gates) large enough that every block changes the picture."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def dit(channels=3, out_channels=None, classes=4):
    return shaken(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=channels,
            out_channels=out_channels,
            num_layers=BLOCKS,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=classes,
        )
    )


def sd3():
    return shaken(
        SD3Transformer2DModel(
            sample_size=8,
            num_layers=BLOCKS,
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
        )
    )


def flux():
    return shaken(
        FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
        )
    )


def pixel(scheduler=None):
    pipe = PixelDiTPipeline(dit(), scheduler or DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seed=0, **options):
    """Return the last sample of a run, which an image would clamp to [0, 1]."""
    samples = []
    step = pipe.scheduler.step

    def spy(*args, **kwargs):
        output = step(*args, **kwargs)
        samples.append(output[0] if isinstance(output, tuple) else output.prev_sample)
        return output

    torch.manual_seed(seed)  # for schedulers that add noise
    pipe.scheduler.step = spy
    try:
        pipe(
            **{"class_labels": [0, 1], "num_inference_steps": STEPS} | options,
            generator=torch.Generator().manual_seed(seed),
        )
    finally:
        del pipe.scheduler.step
    return samples[-1]


def attention_calls(transformer):
    """Count what really runs: the calls of the blocks' attention."""
    calls = []
    for name, module in transformer.named_modules():
        if name.endswith((".attn", ".attn1")):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def cached(pipe, config, **options):
    """Draw with the cache; return the images and the statistics."""
    enable_delta_cache(pipe, config)
    try:
        return draw(pipe, **options), delta_cache_stats(pipe)
    finally:
        disable_delta_cache(pipe)


class Pipe:
    """All that the cache asks of a pipeline."""

    def __init__(self, transformer, scheduler=None, **more):
        self.transformer = transformer
        self.scheduler = scheduler or DDIMScheduler()
        vars(self).update(more)


def latents(step, channels=3):
    """A sample that does not depend on the model."""
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(100 + step))


def sample_flow(pipe, separate=False):
    """The loop of the pipelines of SD3 (guidance in one doubled batch) and Flux (``separate`` calls)."""
    generator = torch.Generator().manual_seed(0)
    names = {"encoder_hidden_states": (2, 3, 12), "pooled_projections": (2, 10)}
    text = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    positions = {}
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    if isinstance(pipe.transformer, FluxTransformer2DModel):
        sample, positions = sample.reshape(1, 16, 16), {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(3, 3)}
    parts = [{name: value[i : i + 1] for name, value in text.items()} for i in range(2)]

    def predict(sample, t, text):
        timestep = t.expand(len(sample)) / (1000 if separate else 1)
        return pipe.transformer(sample, timestep=timestep, **text, **positions).sample

    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            if separate:
                cond, uncond = (predict(sample, t, part) for part in parts)
            else:
                cond, uncond = predict(torch.cat([sample] * 2), t, text).chunk(2)
            sample = pipe.scheduler.step(uncond + 3 * (cond - uncond), t, sample).prev_sample
    return sample


PROMPTS = (torch.tensor([0, 1]), torch.tensor([4, 4]))  # the last label is the empty one


def guided(pipe, calls_at, prompts=PROMPTS):
    """Make, at each step, the calls named by ``calls_at(step)``; return the outputs by (step, call)."""
    pipe.scheduler.set_timesteps(STEPS)
    outputs = {}
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            for call in calls_at(step):
                labels = prompts[call]
                x = latents(step).to(pipe.transformer.dtype)
                outputs[step, call] = pipe.transformer(x, t.expand(2), class_labels=labels).sample
    return outputs


def sample_ddim(transformer, seed):
    """A run of DDIM on a bare transformer, with a scheduler of its own."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    sample = latents(seed)
    with torch.no_grad():
        for t in scheduler.timesteps:
            outputs = [transformer(sample, t.expand(2), class_labels=labels).sample[:, :3] for labels in PROMPTS]
            sample = scheduler.step(2 * outputs[0] - outputs[1], t, sample).prev_sample
    return sample

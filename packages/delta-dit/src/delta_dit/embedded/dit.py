"""The recipe of the embedded model: a small class-conditional DiT on textured digits.

x₀-prediction, because a token must not carry less width than its patch has noise values: with 8×8×3 patches (192
values) at width 128 a network can say what the picture is, and cannot say what the noise was.
"""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler

from delta_dit.embedded.training import fit, share
from frugal_shared.datasets import TexturedDigits
from frugal_shared.run import Run
from frugal_shared.seeds import generator

HEAD_WIDTH = 32
LABEL_DROP = 0.1  # share of labels replaced by the empty one, for classifier-free guidance
MAX_WEIGHT = 20.0  # truncation of the loss weight SNR + 1
_NOISE = 1  # stream of random numbers


def train_dit(run: Run, *, blocks: int, heads: int, **loop: Any) -> None:
    """Train, save ``pipeline`` into the run folder in fp16, and write the results.

    Args:
        run: the run; its seed decides about everything.
        blocks: transformer blocks.
        heads: attention heads, 32 wide each.
        loop: see :func:`~delta_dit.embedded.training.fit`.
    """
    seed = run.config.seed
    torch.manual_seed(seed)
    scheduler = noise_schedule()

    def loss(model, x0: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        return x0_loss(model, scheduler, x0, labels, generator(seed, _NOISE, step), run.accelerator)

    fit(run, build_dit(blocks, heads), scheduler, loss, **loop)


def build_dit(blocks: int, heads: int) -> DiTTransformer2DModel:
    """Return a fresh model."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=HEAD_WIDTH,
        in_channels=3,
        out_channels=3,
        num_layers=blocks,
        sample_size=TexturedDigits.size,
        patch_size=8,
        num_embeds_ada_norm=TexturedDigits.num_classes,
        norm_type="ada_norm_zero",
    )
    # In training mode diffusers drops labels in every block separately, so that no forward pass is ever wholly
    # unconditional. We drop them once, in x0_loss; nothing else in the model knows the mode.
    return model.eval()


def noise_schedule() -> DPMSolverMultistepScheduler:
    """Return the sampler, whose schedule is also the one to train with."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        lambda_min_clipped=-5.1,  # without it a cosine schedule starts at infinite noise and 20 steps stay noise
    )


def x0_loss(model, scheduler, x0, labels, random: torch.Generator, accelerator) -> torch.Tensor:
    """Return E‖x̂₀(x_t, t, y) − x₀‖² · min(1/(1−ᾱ_t), 20), over this process's share of the global batch."""
    alphas = scheduler.alphas_cumprod  # ᾱ, (1000,)
    t = torch.randint(len(alphas), (len(x0),), generator=random)
    noise = torch.randn(x0.shape, generator=random)
    dropped = torch.rand(len(x0), generator=random) < LABEL_DROP
    labels = torch.where(dropped, TexturedDigits.num_classes, labels)
    alpha = alphas[t].view(-1, 1, 1, 1)
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    weight = (1 / (1 - alpha)).clamp(max=MAX_WEIGHT)

    x_t, x0, t, labels, weight = share(accelerator, x_t, x0, t, labels, weight)
    prediction = model(x_t, timestep=t, class_labels=labels, return_dict=False)[0]
    return (weight * (prediction - x0).square()).mean()

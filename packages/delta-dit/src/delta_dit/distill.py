"""``delta-dit train-demo-lcm``: the recipe that made the embedded 4-step model, by consistency distillation.

As in Latent Consistency Models (arXiv 2310.04378), without the latents: the student f maps every point of one
trajectory of the guided teacher to the trajectory's end,

    f(x_t, t) = c_skip(t) x_t + c_out(t) x̂₀(x_t, t),    f(x_0, 0) = x_0.

It is trained to agree with itself on neighbours: f(x_t, t) ≈ f(x_s, s) where one guided DDIM step of the teacher leads
from x_t to x_s. Two things differ from the paper. The guidance scale is one number, not an input of the student. And
the target network is the student itself with the gradient stopped, instead of an average of its past (arXiv 2310.14189
finds this better); the weights that are shipped are averaged as in ``delta-dit train-demo``.
"""

import copy

import torch
from diffusers import DiTTransformer2DModel, LCMScheduler

from delta_dit.configs import TrainDemoLcmConfig
from delta_dit.pixel import PixelDiTPipeline, load_embedded
from delta_dit.train import fit, share
from frugal_shared.datasets import TexturedDigits
from frugal_shared.errors import RunError
from frugal_shared.run import Run
from frugal_shared.seeds import generator

INTERVALS = 25  # of the teacher's trajectory; the 1000 timesteps divide into as many
HUBER = 0.03  # the loss is quadratic below, linear above
_NOISE = 2  # stream of random numbers


def train(config: TrainDemoLcmConfig) -> None:
    """Distil, save ``<output_dir>/pipeline`` in fp16, and write the results."""
    with Run(config, "delta-dit") as run:
        teacher = load_teacher(config).to(run.accelerator.device)
        student = copy.deepcopy(teacher)
        optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        teacher.requires_grad_(False)
        scheduler = sampler()

        def loss(student, x0: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
            return consistency_loss(student, teacher, scheduler, x0, labels, config, step, run.accelerator)

        fit(run, config, student, optimizer, scheduler, loss)


def load_teacher(config: TrainDemoLcmConfig) -> DiTTransformer2DModel:
    """Return the teacher's transformer in float32.

    Raises:
        RunError: the folder does not hold such a pipeline.
    """
    if config.teacher is None:
        return load_embedded().transformer.eval()
    try:
        pipe = PixelDiTPipeline.from_pretrained(config.teacher, variant="fp16", dtype=torch.float32)
    except Exception as error:  # hub, file and format errors share no base class
        raise RunError(f"teacher={str(config.teacher)!r} is not the pipeline of a train-demo run") from error
    return pipe.transformer.eval()


def sampler() -> LCMScheduler:
    """Return the consistency sampler: predict the image, noise it again to the next level, and so on."""
    return LCMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        original_inference_steps=INTERVALS,
        clip_sample=False,
    )


def consistency_loss(
    student, teacher, scheduler, x0, labels, config: TrainDemoLcmConfig, step: int, accelerator
) -> torch.Tensor:
    """Return the pseudo-Huber distance of f(x_t, t) to f(x_s, s), over this process's share of the global batch."""
    random = generator(config.seed, _NOISE, step)
    length = len(scheduler.alphas_cumprod) // INTERVALS
    t = torch.randint(1, INTERVALS + 1, (len(x0),), generator=random) * length - 1
    s = (t - length).clamp(min=0)
    x_t = scheduler.add_noise(x0, torch.randn(x0.shape, generator=random), t)

    x_t, t, s, labels = share(accelerator, x_t, t, s, labels)
    with torch.no_grad():
        x_s = ddim(scheduler, guided(teacher, x_t, t, labels, config.guidance), x_t, t, s)
        target = consistency(student, scheduler, x_s, s, labels)
    error = consistency(student, scheduler, x_t, t, labels) - target
    return ((error.square() + HUBER**2).sqrt() - HUBER).mean()


def consistency(model, scheduler: LCMScheduler, x_t, t, labels) -> torch.Tensor:
    """Return f(x_t, t) = c_skip(t) x_t + c_out(t) x̂₀(x_t, t), the model's guess ``(B, 3, H, W)`` of the end."""
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t.view(-1, 1, 1, 1))
    return c_skip * x_t + c_out * model(x_t, timestep=t, class_labels=labels, return_dict=False)[0]


def guided(teacher, x_t, t, labels, scale: float) -> torch.Tensor:
    """Return the teacher's x̂₀ with classifier-free guidance, both halves in one batch."""
    empty = torch.full_like(labels, TexturedDigits.num_classes)
    both = teacher(x_t.repeat(2, 1, 1, 1), timestep=t.repeat(2), class_labels=torch.cat([labels, empty]))[0]
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def ddim(scheduler: LCMScheduler, x0, x_t, t, s) -> torch.Tensor:
    """Return where one DDIM step with the guess ``x0`` leads from noise level ``t`` to ``s``."""
    alphas = scheduler.alphas_cumprod.to(x_t.device)
    alpha_t, alpha_s = alphas[t].view(-1, 1, 1, 1), alphas[s].view(-1, 1, 1, 1)
    noise = (x_t - alpha_t.sqrt() * x0) / (1 - alpha_t).sqrt()
    return alpha_s.sqrt() * x0 + (1 - alpha_s).sqrt() * noise

"""``delta-dit train-demo-lcm``: the recipe that made the embedded 4-step model.

A consistency model f maps every point of one trajectory of the guided teacher to the trajectory's end:

    f(x_t, t) = c_skip(t) x_t + c_out(t) x̂₀(x_t, t),    f(x_0, 0) = x_0,    f(x_t, t) = x_0 of the same trajectory.

It is sampled like a Latent Consistency Model (arXiv 2310.04378): predict the end, noise it again to the next lower
level, and so on. It is *trained* more directly. Consistency distillation makes f agree with itself at neighbouring
points, so that the end reaches the far points through many hands; on a model as small as this the teacher can walk
every trajectory to its end, and the true end is the target at once, at just the four levels that the sampler visits.
(Self-agreement without an averaged target network was tried, and diverged within 300 steps.) The guidance scale is one
number built in, not an input of the student.
"""

import copy
from itertools import pairwise

import torch
from diffusers import DiTTransformer2DModel, LCMScheduler

from delta_dit.commands.options import TrainDemoLcmConfig
from delta_dit.embedded.dit import fit, share
from delta_dit.embedded.pixel import load_embedded, load_pixel_pipeline
from frugal_shared.datasets import TexturedDigits
from frugal_shared.errors import RunError
from frugal_shared.run import Run
from frugal_shared.seeds import generator

LEVELS = 4  # noise levels that the student is trained at, and its number of sampling steps
INTERVALS = 25  # of the 1000 timesteps: the levels are at multiples of one
SOLVER_STEPS = 3  # DDIM steps of the teacher from one level to the next
HUBER = 0.03  # the loss is quadratic below, linear above
_NOISE = 2  # stream of random numbers


def train(config: TrainDemoLcmConfig) -> None:
    """Distil, save ``<output_dir>/pipeline`` in fp16, and write the results."""
    with Run(config, "delta-dit") as run:
        teacher = load_teacher(config).to(run.accelerator.device)
        student = copy.deepcopy(teacher)
        student.register_to_config(_name_or_path="")  # where the teacher lay on this machine
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
        return load_pixel_pipeline(config.teacher).transformer.eval()
    except Exception as error:  # hub, file and format errors share no base class
        raise RunError(f"teacher={str(config.teacher)!r} is not the pipeline of a train-demo run: {error}") from error


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
    """Return the pseudo-Huber distance of f(x_t, t) at all levels to the end of x_t's trajectory.

    Of the global batch ``x0`` only the shape matters: trajectories begin in noise.
    """
    noise = torch.randn(x0.shape, generator=generator(config.seed, _NOISE, step))
    noise, labels = share(accelerator, noise, labels)
    points, times, end = trajectory(teacher, scheduler, noise, labels, config.guidance)
    error = consistency(student, scheduler, points, times, labels.repeat(LEVELS)) - end.repeat(LEVELS, 1, 1, 1)
    return ((error.square() + HUBER**2).sqrt() - HUBER).mean()


@torch.no_grad()
def trajectory(teacher, scheduler: LCMScheduler, noise, labels, scale: float) -> tuple[torch.Tensor, ...]:
    """Let the guided teacher walk from noise ``(B, 3, H, W)`` to an image with DDIM.

    Returns:
        The points ``(4·B, 3, H, W)`` where it comes by the student's levels, their timesteps ``(4·B,)``, and the end
        ``(B, 3, H, W)``.
    """
    scheduler.set_timesteps(LEVELS)
    levels = [*scheduler.timesteps.tolist(), 0]
    points, times, x = [], [], noise
    for start, stop in pairwise(levels):
        points.append(x)
        times.append(torch.full_like(labels, start))
        walk = torch.linspace(start, stop, SOLVER_STEPS + 1).round().long().tolist()
        for t, s in pairwise(walk):
            t, s = torch.full_like(labels, t), torch.full_like(labels, s)
            x = ddim(scheduler, guided(teacher, x, t, labels, scale), x, t, s)
    return torch.cat(points), torch.cat(times), x


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

"""The recipe of the embedded 4-step model.

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
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, LCMScheduler

from delta_dit.embedded.training import fit, share
from frugal_shared.datasets import TexturedDigits
from frugal_shared.run import Run
from frugal_shared.seeds import generator

LEVELS = 4  # noise levels that the student is trained at, and its number of sampling steps
INTERVALS = 25  # of the 1000 timesteps: the levels are at multiples of one
SOLVER_STEPS = 3  # DDIM steps of the teacher from one level to the next
HUBER = 0.03  # the loss is quadratic below, linear above
_NOISE = 2  # stream of random numbers


def distil(run: Run, teacher: DiTTransformer2DModel, *, guidance: float, **loop: Any) -> None:
    """Distil, save ``pipeline`` into the run folder in fp16, and write the results.

    Args:
        run: the run; its seed decides about everything.
        teacher: the transformer of a pixel pipeline, in float32.
        guidance: guidance scale of the teacher.
        loop: see :func:`~delta_dit.embedded.training.fit`.
    """
    teacher = teacher.eval().to(run.accelerator.device)
    student = copy.deepcopy(teacher)
    student.register_to_config(_name_or_path="")  # where the teacher lay on this machine
    teacher.requires_grad_(False)
    scheduler = consistency_scheduler()

    def loss(student, x0: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        # of the images only the shape matters: trajectories begin in noise
        noise = torch.randn(x0.shape, generator=generator(run.config.seed, _NOISE, step))
        noise, labels = share(run.accelerator, noise, labels)
        return consistency_loss(student, teacher, scheduler, noise, labels, guidance)

    fit(run, student, scheduler, loss, **loop)


def consistency_scheduler() -> LCMScheduler:
    """Return the consistency sampler: predict the image, noise it again to the next level, and so on."""
    return LCMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        original_inference_steps=INTERVALS,
        clip_sample=False,
    )


def consistency_loss(student, teacher, scheduler: LCMScheduler, noise, labels, guidance: float) -> torch.Tensor:
    """Return the pseudo-Huber distance of f(x_t, t) at all levels to the end of x_t's trajectory."""
    points, times, end = trajectory(teacher, scheduler, noise, labels, guidance)
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

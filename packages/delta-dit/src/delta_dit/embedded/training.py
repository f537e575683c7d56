"""The training loop that the recipes of the embedded models share."""

import time
from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.training_utils import EMAModel

from delta_dit.embedded.pixel import PixelDiTPipeline
from frugal_shared.datasets import TexturedDigits
from frugal_shared.run import Run
from frugal_shared.training import share as equal_share
from frugal_shared.training import warm_up_cosine
from frugal_shared.writing import whole_folder

WARM_UP = 200  # steps
CLIP = 1.0  # gradient norm


def fit(
    run: Run,
    model: DiTTransformer2DModel,
    scheduler: DPMSolverMultistepScheduler | LCMScheduler,
    loss_of: Callable[..., torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    save_every: int,
) -> None:
    """Train on textured digits from the newest checkpoint on; save the averaged weights as a pipeline in fp16.

    Args:
        run: the run folder; with ``resume``, its newest checkpoint is where this starts.
        model: what to train.
        scheduler: the sampler to save with the model.
        loss_of: maps (model, images ``(B, 3, 32, 32)`` in [−1, 1], labels ``(B,)``, step) to a scalar. It gets the
            global batch and takes this process's share (see :func:`share`).
        steps: optimizer steps.
        batch_size: global batch.
        learning_rate: peak of the cosine, after the warm-up.
        save_every: steps between checkpoints.
    """
    accelerator = run.accelerator
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ema = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, power=3 / 4)
    start = 0
    if (found := run.restore()) is not None:
        start, tree = found
        model.load_state_dict(tree["model"])
        optimizer.load_state_dict(tree["optimizer"])
        ema.load_state_dict(tree["ema"])
    ema.to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    data = TexturedDigits("train", run.config.seed)

    began, since = time.perf_counter(), start
    for step in run.progress(range(start, steps), initial=start, total=steps, desc=run.folder.name):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm_up_cosine(step, steps, WARM_UP)
        images, labels = data.batch(step, batch_size)
        loss = loss_of(model, images * 2 - 1, labels, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

        done = step + 1
        if done % 50 == 0:
            rate = (done - since) * batch_size / (time.perf_counter() - began)
            run.log(done, loss=loss.item(), images_per_second=rate)
        if done % save_every == 0 or done == steps:
            bare = accelerator.unwrap_model(model)
            tree = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
            run.save(done, tree, keep=2)

    bare = accelerator.unwrap_model(model)
    ema.copy_to(bare.parameters())
    if accelerator.is_main_process:
        with whole_folder(run.folder / "pipeline") as folder:
            PixelDiTPipeline(bare.half(), scheduler).save_pretrained(folder, variant="fp16")
    parameters = sum(parameter.numel() for parameter in bare.parameters())
    run.finish({"steps": steps, "images": steps * batch_size, "parameters": parameters})


def share(accelerator, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return this process's samples of a global batch, on its device (see :func:`frugal_shared.training.share`)."""
    return tuple(equal_share(accelerator, tensor).to(accelerator.device) for tensor in tensors)

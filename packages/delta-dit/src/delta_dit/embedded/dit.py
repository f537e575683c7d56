"""``delta-dit train-demo``: the recipe that made the embedded model.

x₀-prediction, because a token must not carry less width than its patch has noise values: with 8×8×3 patches (192
values) at width 128 a network can say what the picture is, and cannot say what the noise was.
"""

import time
from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, LCMScheduler
from diffusers.training_utils import EMAModel

from delta_dit.commands.options import TrainDemoConfig, TrainDemoLcmConfig
from delta_dit.embedded.pixel import PixelDiTPipeline
from frugal_shared.checkpoint import whole_folder
from frugal_shared.datasets import TexturedDigits
from frugal_shared.run import Run
from frugal_shared.seeds import generator
from frugal_shared.training import share as equal_share
from frugal_shared.training import warm_up_cosine

HEAD_WIDTH = 32
LABEL_DROP = 0.1  # share of labels replaced by the empty one, for classifier-free guidance
MAX_WEIGHT = 20.0  # truncation of the loss weight SNR + 1
WARM_UP = 200  # steps
CLIP = 1.0  # gradient norm
_NOISE = 1  # stream of random numbers


def train(config: TrainDemoConfig) -> None:
    """Train, save ``<output_dir>/pipeline`` in fp16, and write the results."""
    with Run(config, "delta-dit") as run:
        torch.manual_seed(config.seed)
        model, optimizer = build(config)
        scheduler = noise_schedule()

        def loss(model, x0: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
            return x0_loss(model, scheduler, x0, labels, config, step, run.accelerator)

        fit(run, config, model, optimizer, scheduler, loss)


def fit(
    run: Run,
    config: TrainDemoConfig | TrainDemoLcmConfig,
    model: DiTTransformer2DModel,
    optimizer: torch.optim.Optimizer,
    scheduler: DPMSolverMultistepScheduler | LCMScheduler,
    loss_of: Callable[..., torch.Tensor],
) -> None:
    """Train on textured digits from the newest checkpoint on; save the averaged weights as a pipeline in fp16.

    Args:
        run: the run folder; with ``resume``, its newest checkpoint is where this starts.
        config: the options.
        model: what to train.
        optimizer: over the model's parameters.
        scheduler: the sampler to save with the model.
        loss_of: maps (model, images ``(B, 3, 32, 32)`` in [−1, 1], labels ``(B,)``, step) to a scalar. It gets the
            global batch and takes this process's share (see :func:`share`).
    """
    accelerator = run.accelerator
    ema = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, power=3 / 4)
    start = 0
    if (found := run.restore()) is not None:
        start, tree = found
        model.load_state_dict(tree["model"])
        optimizer.load_state_dict(tree["optimizer"])
        ema.load_state_dict(tree["ema"])
    ema.to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    data = TexturedDigits("train", config.seed)

    began, since = time.perf_counter(), start
    for step in run.progress(range(start, config.steps), initial=start, total=config.steps, desc=run.folder.name):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm_up_cosine(step, config.steps, WARM_UP)
        images, labels = data.batch(step, config.batch_size)
        loss = loss_of(model, images * 2 - 1, labels, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

        done = step + 1
        if done % 50 == 0:
            rate = (done - since) * config.batch_size / (time.perf_counter() - began)
            run.log(done, loss=loss.item(), images_per_second=rate)
        if done % config.save_every == 0 or done == config.steps:
            bare = accelerator.unwrap_model(model)
            tree = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
            run.save(done, tree, keep=2)

    bare = accelerator.unwrap_model(model)
    ema.copy_to(bare.parameters())
    if accelerator.is_main_process:
        with whole_folder(run.folder / "pipeline") as folder:
            PixelDiTPipeline(bare.half(), scheduler).save_pretrained(folder, variant="fp16")
    parameters = sum(parameter.numel() for parameter in bare.parameters())
    run.finish({"steps": config.steps, "images": config.steps * config.batch_size, "parameters": parameters})


def build(config: TrainDemoConfig) -> tuple[DiTTransformer2DModel, torch.optim.Optimizer]:
    """Return a fresh model and its optimizer."""
    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=HEAD_WIDTH,
        in_channels=3,
        out_channels=3,
        num_layers=config.blocks,
        sample_size=TexturedDigits.size,
        patch_size=8,
        num_embeds_ada_norm=TexturedDigits.num_classes,
        norm_type="ada_norm_zero",
    )
    # In training mode diffusers drops labels in every block separately, so that no forward pass is ever wholly
    # unconditional. We drop them once, in x0_loss; nothing else in the model knows the mode.
    model.eval()
    return model, torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def noise_schedule() -> DPMSolverMultistepScheduler:
    """Return the sampler, whose schedule is also the one to train with."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        lambda_min_clipped=-5.1,  # without it a cosine schedule starts at infinite noise and 20 steps stay noise
    )


def x0_loss(model, scheduler, x0, labels, config: TrainDemoConfig, step: int, accelerator) -> torch.Tensor:
    """Return E‖x̂₀(x_t, t, y) − x₀‖² · min(1/(1−ᾱ_t), 20), over this process's share of the global batch."""
    random = generator(config.seed, _NOISE, step)
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


def share(accelerator, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return this process's samples of a global batch, on its device (see :func:`frugal_shared.training.share`)."""
    return tuple(equal_share(accelerator, tensor).to(accelerator.device) for tensor in tensors)

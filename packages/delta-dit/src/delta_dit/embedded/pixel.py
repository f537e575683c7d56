"""A diffusers pipeline for diffusion transformers that draw pixels directly, without a VAE.

The embedded model is one: 32×32 RGB, small enough for a laptop, and otherwise a plain ``DiTTransformer2DModel``.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor


class PixelDiTPipeline(DiffusionPipeline):
    """Class-conditional generation in pixel space, with classifier-free guidance in one doubled batch.

    Args:
        transformer: its class number ``num_embeds_ada_norm`` (one past the last) is the empty label.
        scheduler: any diffusers scheduler.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image per label.

        Args:
            class_labels: ``B`` numbers in ``[0, num_embeds_ada_norm)``.
            guidance_scale: above 1, how far to move away from the unconditional prediction.
            num_inference_steps: solver steps.
            generator: one, or one per image: then an image does not depend on the others in its batch.
            output_type: ``"pil"``, ``"np"`` (``B, H, W, 3`` in [0, 1]) or ``"pt"`` (``B, 3, H, W`` in [0, 1]).
            return_dict: return an ``ImagePipelineOutput`` rather than a tuple.

        Raises:
            ValueError: no labels, a label that the model does not know, or an unknown output type.
        """
        config = self.transformer.config
        labels = self._check_labels(class_labels)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type!r} is unknown; allowed: pil, np, pt")
        batch = len(labels)
        guided = guidance_scale > 1
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, config.num_embeds_ada_norm)])

        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        sample = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        sample = sample * self.scheduler.init_noise_sigma
        # samplers that add noise at every step, such as LCM's, must draw it from the same generators
        noise = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}
        progress_bar: Any = self.progress_bar
        for t in progress_bar(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(torch.cat([sample] * 2) if guided else sample, t)
            prediction = self.transformer(
                model_input, timestep=t.expand(len(model_input)), class_labels=labels, return_dict=False
            )[0]
            if guided:
                conditional, empty = prediction.chunk(2)
                prediction = empty + guidance_scale * (conditional - empty)
            sample = self.scheduler.step(prediction, t, sample, **noise, return_dict=False)[0]

        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_labels(self, class_labels: list[int]) -> torch.Tensor:
        classes = self.transformer.config.num_embeds_ada_norm
        if len(class_labels) == 0:
            raise ValueError(f"class_labels is empty; allowed: one or more numbers from 0 to {classes - 1}")
        for label in class_labels:
            if not 0 <= label < classes:
                raise ValueError(f"class_labels has {label!r}; allowed: 0 to {classes - 1}")
        return torch.as_tensor(class_labels, device=self._execution_device).long()


def embedded_folder(name: str = "textured-digits-dit") -> Path:
    """Return the folder of a pipeline that is shipped inside this package."""
    return Path(str(files("delta_dit.embedded") / "assets" / name))


def load_embedded(name: str = "textured-digits-dit") -> PixelDiTPipeline:
    """Return a pipeline that is shipped inside this package (see :func:`load_pixel_pipeline`)."""
    return load_pixel_pipeline(embedded_folder(name))


def load_pixel_pipeline(folder: Path) -> PixelDiTPipeline:
    """Return a pipeline that ``train-demo`` or ``train-demo-lcm`` saved, in float32, with its progress bar off."""
    with quiet_loading():
        pipe = PixelDiTPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def is_pixel_pipeline(folder: Path) -> bool:
    """Return whether a folder says of itself that it holds a :class:`PixelDiTPipeline`."""
    try:
        return json.loads((folder / "model_index.json").read_text())["_class_name"] == PixelDiTPipeline.__name__
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep diffusers from writing to the terminal while it loads: what goes wrong is told by the exception."""
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

"""The models that the commands sample from: the embedded ones, and any diffusers pipeline by hub name or folder.

A :class:`Sampler` hides what differs between pipelines, labels or prompts, pixels or latents, behind one call. Sample
number i of a seed is the same image whatever batch or process draws it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from safetensors import safe_open
from torch import Tensor, nn

from delta_dit.attach import transformers_of
from delta_dit.commands.options import ConditionsConfig, Dtype, SizedConfig
from delta_dit.embedded.pixel import is_pixel_pipeline, load_embedded, load_pixel_pipeline, quiet_loading
from delta_dit.planning.draws import comparable, draws_videos
from frugal_shared.errors import RunError, UsageError
from frugal_shared.hub import HubError, hub_errors
from frugal_shared.reading import read_json
from frugal_shared.seeds import derived_seed, sample_generators

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them
GATE_STD = 0.5  # of random weights that open or close a block; at their usual near-zero the blocks would not matter


@dataclass
class Sampler:
    """A pipeline that draws images for conditions, deterministically per sample.

    Args:
        name: what the user called it.
        pipe: the pipeline.
        conditions: what it can draw: class numbers, or prompts.
        argument: name of the pipeline's argument that takes the conditions.
        steps: default number of sampling steps.
        guidance: default guidance scale.
        extra: instead of ``argument``, what to give the pipeline for so many images.
        size: of what is drawn, as the pipeline's arguments have it; default: the pipeline's own.
    """

    name: str
    pipe: Any
    conditions: list[Any]
    argument: str
    steps: int = 20
    guidance: float = 4.5
    extra: Callable[[int], dict[str, Any]] | None = None
    size: dict[str, int] = field(default_factory=dict)

    def draw(
        self,
        seed: int,
        indices: range,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draw samples number ``indices`` of ``seed``; sample i takes condition i mod their number.

        Returns:
            Images ``(B, 3, H, W)``, or videos ``(B, F, 3, H, W)``, in [0, 1] on the CPU.
        """
        return self._drawn(seed, indices, "pt", steps, guidance)

    def compare(self, seed: int, indices: range, steps: int) -> Tensor:
        """Draw what is compared in place of samples: the images themselves, of videos the latents, ``(B, ...)``."""
        return self._drawn(seed, indices, "latent" if draws_videos(self.pipe) else "pt", steps, None)

    def _drawn(self, seed: int, indices: range, output_type: str, steps: int | None, guidance: float | None) -> Tensor:
        conditions = [self.conditions[index % len(self.conditions)] for index in indices]
        given = {self.argument: conditions} if self.extra is None else self.extra(len(indices))
        if "guidance_scale" in inspect.signature(type(self.pipe).__call__).parameters:
            given = given | {"guidance_scale": self.guidance if guidance is None else guidance}
        output = self.pipe(
            **given,
            **self.size,
            num_inference_steps=self.steps if steps is None else steps,
            generator=sample_generators(seed, indices),
            output_type=output_type,
        )
        return comparable(self.pipe, output, output_type)

    def labels(self, indices: range) -> Tensor:
        """Return the class number of each sample ``(B,)``, for models that draw classes."""
        return torch.tensor([self.conditions[index % len(self.conditions)] for index in indices])


def load_sampler(name: str, *, random_weights: bool = False, dtype: Dtype | None = None) -> Sampler:
    """Return the sampler called ``name``.

    Args:
        name: ``demo``, ``demo-lcm``, ``dit-xl-2-256``, ``pixart-alpha-512``, a hub name, or a local folder.
        random_weights: the named architecture with random weights: right for speed and counts, meaningless as pictures.
        dtype: precision of the model; default: the one that its transformer is stored in, fp32 if it is embedded, a
            pixel pipeline, or random.

    Raises:
        UsageError: random weights of a model whose architecture is not built in.
        RunError: the model cannot be loaded, e.g. without network.
        ImportError: its pipeline needs a library that is missing, as text encoders need transformers.
    """
    if random_weights and name not in _RANDOM:
        raise UsageError(f"model={name!r} has no random weights; allowed: {', '.join(_RANDOM)}")
    try:
        if random_weights:
            sampler = _RANDOM[name]()
        else:
            sampler = EMBEDDED[name]() if name in EMBEDDED else _pretrained(name, dtype)
    except (UsageError, ImportError, HubError):
        raise
    except Exception as error:  # file and format errors share no base class
        raise RunError(f"model={name!r} cannot be loaded: {error}; allowed: {_allowed()}") from error
    sampler.pipe.set_progress_bar_config(disable=True)
    if dtype is not None and any(each.dtype != DTYPES[dtype] for each in transformers_of(sampler.pipe)):
        sampler.pipe.to(DTYPES[dtype])
    return sampler


def conditions(config: ConditionsConfig, sampler: Sampler) -> list:
    """Return the labels or prompts that the samples take in turn.

    Raises:
        UsageError: the model draws the other kind, or there are none.
    """
    draws_labels = sampler.argument == "class_labels"
    if config.labels and not draws_labels:
        raise UsageError(f"labels={config.labels!r} mean nothing to model={config.model!r}; allowed: prompts")
    if config.prompts is None:
        return list(config.labels) or sampler.conditions
    if draws_labels:
        raise UsageError(f"prompts={str(config.prompts)!r} mean nothing to model={config.model!r}; allowed: labels")
    try:
        lines = [line.strip() for line in config.prompts.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"prompts={str(config.prompts)!r} is no text ({error}); allowed: UTF-8") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UsageError(f"prompts={str(config.prompts)!r} is empty; allowed: one prompt per line")
    return prompts


def sized(config: SizedConfig, sampler: Sampler) -> dict[str, int]:
    """Return the size that is asked for, as the pipeline's arguments have it.

    Raises:
        UsageError: the pipeline takes none of that.
    """
    takes = inspect.signature(type(sampler.pipe).__call__).parameters
    asked = {"height": config.height, "width": config.width, "num_frames": config.frames}
    size = {name: value for name, value in asked.items() if value is not None}
    for name, value in size.items():
        if name not in takes:
            field = name.removeprefix("num_")
            raise UsageError(f"{field}={value!r} means nothing to model={config.model!r}; allowed: its own")
    return size


def only_images(sampler: Sampler, command: str) -> None:
    """Raise UsageError if a model draws videos, for a command that looks at images."""
    if draws_videos(sampler.pipe):
        raise UsageError(
            f"model={sampler.name!r} draws videos, and {command} compares images; allowed: a model of images"
        )


def _allowed() -> str:
    return f"{', '.join(EMBEDDED)}, a hub name, or a folder"


def _demo() -> Sampler:
    return _drawing_classes("demo", load_embedded(), guidance=1.5)


def _demo_lcm() -> Sampler:
    return _drawing_classes("demo-lcm", load_embedded("textured-digits-lcm"), steps=4, guidance=1.0)


def _pretrained(name: str, dtype: Dtype | None) -> Sampler:
    check_configs(Path(name))
    if is_pixel_pipeline(Path(name)):
        return _drawing_classes(name, load_pixel_pipeline(Path(name)), guidance=1.5)
    with quiet_loading(), hub_errors("model", name, _allowed()):
        folder = name if Path(name).is_dir() else DiffusionPipeline.download(_HUB_NAMES.get(name, name))
        wanted = stored_dtype(Path(folder)) if dtype is None else DTYPES[dtype]
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=wanted)
    try:
        transformer: Any = transformers_of(pipe)[0]
    except ValueError as error:
        raise UsageError(
            f"model={name!r} is a {type(pipe).__name__} without a transformer; allowed: one that has it"
        ) from error
    if hasattr(transformer.config, "num_embeds_ada_norm") and not hasattr(pipe, "tokenizer"):
        return _drawing_classes(name, pipe, guidance=4.0)
    usual = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    guidance = usual.default if usual is not None and isinstance(usual.default, float) else 4.5
    return Sampler(name, pipe, ["a photograph of an astronaut riding a horse"], "prompt", guidance=guidance)


def check_configs(folder: Path) -> None:
    """Refuse a pipeline's folder with a config that is no JSON object: diffusers would look for it on the hub.

    Raises:
        RunError: names the first such file.
    """
    for path in (*folder.glob("model_index.json"), *folder.glob("*/*config.json")):
        read_json(path)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that the transformer of a pipeline's folder is stored in; float32 if its files do not tell."""
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        if len(path.suffixes) == 1:  # else a variant, as in "….fp16.safetensors"
            with safe_open(path, framework="pt") as file:
                stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return next((dtype for name, dtype in STORED.items() if name in stored), torch.float32)
    return torch.float32


def _drawing_classes(name: str, pipe: Any, **defaults: Any) -> Sampler:
    return Sampler(name, pipe, list(range(pipe.transformer.config.num_embeds_ada_norm)), "class_labels", **defaults)


def _solver() -> Any:
    return DPMSolverMultistepScheduler()


def _random_dit() -> Sampler:
    transformer = DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32
    )
    open_gates(transformer)
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=32)
    pipe = DiTPipeline(transformer, vae, _solver())
    return _drawing_classes("dit-xl-2-256", pipe, guidance=4.0)


def _random_pixart() -> Sampler:
    transformer = PixArtTransformer2DModel(sample_size=64, use_additional_conditions=False, caption_channels=4096)
    open_gates(transformer)
    channels: Any = (32, 32, 32, 32)  # a small decoder to as many pixels as the real one's
    vae = AutoencoderKL(block_out_channels=channels, latent_channels=4, norm_num_groups=32)
    absent: Any = None  # tokenizer and text encoder: the embeddings below stand in for them
    pipe = PixArtAlphaPipeline(absent, absent, vae, transformer, _solver())

    def embeddings(count: int) -> dict[str, Any]:
        random = torch.Generator().manual_seed(derived_seed(0, 1))
        prompt = torch.randn(2, 120, 4096, generator=random)
        mask = torch.ones(count, 120)
        return {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": prompt[:1].expand(count, -1, -1),
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": prompt[1:].expand(count, -1, -1),
            "negative_prompt_attention_mask": mask,
            "use_resolution_binning": False,
        }

    return Sampler("pixart-alpha-512", pipe, [""], "prompt", extra=embeddings)


def open_gates(transformer: nn.Module) -> None:
    """Give the gates and modulations of a randomly initialised transformer weights that let its blocks matter."""
    random = torch.Generator().manual_seed(0)
    for name, parameter in transformer.named_parameters():
        if "scale_shift_table" in name or "norm1.linear" in name or "adaln" in name.lower():
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * GATE_STD / parameter.shape[-1] ** 0.5)


_HUB_NAMES = {"dit-xl-2-256": "facebook/DiT-XL-2-256", "pixart-alpha-512": "PixArt-alpha/PixArt-XL-2-512x512"}
EMBEDDED: dict[str, Callable[[], Sampler]] = {"demo": _demo, "demo-lcm": _demo_lcm}
"""The shipped models: those whose pictures the judge can read."""
_RANDOM: dict[str, Callable[[], Sampler]] = {"dit-xl-2-256": _random_dit, "pixart-alpha-512": _random_pixart}

"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from frugal_shared.config import CommandConfig, RunConfig
from frugal_shared.errors import UsageError, check_choice, check_positive, check_range

DINOV2, EFFICIENTNET = "dinov2-vits14", "efficientnet-lite0"
EMBEDDED = (DINOV2, EFFICIENTNET)
ANGLE = "angle"
"""The strategy that is found by angle-guided selection."""
DELTA = "delta"
"""What was tuned: a subfolder of a run folder."""
Direction = Literal["largest", "smallest", "auto"]
Dtype = Literal["fp32", "bf16", "fp16"]
Soup = Literal["uniform", "greedy", "union", "per-part-mean", "wise-ft"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(RunConfig):
    """Options of the commands that compute with a network."""

    dtype: Dtype = "fp32"
    """What the network computes in; its weights stay fp32, because angles and deltas need all of their digits."""

    @property
    def mixed_precision(self) -> Literal["no", "bf16", "fp16"]:
        """The same as Accelerate calls it."""
        return "no" if self.dtype == "fp32" else self.dtype


@dataclass(frozen=True, kw_only=True)
class BaseConfig(ComputeConfig):
    """Options of the commands that need a pretrained model and data."""

    model: str = DINOV2
    """"dinov2-vits14", "efficientnet-lite0", or a name of timm's, such as "vit_base_patch16_224.augreg_in21k"."""
    weights: Path | None = None
    """A local file with the timm model's pretrained weights; unset: timm fetches its own."""
    image_size: int | None = None
    """Side of the square images in pixels; unset: 98 for "dinov2-vits14", else what the model was trained at."""
    data: str = "elpv"
    """"elpv", "digits", "textured-digits", "torchvision:NAME:ROOT", or a folder with a subfolder per class."""
    samples: int | None = None
    """At most so many training images, of each class in proportion; unset: all."""
    val_samples: int | None = None
    """At most so many validation images; unset: all."""
    val_share: float = 0.2
    """Share of the training images to select by, where the data has no validation images of its own."""
    batch_size: int = 32
    """Global batch: the processes share it."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "batch_size")
        for name in ("samples", "val_samples", "image_size"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share={self.val_share!r} is not possible; allowed: above 0, below 1")
        if self.weights is not None and self.model in EMBEDDED:
            raise UsageError(f"weights={str(self.weights)!r} with model={self.model!r}; allowed: a model of timm's")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(BaseConfig):
    """Options of the commands that train."""

    epochs: int = 10
    """Passes over the training images."""
    learning_rate: float = 1e-4
    """Peak of the cosine, of the head; to be swept for every strategy."""
    weight_decay: float = 0.05
    """AdamW's, of matrices."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises."""
    layer_decay: float | None = None
    """Factor of the learning rate from a layer to the one below; unset: the same for all."""
    clip_grad: float = 1.0
    """Largest norm of the tuned weights' gradient."""
    drop_path: float = 0.0
    """Rate of stochastic depth."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Mixup's α; 0: none."""
    cutmix: float = 0.0
    """CutMix's α; 0: none."""
    auto_augment: str | None = None
    """timm's policy, such as "rand-m9-mstd0.5-inc1"; unset: none."""
    crop_scale: float = 0.7
    """Smallest share of the image's area that a random crop keeps; 1: no crop."""
    ema: float | None = None
    """Decay of the tuned tensors' moving average, which is then what is evaluated and saved."""
    fit_head: bool = True
    """Start from a head fitted to the pretrained features (LP-FT), not from a random one."""
    workers: int = 0
    """Processes that load images; the result does not depend on it."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "epochs", "learning_rate", "clip_grad", "save_every")
        for name in ("warm_up", "drop_path", "label_smoothing"):
            check_range(name, getattr(self, name), 0, 0.99)
        check_range("weight_decay", self.weight_decay, 0, 10)
        for name in ("mixup", "cutmix", "workers"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)!r} is not possible; allowed: 0 or more")
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"crop_scale={self.crop_scale!r} is out of range; allowed: above 0, at most 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UsageError(f"ema={self.ema!r} is out of range; allowed: 0 or more, below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer_decay={self.layer_decay!r} is out of range; allowed: above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(RecipeConfig):
    """Options of the commands that may select by the fine-tuned angle."""

    top_k: int = 3
    """Layers that are tuned of every homogeneous group, when the angle chooses."""
    direction: Direction = "auto"
    """Layers with the "largest" or the "smallest" angles, or "auto": what wins on validation images."""
    select_epochs: int = 2
    """Passes of each short full fine-tuning that measures the angles."""
    select_repeats: int = 2
    """Short full fine-tunings, each with other batches: how well their rankings agree is reported."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "top_k", "select_epochs", "select_repeats")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SelectionConfig):
    """Fine-tune the parts of a pretrained model that a strategy names."""

    output_dir: Path = Path("runs/train")
    """The run folder; what was tuned is its subfolder "delta"."""
    strategy: str = "attn"
    """What is tuned: an expression such as "attn | ffn[6:12]", a preset such as "last_half", or "angle"."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(SelectionConfig):
    """Find the layers to tune by the fine-tuned angle, and write the expression that names them."""

    output_dir: Path = Path("runs/select")
    """The run folder: selection.json with the expression, angles, stability, and the race."""


@dataclass(frozen=True, kw_only=True)
class DeltaConfig(RunConfig):
    """Options of the commands that read what was tuned."""

    deltas: Annotated[tuple[Path, ...], Positional] = ()
    """Folders that `train` or `soup` wrote, or run folders that hold one as "delta"."""
    weights: Path | None = None
    """The local file of the pretrained weights, if `train` was given one and it lies elsewhere now."""
    json: Path | None = None
    """Write the rows to this file, too."""


@dataclass(frozen=True, kw_only=True)
class AnglesConfig(DeltaConfig):
    """Show the angle between pretrained and tuned weights of every unit."""

    output_dir: Path = Path("runs/angles")
    """The run folder: rows.json and report.html."""
    biases: bool = False
    """Count biases and norms, too, not the matrices alone."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DeltaConfig, ComputeConfig):
    """Evaluate tuned models: clean, corrupted, and on shifted data sets."""

    output_dir: Path = Path("runs/eval")
    """The run folder: rows.json, rows.csv and report.html."""
    data: str | None = None
    """Data whose test images to use; unset: what the model was tuned on."""
    limit: int | None = None
    """At most so many test images; unset: all."""
    corruptions: tuple[str, ...] = ("all",)
    """Own corruptions of the test images by name, "all" or "none"."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """How strong, 1 to 5."""
    shifts: tuple[str, ...] = ()
    """Shifted data sets as KIND:FOLDER; kinds: imagenet-v2, -r, -a, -sketch, -c, cifar-10-c, cifar-100-c."""
    batch_size: int = 64
    """Images at once."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "batch_size")
        if self.limit is not None:
            check_positive(self, "limit")
        for severity in self.severities:
            check_choice("severities", severity, (1, 2, 3, 4, 5))


@dataclass(frozen=True, kw_only=True)
class SoupConfig(DeltaConfig, ComputeConfig):
    """Make one model of several that were tuned from the same start."""

    output_dir: Path = Path("runs/soup")
    """The run folder; the soup is its subfolder "delta"."""
    kind: Soup = "uniform"
    """How: uniform or greedy mean, union (task arithmetic), mean per part, or WiSE-FT of a single one."""
    scale: float = 1.0
    """λ of a union."""
    alpha: float = 0.5
    """Of WiSE-FT: 0 is the pretrained model, 1 the tuned one."""
    batch_size: int = 64
    """Images at once, where a greedy soup is validated."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "batch_size")
        check_range("alpha", self.alpha, 0, 1)
        if self.kind == "wise-ft" and len(self.deltas) != 1:
            raise UsageError(f"{len(self.deltas)} deltas with kind='wise-ft'; allowed: one")


@dataclass(frozen=True, kw_only=True)
class MergeConfig(CommandConfig):
    """Write the whole tuned model as a plain timm state dict."""

    deltas: Annotated[tuple[Path, ...], Positional] = ()
    """One folder that `train` or `soup` wrote, or a run folder that holds one as "delta"."""
    output: Path = Path("merged.safetensors")
    """The safetensors file to write."""
    dtype: Dtype = "fp32"
    """Of the file's tensors; half precision takes half the space, and does not give the tuned bytes back."""
    weights: Path | None = None
    """The local file of the pretrained weights, if `train` was given one and it lies elsewhere now."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SelectionConfig):
    """Train strategies × learning rates × seeds, and report accuracy against parameters, memory and time.

    Without options: DINOv2 on photographs of solar cells at 70 pixels, which two CPU cores finish in about two hours.
    """

    output_dir: Path = Path("runs/sweep")
    """The run folder: a folder per cell, rows.json, report.html."""
    image_size: int | None = 70
    """Side of the square images in pixels; "None": see `train`."""
    samples: int | None = 200
    """At most so many training images, other ones for every seed; "None": all."""
    val_samples: int | None = 200
    """At most so many validation images; "None": all."""
    epochs: int = 3
    """Passes over the training images."""
    batch_size: int = 16
    """Global batch: the processes share it."""
    select_epochs: int = 1
    """Passes of each short full fine-tuning that measures the angles."""
    strategies: tuple[str, ...] = ()
    """Expressions and presets; unset: the eight strategies, their references, the angle's choice and random layers."""
    seeds: int = 5
    """How many."""
    rate_seeds: int = 1
    """Seeds whose validation accuracy chooses each strategy's learning rate; the others are trained at that one."""
    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)
    """Swept for every strategy alike."""
    limit: int | None = 160
    """At most so many test images; "None": all."""
    corruptions: tuple[str, ...] = ("gaussian_noise", "defocus_blur", "contrast")
    """Of the test images, for the shifted accuracy."""
    severity: int = 3
    """How strong, 1 to 5."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "seeds", "rate_seeds")
        check_choice("severity", self.severity, (1, 2, 3, 4, 5))
        if not self.learning_rates:
            raise UsageError("learning_rates=() is empty; allowed: one or more")
        if self.rate_seeds > self.seeds:
            raise UsageError(f"rate_seeds={self.rate_seeds!r} is more than seeds={self.seeds!r}")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ComputeConfig):
    """Time a training step of every strategy against full fine-tuning, in pairs, and beside the ideal."""

    output_dir: Path = Path("runs/bench")
    """The run folder: rows.json, report.html."""
    models: tuple[str, ...] = (DINOV2, "vit_base_patch16_224")
    """Shapes that are timed; of timm's names with random weights."""
    batch_size: int = 8
    """Images per step."""
    repeats: int = 6
    """Timed pairs."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "batch_size", "repeats")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ComputeConfig):
    """Fine-tune DINOv2 on real photographs of solar cells in five ways, beside training from scratch."""

    output_dir: Path = Path("runs/partial-finetune")
    """The run folder: results and report.html."""
    samples: int = 200
    """Photographs to train on."""
    epochs: int = 2
    """Passes over them."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "epochs")

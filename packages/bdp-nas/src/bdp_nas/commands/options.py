"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from bdp_nas.searchers import SEARCHERS
from bdp_nas.spaces import SPACES
from frugal_shared.config import CommandConfig, RunConfig
from frugal_shared.errors import UsageError, check_choice, check_positive, check_range

DType = Literal["fp32", "bf16", "fp16"]
Pruning = Literal["none", "random", "infobatch", "bdp"]
Levels = Literal["both", "weights", "architecture"]
Augmentation = Literal["flip", "crop", "cutout"]
ScoreName = Literal["std", "dual", "mean_prob", "loss", "abs_delta", "el2n", "forgetting", "entropy", "random"]
Direction = Literal["high", "low", "mid", "both_tails"]
Curve = Literal["linear", "geometric", "steps"]
Variant = Literal["none", "random", "infobatch", "bdp", "bdp-no-balance", "bdp-weights", "bdp-architecture"]
VARIANTS: tuple[Variant, ...] = (
    "none",
    "random",
    "infobatch",
    "bdp",
    "bdp-no-balance",
    "bdp-weights",
    "bdp-architecture",
)
"""What an ablation compares: no pruning, the controls, and BDP as it is, without balance, and on one level alone."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(RunConfig):
    """Options of the commands that train on images."""

    data: str = "digits"
    """"digits", "textured-digits", "elpv", "torchvision:NAME:ROOT", or a folder with a subfolder per class."""
    image_size: int | None = None
    """Side of the square images in pixels; unset: as they are, of "elpv" 32."""
    samples: int | None = None
    """At most so many training images, of each class in proportion; unset: all."""
    val_share: float = 0.1
    """Share of the training images that only validate, where the data has no validation images of its own; 0: none."""
    augment: tuple[Augmentation, ...] = ("crop",)
    """Random changes of training images: "flip" (left to right), "crop" (a shift by up to 1/8), "cutout" (half)."""
    space: str = "nasbench201"
    """"nasbench201", "darts", "mobilenet" or "macro"."""
    channels: int = 16
    """Width: channels of the first stage."""
    cells: int = 5
    """Depth: cells of each of the three stages in "nasbench201", of all in "darts", blocks of a stage in others."""
    epochs: int = 50
    """Passes over what is kept of the training images."""
    batch_size: int = 64
    """Global batch, at most: the processes share it, and an epoch is divided into batches of nearly equal size."""
    learning_rate: float = 0.025
    """Of the weights (SGD), in the beginning; a cosine over the epochs lowers it."""
    weight_decay: float = 3e-4
    """Of the weights."""
    clip_grad: float = 5.0
    """Largest norm of the weights' gradient."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_choice("space", self.space, SPACES)
        check_positive(self, "channels", "cells", "epochs", "batch_size", "learning_rate", "clip_grad")
        for name in ("image_size", "samples"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        check_range("weight_decay", self.weight_decay, 0, 1)
        if not 0 <= self.val_share < 1:
            raise UsageError(f"val_share={self.val_share!r} is not possible; allowed: 0 or more, below 1")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TaskConfig):
    """Search an architecture, on ever fewer samples."""

    output_dir: Path = Path("runs/search")
    """The run folder: found.json (genotype, costs, history), supernet.safetensors, genotype.json, options.json."""
    searcher: str = "darts"
    """"darts", "darts-2", "pc-darts", "beta-darts" or "random"."""
    searcher_options: tuple[str, ...] = ()
    """The searcher's own options as NAME=VALUE, such as "learning_rate=1e-3" of α, or "partial=2" of "pc-darts"."""
    parts: int = 2
    """Parts of a batch that have batch norms of their own: with 2, one process and two search alike, bit for bit. 1 is
    faster where images are tiny, or on a GPU."""
    final_learning_rate: float = 0.001
    """Of the weights, in the end."""
    pruning: Pruning = "bdp"
    """"bdp"; "random" keeps as many, drawn; "infobatch" draws anew in every epoch; "none"."""
    levels: Levels = "both"
    """Where samples are pruned. Steps are as many as the longer level needs, so that one alone saves no time."""
    keep_final: float = 0.2
    """Share of the samples that each level keeps in the end."""
    warm_up: float = 0.1
    """Share of the epochs before anything is pruned."""
    keep_end: float = 0.5
    """Share of the epochs after which nothing more is pruned."""
    keep_shape: Curve = "geometric"
    """How the kept share falls in between; "geometric" prunes most at first."""
    keep_every: int = 5
    """Epochs between two prunings of keep_shape "steps"."""
    score: ScoreName = "abs_delta"
    """The samples' prediction dynamics that "bdp" ranks by; the default was the best of eight on digits, by little."""
    window: int = 5
    """Epochs that a score looks back."""
    weights_direction: Direction = "high"
    """Which scores the weights' level keeps."""
    architecture_direction: Direction = "both_tails"
    """Which scores the architecture's level keeps."""
    tau: float = 0.1
    """By which share a class may be kept more or less than all are; 0: the classes' shares stay, inf: no balance."""
    min_per_class: int = 1
    """Samples that each level keeps of every class."""
    recycle: float = 0.0
    """Share of the pruned samples that come back, drawn, whenever others are pruned."""
    skip_limit: float = 0.5
    """Warn of a collapse if more than this share of the found operations does nothing."""
    table: Path | None = None
    """Of accuracies: look up what was found (see `query`)."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_choice("searcher", self.searcher, SEARCHERS)
        check_positive(self, "parts", "final_learning_rate", "keep_every", "window", "min_per_class")
        check_range("tau", self.tau, 0, inf)
        check_range("recycle", self.recycle, 0, 1)
        check_range("skip_limit", self.skip_limit, 0, 1)
        if not 0 < self.keep_final <= 1:
            raise UsageError(f"keep_final={self.keep_final!r} is not possible; allowed: above 0, at most 1")
        if not 0 <= self.warm_up < self.keep_end <= 1:
            raise UsageError(
                f"warm_up={self.warm_up!r}, keep_end={self.keep_end!r} is not possible; "
                "allowed: 0 ≤ warm_up < keep_end ≤ 1"
            )


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(TaskConfig):
    """Train the network of a genotype from scratch."""

    genotype: Annotated[str, Positional] = "runs/search"
    """A genotype, or the run folder of a search, which also names the space."""
    output_dir: Path = Path("runs/retrain")
    """The run folder: results, genotype.json, network.safetensors."""
    epochs: int = 100
    """Passes over the training images."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    drop_path: float = 0.0
    """Chance to drop an operation's output, reached in the last epoch; published for "darts": 0.2."""
    auxiliary: float = 0.0
    """Weight of a second classifier's loss; only in "darts", published: 0.4."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("label_smoothing", "drop_path"):
            check_range(name, getattr(self, name), 0, 0.99)
        check_range("auxiliary", self.auxiliary, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommandConfig):
    """Write a network that needs nothing but torch, or an ONNX runtime."""

    source: Annotated[Path, Positional] = Path("runs/retrain")
    """The run folder of a retraining or of a search."""
    output_dir: Path = Path("runs/export")
    """Gets network.pt2 (a torch.export program), network.safetensors and genotype.json."""
    inherit: bool = False
    """From a search: with the supernet's weights, its batch norms calibrated anew; else they are random."""
    dtype: DType = "fp32"
    """Of the weights, and of the images that network.pt2 and network.onnx take: "fp32", "bf16" or "fp16"."""
    onnx: bool = False
    """Also write network.onnx; needs the [onnx] extra."""
    seed: int = 0
    """Of random weights."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig(CommandConfig):
    """Look up accuracy, rank and regret of a cell in a table."""

    genotype: Annotated[str, Positional] = "runs/search"
    """A genotype, or the run folder of a search."""
    table: Path | None = None
    """Made by `build-table`; also read as it is: a published nas-bench-macro_cifar10.json."""
    json: Path | None = None
    """Write the rows to this file, too."""


@dataclass(frozen=True, kw_only=True)
class BuildTableConfig(CommandConfig):
    """Convert the published files of NAS-Bench-201, NATS-Bench or NAS-Bench-Macro to a small table without pickles."""

    source: Annotated[Path, Positional] = Path("NAS-Bench-201-v1_1-096897.pth")
    """A NAS-Bench-201 .pth, an unpacked NATS-tss folder ("…-simple"), or any table that `query` reads."""
    output: Path = Path("nasbench201.npz")
    """The table to write."""
    epochs: Literal[12, 200] = 200
    """Of the published trainings, those with so many epochs."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig(RunConfig):
    """Compare searchers with and without every kind of pruning: costs, and accuracy of what they found."""

    output_dir: Path = Path("runs/ablate")
    """The run folder: a folder per cell, rows.json, rows.csv and report.html."""
    preset: Literal["small"] = "small"
    """Sizes and recipes; "small" is made for two CPU cores."""
    data: str | None = None
    """See `search`; unset: the preset's."""
    searchers: tuple[str, ...] = ("darts", "pc-darts", "beta-darts")
    """Which ones."""
    variants: tuple[Variant, ...] = VARIANTS
    """Kinds of pruning: the controls, and BDP whole or without one of its parts."""
    score: ScoreName = "abs_delta"
    """Of all variants of BDP."""
    seeds: int = 3
    """How many; each has another split, other weights and other batches."""
    samples: int | None = None
    """At most so many training images; unset: the preset's."""
    epochs: int | None = None
    """Of each search; unset: the preset's."""
    retrain_epochs: int | None = None
    """Of each retraining; unset: the preset's."""
    table: Path | None = None
    """Of accuracies: add columns cifar10, cifar100 and imagenet16 of what was found."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "seeds")
        for name in ("samples", "epochs", "retrain_epochs"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for name in ("searchers", "variants"):
            if not getattr(self, name):
                raise UsageError(f"{name}=() is empty; allowed: one or more")
        for searcher in self.searchers:
            check_choice("searchers", searcher, SEARCHERS)


@dataclass(frozen=True, kw_only=True)
class PlotConfig(CommandConfig):
    """Draw a search: its cell, α over time, kept samples per class, a wall of pruned and kept pictures."""

    source: Annotated[Path, Positional] = Path("runs/search")
    """The run folder of a search."""
    output_dir: Path | None = None
    """Where the pictures go; unset: the search's subfolder "plots"."""
    pictures: int = 40
    """Pictures on each half of the wall."""
    format: Literal["svg", "png", "pdf"] = "svg"
    """Of the plots; the wall is a PNG."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive(self, "pictures")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig):
    """Time what pruning costs beside what it saves, and a step of every searcher."""

    output_dir: Path = Path("runs/bench")
    """The run folder: rows.json, report.html."""
    samples: int = 50_000
    """Samples whose dynamics are kept."""
    repeats: int = 5
    """Timed pairs."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "repeats")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(RunConfig):
    """Search on real data without and with pruning, retrain both cells, and show costs, cells and what was pruned."""

    output_dir: Path = Path("runs/bdp-nas")
    """The run folder: results and report.html."""
    data: tuple[str, ...] = ("digits", "elpv")
    """See `search`."""
    samples: int | None = None
    """At most so many training images of each data set; unset: the demo's own choice."""
    epochs: int | None = None
    """Of each search; unset: the demo's own choice."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("samples", "epochs"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if not self.data:
            raise UsageError("data=() is empty; allowed: one or more")

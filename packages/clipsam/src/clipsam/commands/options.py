"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError, check_choice, check_positive, check_range

EMBEDDED, NONE = "embedded", "none"
SAMS = (EMBEDDED, NONE, "vit_b", "vit_l", "vit_h")
# as in the library, which would bring torch along
Mode = Literal["soft", "paper"]
Stage = Literal["clip", "umci", "mmr"]
Score = Literal["map", "distance", "combined", "mutual"]
Pooling = Literal["max", "quantile", "top-mean"]
Dtype = Literal["fp32", "bf16", "fp16"]
MOST_REFERENCES = 1000  # of each category: they stay in memory


@dataclass(frozen=True, kw_only=True)
class ModelConfig(RunConfig):
    """Options of the commands that run models."""

    dtype: Dtype = "fp32"
    """What the towers, CLIP's and SAM's, compute in; heads, prompts and maps stay in fp32."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ModelConfig):
    """Options of the commands that need a CLIP."""

    clip: str = EMBEDDED
    """"embedded", or a name of open_clip's, such as "ViT-L-14-336-quickgelu"."""
    clip_weights: str | None = None
    """open_clip's tag, such as "openai", or the path of a file; unset: random weights, for speed only."""
    image_size: int | None = None
    """Side of the square that CLIP sees; unset: the checkpoint's, else 224 for the embedded CLIP and 518 for others."""
    prompts: Path | None = None
    """A YAML file with normal_states, abnormal_states and templates; unset: the package's own."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.image_size is not None:
            check_positive(self, "image_size")
        if self.clip == EMBEDDED and self.clip_weights is not None:
            raise UsageError(f"clip_weights={self.clip_weights!r} with clip='embedded'; allowed: a name of open_clip's")


@dataclass(frozen=True, kw_only=True)
class SamConfig(ModelConfig):
    """Options of the commands that refine with SAM."""

    sam: str = EMBEDDED
    """"embedded", "none", "vit_b", "vit_l" or "vit_h"."""
    sam_weights: Path | None = None
    """The file of a published SAM's weights."""
    mode: Mode = "soft"
    """How masks and rough map are joined: "soft", or "paper" for the figure taken literally."""
    threshold: float | None = None
    """On the rough map, above which SAM is asked; unset: the checkpoint's, else 0.5."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_choice("sam", self.sam, SAMS)
        published = self.sam not in (EMBEDDED, NONE)
        if published and self.sam_weights is None:
            raise UsageError(f"sam={self.sam!r} needs its weights; allowed: --sam-weights FILE")
        if not published and self.sam_weights is not None:
            raise UsageError(
                f"sam_weights={str(self.sam_weights)!r} with sam={self.sam!r}; allowed: vit_b, vit_l, vit_h"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"threshold={self.threshold!r} is not possible; allowed: between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(SamConfig, ClipConfig):
    """Options of the commands that run the whole pipeline."""

    checkpoint: str | None = None
    """Folder of trained UMCI heads, or "none" for texts alone; unset: the embedded ones with the embedded CLIP."""
    pooling: Pooling = "max"
    """How a map becomes its image's score: its highest value, or the value or the mean of its top 1 %."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.checkpoint is None and self.clip != EMBEDDED:
            raise UsageError(f"clip={self.clip!r} has no embedded heads; allowed: --checkpoint FOLDER, or none")


@dataclass(frozen=True, kw_only=True)
class PartConfig(PipelineConfig):
    """Options of the commands that look at images of one kind of part."""

    images: Annotated[tuple[Path, ...], Positional] = ()
    """Image files."""
    category: str = "object"
    """What the images show, such as "metal nut"; "object" for anything."""
    references: tuple[Path, ...] = ()
    """Other images of the same kind, 8 to 16, most of them sound: a patch counts as it is unlike all of them, too."""
    score: Score | None = None
    """What maps and scores are made of: the rough "map", the "distance" to references, both "combined", or "mutual",
    the distance to all other images of the command; unset: "combined" with references, else "map"."""
    turn: bool = False
    """Keep every reference in all of its eight positions, for parts that lie as they fell."""
    batch_size: int = 8
    """Images that CLIP sees at once."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "batch_size")
        if not self.category.strip():
            raise UsageError(f"category={self.category!r} is empty; allowed: a word such as 'object'")
        if self.score in ("distance", "combined") and not self.references:
            raise UsageError(f"score={self.score!r} without references; allowed: --references IMAGE ...")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(PartConfig):
    """Segment the anomalies in images: maps, masks, overlays and a JSON."""

    output_dir: Path = Path("runs/segment")
    """The run folder: per image <name>_map.png, <name>_mask.png, <name>_overlay.png, and segmentations.json."""
    calibration: Path | None = None
    """What `calibrate` wrote, with the same options: then every image gets a verdict, and masks its threshold."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.calibration is not None and self.threshold is not None:
            raise UsageError(f"threshold={self.threshold!r} contradicts the calibration's; allowed: one of them")


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(PartConfig):
    """Find the score from which on an image is defective, from sound images or from labelled ones."""

    images: Annotated[tuple[Path, ...], Positional] = ()
    """Sound images, or folders of them; with --adaptive a folder with labels, such as good/ and scratch/."""
    alpha: float = 0.05
    """The false-alarm rate that is to hold for sound images to come; 0.05 needs 19 images, 0.01 needs 99."""
    adaptive: bool = False
    """Take the threshold of the best F1 on labelled images instead."""
    output: Path | None = None
    """The calibration's file; unset: calibration.json in the run folder."""
    output_dir: Path = Path("runs/calibrate")
    """The run folder."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha={self.alpha!r} is not possible; allowed: between 0 and 1")
        if self.score == "mutual":
            raise UsageError("score='mutual' depends on the images beside; allowed: map, distance, combined")


@dataclass(frozen=True, kw_only=True)
class RefineConfig(SamConfig):
    """Refine anomaly maps of any method with SAM."""

    images: Annotated[tuple[Path, ...], Positional] = ()
    """Image files."""
    maps: tuple[Path, ...] = ()
    """One map per image: .npy with numbers in [0, 1], or a grey image, of which white is 1."""
    output_dir: Path = Path("runs/refine")
    """The run folder, as that of `segment`."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if len(self.maps) != len(self.images):
            raise UsageError(f"{len(self.maps)} maps for {len(self.images)} images; allowed: one map for each")
        check_choice("sam", self.sam, [sam for sam in SAMS if sam != NONE])


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(RunConfig):
    """Options of the commands that train on a frozen tower's features."""

    images: int = 4000
    """Drawn images to train on."""
    val_images: int = 320
    """Drawn images to validate on; folders hold back as many, but at most a fifth."""
    features: Path | None = None
    """Folder that keeps the frozen tower's features of all images; unset: "features" in the run folder."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Global batch: the processes share it."""
    learning_rate: float = 1e-3
    """Peak of the cosine, after the warm-up."""
    save_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "images", "val_images", "steps", "batch_size", "learning_rate", "save_every")

    @property
    def recipe(self) -> dict[str, Any]:
        """What the embedded models' recipes take."""
        names = ("images", "val_images", "features", "steps", "batch_size", "learning_rate", "save_every", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ClipConfig, RecipeConfig):
    """Train UMCI on a frozen CLIP."""

    output_dir: Path = Path("runs/train")
    """The run folder; the best checkpoint by validation AP is its subfolder "best"."""
    data: tuple[str, ...] = ("procedural", "photographs")
    """"procedural", "photographs", or folders of data sets, whose test split has the masks."""
    steps: int = 600
    """Optimizer steps: on drawn images more of them fit the training's categories and lose the others."""
    save_every: int = 50
    """Steps between checkpoints, each with a validation."""
    hidden: int = 64
    """d, width of UMCI; the paper's order of magnitude is several hundred."""
    pool_kernels: tuple[int, int] = (1, 3)
    """Sides of the two coarse cells, in patches."""
    pool_stride: int | None = 1
    """Distance between cells; "None": their own side."""
    stages: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks of the visual tower, counted from 0, whose patch tokens are used; of ViT-L-14-336: 5 11 17 23."""
    rarity: bool = True
    """Whether the image's score counts an anomaly by how rare it is in its image; tried with the embedded CLIP only."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "hidden")
        if not self.data:
            raise UsageError("data=() is empty; allowed: procedural, photographs, or folders")


@dataclass(frozen=True, kw_only=True)
class TrainTextConfig(RecipeConfig):
    """Train the embedded CLIP's text tower against its frozen visual tower."""

    output_dir: Path = Path("runs/train-text")
    """The run folder; the weights are its clip.safetensors."""
    batch_size: int = 96
    """Regions of images per step, each with a caption."""


@dataclass(frozen=True, kw_only=True)
class TrainSamConfig(RecipeConfig):
    """Train the embedded SAM: prompt encoder and mask decoder on the frozen visual tower."""

    output_dir: Path = Path("runs/train-sam")
    """The run folder; the weights are its sam.safetensors."""
    batch_size: int = 8
    """Images per step, each with several prompts: the processes share them."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(PipelineConfig):
    """Evaluate a checkpoint on data sets: table, CSV, JSON and a report with the worst cases."""

    output_dir: Path = Path("runs/eval")
    """The run folder: rows.json, rows.csv, report.html."""
    data: tuple[str, ...] = ("procedural",)
    """"procedural" (held-out categories), "photographs", "cells", "elpv-mono", "elpv-poly", or folders of data sets."""
    stages: tuple[Stage, ...] = ("clip", "umci", "mmr")
    """Which rows: texts alone, with UMCI, with UMCI and MMR."""
    samples: int = 200
    """Images drawn of each data set that is drawn."""
    batch_size: int = 16
    """Images that CLIP sees at once."""
    zero_shot: bool = False
    """Call the result zero-shot: refused if the checkpoint was trained on any of the data, and with references."""
    references: int = 0
    """Rows more, "distance" and "combined": beside so many images of each category's train split, labels unused."""
    score: tuple[Score, ...] = ()
    """Other rows: "map" without and "mutual" with the test images themselves as references; unset: both above."""
    fpr_limit: float = 0.3
    """False positive rate up to which AUPRO integrates."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size")
        check_range("fpr_limit", self.fpr_limit, 1e-6, 1)
        check_range("references", self.references, 0, MOST_REFERENCES)
        if self.references and self.zero_shot:
            raise UsageError(f"references={self.references!r} with zero_shot is not zero-shot; allowed: either")
        if not self.references and {"distance", "combined"} & set(self.score):
            raise UsageError(f"score={self.score!r} without references; allowed: map, mutual, or --references K")
        for name, given in (("data", self.data), ("stages", self.stages)):
            if not given:
                raise UsageError(f"{name}=() is empty; allowed: one or more")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ModelConfig):
    """Time the parts: decoding of many prompts, streaming metrics, and every stage of the pipeline."""

    output_dir: Path = Path("runs/bench")
    """The run folder: rows.json, report.html."""
    prompts: int = 64
    """Prompts on one image."""
    pixels: int = 20
    """Megapixels that the metrics see."""
    repeats: int = 5
    """Timed pairs, and timed images of every stage."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "prompts", "pixels", "repeats")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ModelConfig):
    """Segment real photographs of solar cells that the embedded models never saw."""

    output_dir: Path = Path("runs/clipsam")
    """The run folder: results and report.html."""
    samples: int = 126
    """Images with masks, of each kind and seed."""
    cells: int = 200
    """At most so many solar cells of each type and kind."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "cells")

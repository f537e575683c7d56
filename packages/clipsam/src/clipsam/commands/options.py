"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError, check_positive, check_range

EMBEDDED, NONE = "embedded", "none"
SAMS = "embedded, none, or a file or folder of SAM's weights"
# as in the library, which would bring torch along
Mode = Literal["soft", "paper"]
Stage = Literal["clip", "umci", "mmr"]
Score = Literal["map", "distance", "combined", "mutual"]
Pooling = Literal["max", "quantile", "top-mean"]
Dtype = Literal["fp32", "bf16", "fp16"]
Format = Literal["coco", "labelme"]
SMALLEST_TILE = 16  # pixels
MOST_REFERENCES = 1000  # of each category: they stay in memory


@dataclass(frozen=True, kw_only=True)
class ModelConfig(RunConfig):
    """Options of the commands that run models."""

    dtype: Dtype = "fp32"
    """What the towers, CLIP's and SAM's, compute in; heads, prompts and maps stay in fp32."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ModelConfig):
    """Options of the commands that need a CLIP."""

    clip: str | None = None
    """"embedded"; OpenAI's .pt; a folder of transformers' or open_clip's; or a name of open_clip's, such as
    "ViT-L-14-336-quickgelu". Unset: the checkpoint's own, else "embedded"."""
    clip_weights: str | None = None
    """With a name: open_clip's tag, such as "openai", or the path of a file; unset: random weights, for speed only."""
    tower: str | None = None
    """timm's name of another tower whose patch tokens are used, such as "vit_small_patch14_dinov2.lvd142m"."""
    tower_weights: str | None = None
    """A file of its weights, or "timm" for those that the name stands for; unset: random weights."""
    image_size: int | None = None
    """Side of the square that CLIP sees; unset: the checkpoint's, else 224 for the embedded CLIP and 518 for others."""
    prompts: Path | None = None
    """A YAML file with normal_states, abnormal_states and templates; unset: the package's own."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.image_size is not None:
            check_positive(self, "image_size")
        if self.clip_weights is not None and (self.clip in (None, EMBEDDED) or Path(str(self.clip)).exists()):
            raise UsageError(
                f"clip_weights={self.clip_weights!r} with clip={self.clip!r}; allowed: with a name of open_clip's"
            )
        if self.tower is None and self.tower_weights is not None:
            raise UsageError(f"tower_weights={self.tower_weights!r} without a tower; allowed: --tower NAME")

    @property
    def is_embedded(self) -> bool:
        """Whether the CLIP is the embedded one, as it is without another tower."""
        return self.clip in (None, EMBEDDED) and self.tower is None


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(ClipConfig):
    """Options of the commands that look with a CLIP and its heads."""

    checkpoint: str | None = None
    """Folder of trained UMCI heads, or "none" for texts alone; unset: the embedded ones with the embedded CLIP."""
    pooling: Pooling = "max"
    """How a map becomes its image's score: its highest value, or the value or the mean of its top 1 %."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.checkpoint is None and not self.is_embedded:
            given = f"tower={self.tower!r}" if self.tower else f"clip={self.clip!r}"
            raise UsageError(f"{given} has no embedded heads; allowed: --checkpoint FOLDER, or none")


@dataclass(frozen=True, kw_only=True)
class SamConfig(ModelConfig):
    """Options of the commands that refine with SAM."""

    sam: str = EMBEDDED
    """"embedded", "none", or a file or folder: segment-anything, MobileSAM, SAM-HQ, transformers' Sam, Sam2, Sam3."""
    mode: Mode = "soft"
    """How masks and rough map are joined: "soft", or "paper" for the figure taken literally."""
    threshold: float | None = None
    """On the rough map, above which SAM is asked; unset: the checkpoint's, else 0.5."""
    min_area: int | None = None
    """Pixels of the image below which what exceeds the threshold is a speck; unset: the checkpoint's, else 4."""
    max_components: int | None = None
    """Of an image's components, how many SAM is asked about, the highest; unset: the checkpoint's, else 16."""
    points: int | None = None
    """Points in each component; unset: the checkpoint's, else 5."""
    weight: float | None = None
    """How much a mask that agrees with its component replaces the map; unset: the checkpoint's, else 0.7."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        given = [name for name in ("max_components", "points") if getattr(self, name) is not None]
        check_positive(self, *given)
        if self.min_area is not None and self.min_area < 0:
            raise UsageError(f"min_area={self.min_area!r} is not possible; allowed: a number of pixels, 0 or more")
        if self.weight is not None:
            check_range("weight", self.weight, 0, 1)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"threshold={self.threshold!r} is not possible; allowed: between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(SamConfig, HeadsConfig):
    """Options of the commands that run the whole pipeline."""

    tiles: int | Literal["auto"] | None = None
    """Cut larger images into overlapping tiles of this side in pixels, seen beside the whole; "auto": twice the side
    of the square that CLIP sees; unset: no tiles."""
    scales: tuple[int, ...] = ()
    """Sides of the squares that CLIP sees, such as 224 448, whose maps are averaged; unset: image_size alone."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.tiles is not None and self.tiles != "auto" and self.tiles < SMALLEST_TILE:
            raise UsageError(f"tiles={self.tiles!r} is not possible; allowed: {SMALLEST_TILE} or more, or auto")


def batch_of(config: "PartConfig | EvalConfig") -> int:
    """Return how many images CLIP sees at once: with tiles, which are batches of their own, one."""
    return config.batch_size if config.tiles is None else 1


def check_one_view(config: PipelineConfig, references: bool) -> None:
    """Refuse references, whose patches are seen at one scale, beside images that are seen at others."""
    if references and (config.tiles is not None or len(config.scales) > 1):
        raise UsageError(f"references with tiles={config.tiles!r}, scales={config.scales!r}; allowed: either")


@dataclass(frozen=True, kw_only=True)
class ImageConfig(RunConfig):
    """Options of the commands that read images."""

    bits: int | None = None
    """Bits that 16-bit grey images fill, such as a camera's 12; unset: what the files say, or their greatest value."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.bits is not None:
            check_range("bits", self.bits, 8, 16)


@dataclass(frozen=True, kw_only=True)
class FolderConfig(ImageConfig):
    """Options of the commands that read data sets in folders."""

    mask_dir: Path | None = None
    """Folder of masks, named like the images of the one data folder; unset: where its layout has them."""
    category: str | None = None
    """What all images in folders show, such as "metal nut"; unset: what the folders are called."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.category is not None and not self.category.strip():
            raise UsageError(f"category={self.category!r} is empty; allowed: a word such as 'object'")

    @property
    def reading(self) -> dict[str, Any]:
        """What the readers of folders take."""
        return {"mask_dir": self.mask_dir, "category": self.category, "bits": self.bits}


@dataclass(frozen=True, kw_only=True)
class PartConfig(PipelineConfig, ImageConfig):
    """Options of the commands that look at images of one kind of part."""

    images: Annotated[tuple[Path, ...], Positional] = ()
    """Image files, and folders, of which every image below them counts."""
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
        check_category(self.category)
        check_one_view(self, bool(self.references) or self.score == "mutual")
        if self.score in ("distance", "combined") and not self.references:
            raise UsageError(f"score={self.score!r} without references; allowed: --references IMAGE ...")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(PartConfig):
    """Segment the anomalies in images: maps, masks, overlays and a JSON."""

    watch: bool = False
    """Go on with what comes into the folders, until Ctrl-C."""
    annotations: tuple[Format, ...] = ()
    """Write the masks as "coco" (annotations.json) or "labelme" (per image <name>_labelme.json), too."""
    output_dir: Path = Path("runs/segment")
    """The run folder: per image <name>_map.png, <name>_mask.png, <name>_overlay.png, and segmentations.json."""
    calibration: Path | None = None
    """What `calibrate` wrote, with the same options: then every image gets a verdict, and masks its threshold."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.calibration is not None and self.threshold is not None:
            raise UsageError(f"threshold={self.threshold!r} contradicts the calibration's; allowed: one of them")
        if self.watch and self.score == "mutual":
            raise UsageError("watch=True with score='mutual', which needs all images at once; allowed: either")


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
class ExportConfig(HeadsConfig):
    """Write CLIP and heads for one category as an ONNX file: pixels in, map and score out."""

    onnx: Path | None = None
    """The file; a JSON of that name beside it says what goes in and what comes out."""
    category: str = "object"
    """What the images show, such as "metal nut"; "object" for anything. It is a constant of the file."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.num_processes not in (None, 1):
            raise UsageError(f"num_processes={self.num_processes!r} would write one file; allowed: 1")
        if self.dtype != "fp32":
            raise UsageError(f"dtype={self.dtype!r} is not exported; allowed: fp32")
        check_category(self.category)


@dataclass(frozen=True, kw_only=True)
class RefineConfig(SamConfig, ImageConfig):
    """Refine anomaly maps of any method with SAM."""

    images: Annotated[tuple[Path, ...], Positional] = ()
    """Image files."""
    maps: tuple[Path, ...] = ()
    """One map per image, of any size: .npy, also (1, h, w), or a grey image, of which white is 1."""
    range: tuple[float, float] | None = None
    """The numbers that are 0 and 1, of maps that hold raw distances; unset: they lie in [0, 1]."""
    sound_maps: tuple[Path, ...] = ()
    """Instead: maps of sound images, a thousandth of whose pixels is to exceed 0.5."""
    annotations: tuple[Format, ...] = ()
    """Write the masks as "coco" (annotations.json) or "labelme" (per image <name>_labelme.json), too."""
    output_dir: Path = Path("runs/refine")
    """The run folder, as that of `segment`."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if len(self.maps) != len(self.images):
            raise UsageError(f"{len(self.maps)} maps for {len(self.images)} images; allowed: one map for each")
        if self.range is not None and self.sound_maps:
            raise UsageError(f"range={self.range!r} with sound_maps; allowed: either")
        if self.sam == NONE:
            raise UsageError(
                f"sam={self.sam!r} refines nothing; allowed: embedded, or a file or folder of SAM's weights"
            )


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
class TrainConfig(ClipConfig, RecipeConfig, FolderConfig):
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
class EvalConfig(PipelineConfig, FolderConfig):
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
        check_one_view(self, self.references > 0 or "mutual" in self.score)
        if self.references and self.zero_shot:
            raise UsageError(f"references={self.references!r} with zero_shot is not zero-shot; allowed: either")
        if not self.references and {"distance", "combined"} & set(self.score):
            raise UsageError(f"score={self.score!r} without references; allowed: map, mutual, or --references K")
        for name, given in (("data", self.data), ("stages", self.stages)):
            if not given:
                raise UsageError(f"{name}=() is empty; allowed: one or more")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ModelConfig):
    """Time the parts: streaming metrics, and every stage of the pipeline."""

    output_dir: Path = Path("runs/bench")
    """The run folder: rows.json, report.html."""
    pixels: int = 20
    """Megapixels that the metrics see."""
    repeats: int = 5
    """Timed pairs, and timed images of every stage."""
    json: Path | None = None
    """Write the rows to this file, too."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "pixels", "repeats")


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


def check_category(category: str) -> None:
    """Refuse a category without a name."""
    if not category.strip():
        raise UsageError(f"category={category!r} is empty; allowed: a word such as 'object'")

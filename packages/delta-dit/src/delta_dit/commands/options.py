"""The options of every command, and their only defaults. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from delta_dit.config import Schedule
from delta_dit.planning.objective import Objective, Target
from frugal_shared.config import RunConfig
from frugal_shared.errors import UsageError, check_choice, check_positive, check_range

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(RunConfig):
    """Options of the commands that draw from any model."""

    model: str = "demo"
    """"demo", "demo-lcm", "dit-xl-2-256", "pixart-alpha-512", a hub name, or a pipeline's folder."""
    dtype: Dtype | None = None
    """Precision of the model; unset: the one its transformer is stored in, and fp32 of the embedded ones."""


@dataclass(frozen=True, kw_only=True)
class ConditionsConfig(ModelConfig):
    """Options of the commands that draw from any model, for any of its conditions."""

    labels: tuple[int, ...] = ()
    """Class numbers, for models that draw classes; unset: all classes in turn."""
    prompts: Path | None = None
    """A text file with one prompt per line, for models that draw prompts."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.labels and self.prompts is not None:
            raise UsageError(f"labels={self.labels!r} and prompts={str(self.prompts)!r}; allowed: one of them")


@dataclass(frozen=True, kw_only=True)
class SizedConfig(ConditionsConfig):
    """Options of the commands that draw images or videos of a size that can be chosen."""

    height: int | None = None
    """Pixels; unset: the model's usual number."""
    width: int | None = None
    """Pixels; unset: the model's usual number."""
    frames: int | None = None
    """Of a video; unset: the model's usual number."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, *(name for name in ("height", "width", "frames") if getattr(self, name) is not None))


@dataclass(frozen=True, kw_only=True)
class TrainDemoConfig(RunConfig):
    """Train the embedded model: a small class-conditional DiT on textured digits."""

    output_dir: Path = Path("runs/train-demo")
    """The run folder; the finished pipeline is its subfolder "pipeline"."""
    steps: int = 6000
    """Optimizer steps."""
    batch_size: int = 128
    """Global batch: the processes share it."""
    learning_rate: float = 1.2e-3
    """Peak of the cosine, after the warm-up."""
    blocks: int = 12
    """Transformer blocks."""
    heads: int = 4
    """Attention heads, 32 wide each."""
    save_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "steps", "batch_size", "blocks", "heads", "save_every", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class TrainJudgeConfig(RunConfig):
    """Train the judge: the classifier that reads the embedded model's pictures."""

    output_dir: Path = Path("runs/train-judge")
    """The run folder; the weights are its judge.safetensors."""
    steps: int = 1500
    """Optimizer steps."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 2e-3
    """Start of the cosine."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "steps", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SizedConfig):
    """Draw images or videos with the Δ-cache, one seed per sample, on one or many processes."""

    output_dir: Path = Path("runs/generate")
    """The run folder: images/000000.png …, of videos images/000000/0000.png …, grid.png, results."""
    random_weights: bool = False
    """Use the model's architecture with random weights: for speed, not for pictures."""
    count: int = 40
    """How many images or videos; the labels or prompts take turns."""
    batch_size: int = 8
    """Images drawn at once."""
    steps: int | None = None
    """Sampling steps; unset: the model's usual number."""
    guidance: float | None = None
    """Guidance scale; unset: the model's usual one."""
    speedup: float = 1.6
    """How many times fewer block evaluations; 1 draws without the cache."""
    schedule: Schedule = "generic"
    """Where the cache reuses, unless a plan says so."""
    plan: Path | None = None
    """A plan, as JSON; it replaces speedup and schedule."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "count", "batch_size")
        if self.steps is not None:
            check_positive(self, "steps")
            if self.plan is None:
                check_range("speedup", self.speedup, 1, self.steps)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(RunConfig):
    """Draw the same seeds uncached, with fewer steps, and with the Δ-cache, and compare."""

    output_dir: Path = Path("runs/delta-dit")
    """The run folder: results, samples and report.html."""
    dtype: Dtype = "fp32"
    """Precision of the model."""
    samples: int = 400
    """Images per method."""
    batch_size: int = 40
    """Images drawn at once."""
    steps: int = 20
    """Sampling steps of the reference."""
    speedup: float = 1.6
    """How many times fewer block evaluations."""
    repeats: int = 4
    """Timed pairs per method."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size", "steps", "repeats")
        check_range("speedup", self.speedup, 1, self.steps)


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(SizedConfig):
    """Measure what reusing each range of blocks at each step would cost, for `plan --calibration`."""

    output_dir: Path = Path("runs/calibrate")
    """The run folder; the measurement is its calibration.safetensors."""
    steps: int = 20
    """Sampling steps."""
    guidance: float | None = None
    """Guidance scale; unset: the model's own."""
    samples: int = 8
    """Images to measure on."""
    batch_size: int = 8
    """Images drawn at once."""
    move_steps: bool = False
    """Put the steps where the solver needs them, before all else; plans made from it have steps of their own."""
    seed: int = 1000
    """Of the noise; away from 0, so that results are not measured on what the plan was made with."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size")
        check_range("steps", self.steps, 2, 1000)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(RunConfig):
    """Find which steps reuse which blocks, from a calibration or, without any model, by a fixed schedule."""

    output_dir: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride] (no folder, no Run)
    """Keep what --refine tries, and plan.json, in this run folder, for --resume to go on; unset: keep nothing."""
    speedup: float | None = None
    """How many times fewer block evaluations than the uncached run; unset: 1.6, unless another goal is given."""
    budget: float | None = None
    """Instead: what a run may cost, in evaluations of the whole transformer; with a calibration."""
    max_error: float | None = None
    """Instead: the fastest plan whose images differ by at most this (root mean square ÷ that of the images)."""
    min_psnr: float | None = None
    """Instead: the fastest plan whose images have at least this mean PSNR in dB to the uncached ones."""
    calibration: Path | None = None
    """The run folder of `calibrate`, or a calibration's file; unset: a fixed schedule."""
    target: Target | None = None
    """Be near to the "uncached" images of as many steps, or to the "exact" ones of very many, with as many steps as are
    best for it; unset: exact for a budget, if there is an exact image."""
    reference_steps: int | None = None
    """Steps that count as exact; unset: ten times the calibration's."""
    objective: Objective = "mean"
    """What counts over the samples: the mean PSNR, that of the worst, or the median."""
    refine: bool = True
    """With a calibration: try the best plans on the model itself, and improve the winner."""
    samples: int = 8
    """Images that --refine compares plans on."""
    batch_size: int = 8
    """Images that --refine draws at once."""
    evaluations: int = 40
    """How many plans --refine may try."""
    seed: int = 0
    """Of the noise that plans are tried with: 0 is the one after the calibration's."""
    dtype: Dtype | None = None
    """Precision of the model that --refine draws with; unset: as in calibrate."""
    schedule: Schedule = "generic"
    """Without a calibration: which schedule."""
    steps: int = 20
    """Without a calibration: sampling steps T."""
    blocks: int = 28
    """Without a calibration: transformer blocks L."""
    json: Path | None = None
    """Write the plan to this file; unset: print it as a table."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size", "evaluations", "steps", "blocks")
        given = [name for name in ("speedup", "budget", "max_error", "min_psnr") if getattr(self, name) is not None]
        if self.reference_steps is not None:
            check_positive(self, "reference_steps")
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} are both given; allowed: one of them")
        if given:
            check_positive(self, *given)
        if self.calibration is None and given not in ([], ["speedup"]):
            raise UsageError(f"{given[0]} needs a calibration; allowed: --calibration, or --speedup")
        if self.calibration is not None and self.schedule != "generic":
            raise UsageError(f"schedule={self.schedule!r} is not calibrated; allowed: --calibration or --schedule")
        kept = self.output_dir is not None
        if not self.tries and (kept or self.num_processes not in (None, 1)):
            field = f"output_dir={str(self.output_dir)!r}" if kept else f"num_processes={self.num_processes!r}"
            raise UsageError(f"{field} is for what --refine tries; allowed: with --calibration")
        for field in ("resume", "overwrite"):
            if getattr(self, field) and not kept:
                raise UsageError(f"{field}=True needs a run folder; allowed: with --output-dir")

    @property
    def tries(self) -> bool:
        """Whether plans are tried on the model, which takes minutes."""
        return self.calibration is not None and self.refine


@dataclass(frozen=True, kw_only=True)
class TrainDemoLcmConfig(RunConfig):
    """Distil the embedded model into a consistency model that draws in 4 steps without guidance."""

    output_dir: Path = Path("runs/train-demo-lcm")
    """The run folder; the finished pipeline is its subfolder "pipeline"."""
    teacher: Path | None = None
    """Folder of the pipeline to distil, e.g. "runs/train-demo/pipeline"; unset: the embedded one."""
    guidance: float = 1.5
    """Guidance scale of the teacher, which the student then has built in."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 32
    """Trajectories per step, each trained at 4 noise levels: the processes share them."""
    learning_rate: float = 3e-4
    """Peak of the cosine, after the warm-up."""
    save_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "guidance", "steps", "batch_size", "learning_rate", "save_every")


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(ModelConfig):
    """Measure what reusing each range of blocks does to the outline and to the detail of the pictures."""

    output_dir: Path = Path("runs/analyze")
    """The run folder: analysis.json, rows.json (reuse at all but every N-th step), results and report.html."""
    random_weights: bool = False
    """Use the model's architecture with random weights."""
    samples: int = 40
    """Images per measurement."""
    batch_size: int = 40
    """Images drawn at once."""
    steps: int | None = None
    """Sampling steps; unset: the model's usual number."""
    ranges: int = 4
    """Into how many ranges of equal length the blocks are divided."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "samples", "batch_size", "ranges")
        if self.steps is not None and self.steps < 2:
            raise UsageError(f"steps={self.steps!r} leaves nothing to reuse; allowed: 2 or more")


MOVED = "moved-steps"
"""The uncached run of as many steps as the cost allows, where the solver needs them: for --target exact."""
METHODS = ("fewer-steps", MOVED, "naive-feature-cache", "front", "rear", "paper", "generic", "calibrated")
PEERS = ("FirstBlockCache", "TaylorSeer", "MagCache", "DBCache", "DBCache-mask", "SmoothCache-like", "InvarDiff-like")
ANNEALED = "annealed-mask"
"""Whole steps reused, found by simulated annealing."""
ABLATION = tuple(
    f"{plan}-{forecast}{kept}"
    for plan in ("paper", "generic", "calibrated")
    for forecast in ("held", "linear", *(["fitted"] if plan == "calibrated" else []))
    for kept in ("", "-features")
)
"""A plan with another forecast of Δ, or of what the blocks give: only when asked for."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ConditionsConfig):
    """Compare Δ-DiT's schedules with fewer steps and with other caches, at the same cost, side by side in one run."""

    output_dir: Path = Path("runs/bench")
    """The run folder: rows.json, results and report.html."""
    random_weights: bool = False
    """Use the model's architecture with random weights: for times and costs, not for pictures."""
    steps: int | None = None
    """Sampling steps of the reference; unset: the model's usual number."""
    speedup: tuple[float, ...] = (1.6,)
    """How many times fewer multiply-accumulates every method is to need; of several a curve is drawn."""
    budget: tuple[float, ...] = ()
    """Instead: what a run may cost, in evaluations of the whole transformer."""
    target: Target = "uncached"
    """Which images are to be met: the "uncached" ones of the same steps, or the "exact" ones of very many."""
    reference_steps: int | None = None
    """Steps that count as exact; unset: twenty times the reference's, for --target exact alone."""
    plan: tuple[Path, ...] = ()
    """Calibrated plans, as JSON, one for each cost; unset: those that are shipped for an embedded model, if any."""
    methods: tuple[str, ...] = ()
    """Only these rows beside the uncached one; unset: all. An ablation has to be asked for, e.g. "calibrated-held"."""
    samples: int | None = None
    """Images per method and seed; unset: 400 of an embedded model, 1 of others."""
    seeds: int = 1
    """How many seeds, counted from --seed."""
    batch_size: int = 40
    """Images drawn at once."""
    tuning: int = 320
    """How much every foreign cache may draw to find its best setting at a cost, in samples drawn in full."""
    repeats: int = 4
    """Timed pairs per method."""
    weights: Path | None = None
    """Folder with torch-fidelity's "inception.pth", a CLIP in "clip", or both: FID, Inception and CLIP score, too."""
    real: Path | None = None
    """Folder of real pictures for the FID; unset: the FID is to the uncached pictures."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_positive(self, "seeds", "batch_size", "tuning", "repeats")
        for name in ("steps", "samples", "reference_steps"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for budget in self.budget:
            if not budget >= 1:
                raise UsageError(f"budget={budget!r} is less than one full step costs; allowed: 1 or more")
        for speedup in self.speedup:
            if not speedup >= 1:
                raise UsageError(f"speedup={speedup!r} is not possible; allowed: 1 or more")
        costs = self.budget or self.speedup
        if self.plan and len(self.plan) != len(costs):
            raise UsageError(f"{len(self.plan)} plans for {len(costs)} costs; allowed: one for each")
        for method in self.methods:
            check_choice("methods", method, METHODS + PEERS + (ANNEALED, *ABLATION))
        if self.real is not None and self.weights is None:
            raise UsageError(f"real={str(self.real)!r} is for the FID; allowed: together with --weights")

"""``delta-dit calibrate``: measure, once per model, what reusing any Δ at any step would cost.

Two measurements, both on a few samples of the uncached model:

* **How wrong a reused Δ is.** Block l changes its input by d_{l,t} at step t. Reusing the range R from step s at step t
  puts Σ_{l∈R} (d_{l,s} − d_{l,t}) in the wrong. One uncached run keeps a random projection of every d_{l,t}; sums and
  squared norms of projections are, on average, those of what was projected, so this one run knows the error of *every*
  range, reused from *every* step, at *every* step.
* **How much the final image minds.** A wrong Δ at one step costs the image 25 dB more than the same at another. A few
  ranges are reused once, at one step, and the error of the final image is measured.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from delta_dit.adapters import Block, adapter_for, argument_reader, blocks_of, stream_reader
from delta_dit.clock import SchedulerClock
from delta_dit.commands.methods import Method, draw_all, psnr
from delta_dit.commands.models import Sampler, conditions, load_sampler
from delta_dit.commands.options import CalibrateConfig
from delta_dit.config import DeltaCacheConfig
from delta_dit.delta_plan import DeltaPlan, Reuse
from frugal_shared.checkpoint import write_bytes
from frugal_shared.errors import RunError, UsageError
from frugal_shared.evaluation import chunks, gather_chunks
from frugal_shared.run import Run
from frugal_shared.seeds import generator
from frugal_shared.tensors import pack_tensors, read_tensors

SCHEMA = 1
FILE = "calibration.safetensors"
SKETCH_SIZE = 127
"""Numbers per projection. Prime, so that a loud channel of every token does not always meet the same number."""
PROBE_SHARE = 4
"""One in so many samples is drawn for the probes."""
_SIGNS, _ORDER = 7, 8  # streams of random numbers


@dataclass(frozen=True)
class Calibration:
    """What was measured of one model, scheduler, number of steps and guidance.

    Args:
        sketches: ``(N, T, L, K)``, the projection of d_{l,t} for each sample (all its branches of guidance side by
            side in K).
        harm: ``(T, C)``, mean squared error of the final image, in [0, 1]², where step t alone is probe c, from the
            step before or, with order 1, the two before; geometric mean over samples, as of a mean PSNR. NaN where a
            step has not that many before it.
        probes: the C ways to reuse that were tried.
        levels: noise level of each step in [0, 1], 1 = pure noise.
        power: mean square of the final images.
        about: model, scheduler, guidance, seed, samples and conditions: the provenance of plans made from this.
    """

    sketches: np.ndarray
    harm: np.ndarray
    probes: tuple[Reuse, ...]
    levels: tuple[float, ...]
    power: float
    about: dict[str, Any]

    @property
    def steps(self) -> int:
        """T."""
        return self.sketches.shape[1]

    @property
    def blocks(self) -> int:
        """L."""
        return self.sketches.shape[2]

    def save(self, folder: Path) -> None:
        """Write ``calibration.safetensors`` into a folder, atomically."""
        probes = [(probe.start, probe.stop, probe.order) for probe in self.probes]
        facts = {"probes": probes, "levels": self.levels, "power": self.power, "about": self.about}
        tensors = {"sketches": torch.from_numpy(self.sketches), "harm": torch.from_numpy(self.harm)}
        write_bytes(folder / FILE, pack_tensors(tensors, {"schema": str(SCHEMA), "facts": json.dumps(facts)}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: there is no calibration, a damaged one, or not one of this schema.
        """
        try:
            tensors, notes = read_tensors(folder / FILE)
            if notes["schema"] != str(SCHEMA):
                raise UsageError(f"calibration={str(folder)!r} has schema {notes['schema']}; allowed: {SCHEMA}")
            facts = json.loads(notes["facts"])
            facts["probes"] = tuple(Reuse(*probe) for probe in facts["probes"])
            facts["levels"] = tuple(facts["levels"])
            return cls(tensors["sketches"].numpy(), tensors["harm"].numpy(), **facts)
        except (RunError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UsageError(
                f"calibration={str(folder)!r} cannot be read ({error}); allowed: the run folder of delta-dit calibrate"
            ) from error


def calibrate(config: CalibrateConfig) -> None:
    """Measure, and write ``calibration.safetensors`` into the run folder."""
    sampler = load_sampler(config.model)
    guidance = sampler.guidance if config.guidance is None else config.guidance
    # shuffled, because neighbouring classes resemble each other and only a few are drawn
    mixed = mix(conditions(config, sampler), config.seed)
    sampler = replace(sampler, conditions=mixed, steps=config.steps, guidance=guidance)
    with Run(config, "delta-dit") as run:
        sampler.pipe.to(run.accelerator.device)
        found = measure(sampler, run, config)
        if run.accelerator.is_main_process:
            found.save(run.folder)
        whole = found.harm[1:, 0]
        run.finish(
            {
                "steps": found.steps,
                "blocks": found.blocks,
                "samples": config.samples,
                "most_sensitive_step_db": float(-10 * np.log10(whole.max())),
                "least_sensitive_step_db": float(-10 * np.log10(whole.min())),
            }
        )


def mix(values: list[Any], seed: int) -> list[Any]:
    """Return the values in a random order that follows from the seed."""
    return [values[i] for i in torch.randperm(len(values), generator=generator(seed, _ORDER)).tolist()]


def measure(sampler: Sampler, run: Run, config: CalibrateConfig) -> Calibration:
    """Return what one sampler's blocks do, and how much its images mind."""
    with recording(sampler) as recorder:
        pieces, drawn = [], []
        accelerator = run.accelerator
        for chunk in chunks(config.samples, config.batch_size, accelerator.process_index, accelerator.num_processes):
            drawn.append((chunk, sampler.draw(config.seed, chunk)))
            pieces.append((chunk, recorder.take(len(chunk))))
    few = -(-config.samples // PROBE_SHARE)  # a PSNR needs fewer samples than a Δ's direction, and many more runs
    images, sketches = gather_chunks(drawn), gather_chunks(pieces).numpy()
    # a process that had nothing to draw has seen no levels
    levels = max((tuple(levels) for levels in gather_object([list(recorder.clock.levels)])), key=len)
    blocks = sketches.shape[2]
    probes = probes_of(blocks)
    harm = np.full((len(levels), len(probes)), np.nan)
    for column, probe in enumerate(probes):
        for step in range(1 + probe.order, len(levels)):
            cache = DeltaCacheConfig(plan=_once(step, probe, levels, blocks))
            method = Method(f"step {step}, {probe}", sampler.steps, cache)
            reused = draw_all(method, sampler, run, config.seed, few, config.batch_size)
            harm[step, column] = 10 ** (-psnr(reused, images[:few]).mean().item() / 10)
    return Calibration(sketches, harm, probes, levels, images.square().mean().item(), _about(sampler, config))


def probes_of(blocks: int) -> tuple[Reuse, ...]:
    """Return what is tried at every step: all blocks by both orders, the front half, the rear half, a sixth of each."""
    half, sixth = (blocks + 1) // 2, (blocks + 5) // 6
    ranges = [(0, half), (blocks - half, blocks), (0, sixth), (blocks - sixth, blocks)]
    return (Reuse(0, blocks), Reuse(0, blocks, order=1), *(Reuse(*blocks) for blocks in dict.fromkeys(ranges)))


def _once(step: int, reuse: Reuse, levels: tuple[float, ...], blocks: int) -> DeltaPlan:
    return DeltaPlan.of(blocks, [reuse if i == step else None for i in range(len(levels))], levels=levels)


def _about(sampler: Sampler, config: CalibrateConfig) -> dict[str, Any]:
    return {
        "model": sampler.name,
        "transformer": type(sampler.pipe.transformer).__name__,
        "scheduler": type(sampler.pipe.scheduler).__name__,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "seed": config.seed,
        "samples": config.samples,
        sampler.argument: sampler.conditions,
    }


class Recorder:
    """Keeps a projection of what every block adds, by step; rows are samples, once per branch of guidance."""

    def __init__(self, clock: SchedulerClock) -> None:
        self.clock = clock
        self.step = -1
        self.kept: dict[tuple[int, int], list[Tensor]] = defaultdict(
            list
        )  # (step, block) → (rows, SKETCH_SIZE) per call

    def begin(self, timestep: Any) -> None:
        """Note where in the run the call stands that is about to happen.

        Raises:
            RunError: the scheduler does not tell.
        """
        position = self.clock.tick(timestep)
        if position is None:
            raise RunError(f"{type(self.clock.scheduler).__name__} does not tell its steps; allowed: another scheduler")
        self.step = position.step

    def reads(self, index: int, block: Block) -> Callable[..., None]:
        """Return the hook that takes a block's streams before and after it."""
        read = stream_reader(block)

        def hook(_: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            streams = enumerate(zip(read(args, kwargs), output if isinstance(output, tuple) else (output,)))
            sketches = [sketch(out - start, i) for i, (start, out) in streams if start is not None and out is not None]
            self.kept[self.step, index].append(torch.stack(sketches).sum(0).cpu())

        return hook

    def take(self, samples: int) -> Tensor:
        """Return the projections of the run that ended, ``(samples, T, L, K)``, and forget them."""
        steps, blocks = (1 + max(key[axis] for key in self.kept) for axis in (0, 1))
        table = [[torch.cat(self.kept[step, block]) for block in range(blocks)] for step in range(steps)]
        self.kept.clear()
        if len({len(rows) for row in table for rows in row}) > 1:
            raise RunError("the steps have different numbers of branches; allowed: guidance that stays on")
        rows = torch.stack([torch.stack(row) for row in table])  # (T, L, branches · samples, K)
        by_sample = rows.unflatten(2, (-1, samples)).permute(3, 0, 1, 2, 4)  # (samples, T, L, branches, K)
        return by_sample.flatten(3).contiguous()


@contextmanager
def recording(sampler: Sampler) -> Iterator[Recorder]:
    """Record what the blocks of a sampler's transformer add to their inputs."""
    transformer = sampler.pipe.transformer
    timestep = argument_reader(transformer, adapter_for(transformer).timestep)
    recorder = Recorder(SchedulerClock(sampler.pipe))

    def begin(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        recorder.begin(timestep(args, kwargs))

    handles = [transformer.register_forward_pre_hook(begin, with_kwargs=True)]
    for index, block in enumerate(blocks_of(transformer)):
        handles.append(block.module.register_forward_hook(recorder.reads(index, block), with_kwargs=True))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def sketch(values: Tensor, stream: int = 0) -> Tensor:
    """Return a random projection that keeps squared norms and inner products on average: E⟨Sx, Sy⟩ = ⟨x, y⟩.

    Element i is added to number i mod K with a random sign that follows from i, the stream and the shape alone.

    Args:
        values: ``(rows, ...)``.
        stream: projections of different streams are independent, so that they can be summed.

    Returns:
        ``(rows, K)`` float32, K = :data:`SKETCH_SIZE`.
    """
    flat = values.flatten(1).float()
    count = flat.shape[1]
    flat = flat * _signs(count, stream).to(flat.device)
    return F.pad(flat, (0, -count % SKETCH_SIZE)).view(len(flat), -1, SKETCH_SIZE).sum(1)


@lru_cache(maxsize=8)
def _signs(count: int, stream: int) -> Tensor:
    random = generator(0, _SIGNS, count, stream)
    return 2 * torch.randint(2, (count,), generator=random, dtype=torch.int8) - 1

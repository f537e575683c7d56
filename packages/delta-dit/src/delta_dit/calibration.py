"""The calibration: measured once per model, what reusing any Δ at any step would cost.

Two measurements, both on a few samples of the uncached model:

* **How wrong a reused Δ is.** Block l changes its input by d_{l,t} at step t. Reusing the range R from step s at step t
  puts Σ_{l∈R} (d_{l,s} − d_{l,t}) in the wrong. One uncached run keeps a random projection of every d_{l,t}; sums and
  squared norms of projections are, on average, those of what was projected, so this one run knows the error of *every*
  range, reused from *every* step, at *every* step.
* **How much the final image minds.** A wrong Δ at one step costs the image 25 dB more than the same at another. A few
  ranges are reused once, at one step, and the error of the final image is measured.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from delta_dit.attach import delta_cache, sole_transformer
from delta_dit.delta_plan import DeltaPlan, Reuse
from delta_dit.error_model import ErrorModel
from delta_dit.fidelity import psnr
from delta_dit.planner import Planner, saved_blocks
from delta_dit.recorder import recording
from delta_dit.trial import Trial
from delta_dit.writing import write_bytes

SCHEMA = 2
ENTRY = "calibration"  # one entry, because safetensors writes several in an order that changes from run to run
PROBE_SHARE = 4
"""One in so many samples is drawn for the probes: a PSNR needs fewer than a Δ's direction, and many more runs."""

Batch = TypeVar("Batch")
Gather = Callable[[list[tuple[Batch, Tensor]]], Tensor]
"""Puts what every process has of its batches together, in the order of the batches."""
Probe = tuple[int, Reuse]
"""One reuse, at one step."""


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

    @cached_property
    def errors(self) -> ErrorModel:
        """What this knows of every reuse."""
        return ErrorModel(self.sketches, self.probes, self.harm)

    def plan(
        self,
        *,
        speedup: float | None = None,
        min_psnr: float | None = None,
        max_error: float | None = None,
        trial: Trial | None = None,
        evaluations: int = 60,
    ) -> DeltaPlan:
        """Return the best plan at a cost, or the fastest that is good enough: one of the first three is given.

        Args:
            speedup: how many times fewer block evaluations.
            min_psnr: the mean PSNR in dB that the images shall have to the uncached ones.
            max_error: by how much the images may differ: root mean square ÷ that of the images.
            trial: tries plans on the model itself, which takes minutes and finds better ones; default: predictions.
            evaluations: how many plans the trial may try beside the best candidates.

        Raises:
            ValueError: not one of them is given, or no plan is as fast as that.
        """
        wanted = {"speedup": speedup, "min_psnr": min_psnr, "max_error": max_error}
        if len([value for value in wanted.values() if value is not None]) != 1:
            given = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
            raise ValueError(f"{given}; allowed: one of them")
        if max_error is not None:
            min_psnr = -10 * math.log10(max_error**2 * self.power)
        planner = Planner(self.errors, trial)
        if min_psnr is not None:
            saved = planner.fastest(min_psnr)
        else:
            saved = saved_blocks(self.steps, self.blocks, speedup or 1.0)
        reuses = planner.refined(saved, evaluations)
        provenance = self.about | planner.promise(reuses)
        return DeltaPlan.of(self.blocks, reuses, levels=self.levels, provenance=provenance)

    def save(self, path: str | Path) -> None:
        """Write one file: whole, or not at all."""
        probes = [(probe.start, probe.stop, probe.order) for probe in self.probes]
        facts = {"probes": probes, "levels": self.levels, "power": self.power, "about": self.about}
        arrays = {"sketches": self.sketches, "harm": self.harm}
        entry = {"schema": SCHEMA, "facts": facts, "sha256": _digest(facts, arrays)}
        write_bytes(Path(path), save(arrays, {ENTRY: json.dumps(entry)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: there is no calibration, a damaged one, or not one of this schema.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                entry = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
                if entry.get("schema") != SCHEMA:
                    raise ValueError(f"it has schema {entry.get('schema')}, not {SCHEMA}")
                arrays = {name: file.get_tensor(name) for name in ("sketches", "harm")}
            facts = entry["facts"]
            if entry["sha256"] != _digest(facts, arrays):
                raise ValueError("it was changed")
            probes, levels = tuple(Reuse(*probe) for probe in facts["probes"]), tuple(facts["levels"])
            return cls(**arrays, probes=probes, levels=levels, power=facts["power"], about=facts["about"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise ValueError(
                f"calibration={str(path)!r} cannot be read ({error}); allowed: a file that Calibration.save wrote, "
                "such as calibration.safetensors in the run folder of delta-dit calibrate"
            ) from error


def calibrate(
    pipe: Any,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    steps: int = 20,
    seed: int = 1000,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Calibration:
    """Measure what reusing each range of blocks at each step would cost a pipeline; it is the same afterwards.

    The pipeline draws as it is set up: on its device, in its dtype, with its scheduler and adapters. Of T steps it is
    some 6·T runs of a quarter of the inputs, beside one of all.

    Args:
        pipe: a diffusers pipeline of images that has one transformer.
        inputs: what the pipeline is called with, a mapping for each call; a call may draw several images.
        prompts: instead of ``inputs``, a text for each call.
        steps: sampling steps T, 2 or more.
        seed: of the noise; call i takes ``seed + i``.
        progress: wraps the list of the measuring runs, e.g. ``tqdm.tqdm``.

    Returns:
        The measurement; its :meth:`Calibration.plan` finds plans.

    Raises:
        ValueError: inputs and prompts are both given, or none of them; too few steps; a pipeline that does not fit.
    """
    if (inputs is None) == (prompts is None):
        raise ValueError(f"inputs={inputs!r} and prompts={prompts!r}; allowed: one of them")
    calls = [{"prompt": prompt} for prompt in prompts] if prompts is not None else list(inputs or ())
    if not calls:
        raise ValueError("inputs=[] draw nothing; allowed: one mapping or more")
    if steps < 2:
        raise ValueError(f"steps={steps!r} leaves nothing to reuse; allowed: 2 or more")

    def draw(call: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed + call)
        options = {"num_inference_steps": steps, "generator": noise, "output_type": "pt"}
        return torch.as_tensor(pipe(**options | dict(calls[call])).images).float().cpu()

    numbers = range(len(calls))
    about = {"pipeline": type(pipe).__name__, "steps": steps, "seed": seed, "calls": len(calls)}
    return measure(pipe, draw, numbers, numbers[: probe_count(len(calls))], about=about, progress=progress)


def probe_count(samples: int) -> int:
    """Return how many of so many samples are drawn for the probes."""
    return -(-samples // PROBE_SHARE)


def measure(
    pipe: Any,
    draw: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    probe_batches: Sequence[Batch],
    *,
    about: Mapping[str, Any],
    gather: Gather[Batch] | None = None,
    progress: Callable[[list[Probe]], Iterable[Probe]] = iter,
) -> Calibration:
    """Return what one pipeline's blocks do, and how much its images mind: :func:`calibrate` for any way to draw.

    On several processes each draws batches of its own, and ``gather`` puts them together; all return the same.

    Args:
        pipe: the pipeline.
        draw: draws a batch with it: ``(B, C, H, W)`` in [0, 1] on the CPU, the same whenever it is asked.
        batches: this process's.
        probe_batches: this process's part of the first of everybody's batches, which the probes are drawn for.
        about: the provenance of plans that will be made from this, as plain JSON.
        gather: from (batch, rows) of this process to the rows of all; default: there is no other process.
        progress: wraps the list of the probes.
    """
    gather = gather or (lambda pieces: torch.cat([rows for _, rows in pieces]))
    drawn, kept, levels = [], [], []
    with recording(pipe) as recorder:
        for batch in batches:
            images = draw(batch)
            drawn.append((batch, images))
            kept.append((batch, recorder.take(len(images))))
            levels.append((batch, torch.tensor([recorder.clock.levels], dtype=torch.float64)))
    images, sketches, noise = gather(drawn), gather(kept).numpy(), tuple(gather(levels)[0].tolist())

    steps, blocks = sketches.shape[1:3]
    probes = probes_of(blocks)
    harm = np.full((steps, len(probes)), np.nan)
    runs = [(step, probe) for probe in probes for step in range(1 + probe.order, steps)]
    for step, probe in progress(runs):
        once = DeltaPlan.of(blocks, [probe if i == step else None for i in range(steps)], levels=noise)
        with delta_cache(pipe, once):
            reused = gather([(batch, draw(batch)) for batch in probe_batches])
        harm[step, probes.index(probe)] = 10 ** (-psnr(reused, images[: len(reused)]).mean().item() / 10)
    names = {"transformer": type(sole_transformer(pipe)).__name__, "scheduler": type(pipe.scheduler).__name__}
    return Calibration(sketches, harm, probes, noise, images.square().mean().item(), {**about, **names})


def probes_of(blocks: int) -> tuple[Reuse, ...]:
    """Return what is tried at every step: all blocks by both orders, the front half, the rear half, a sixth of each."""
    half, sixth = (blocks + 1) // 2, (blocks + 5) // 6
    ranges = [(0, half), (blocks - half, blocks), (0, sixth), (blocks - sixth, blocks)]
    return tuple(dict.fromkeys([Reuse(0, blocks), Reuse(0, blocks, order=1), *(Reuse(*part) for part in ranges)]))


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([facts, shapes]).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()

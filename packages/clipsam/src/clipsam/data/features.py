"""The frozen tower's patch tokens of a whole data set, computed once and kept in a file.

Nothing in the tower is ever trained, so a training that sees each image ten times need not run it ten times. The files
are memory-mapped: only what a batch needs is read.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipsam.backbone import Backbone
from clipsam.samples import AnomalyData
from frugal_shared.checkpoint import read_json, write_json
from frugal_shared.errors import UsageError
from frugal_shared.evaluation import chunks
from frugal_shared.run import Run

CHUNK = 16  # images that the tower sees at once; fixed, so that the features do not depend on the processes


@dataclass(frozen=True, eq=False)
class Features:
    """Patch tokens and masks of every image.

    Args:
        tokens: ``(N, stages, C, h, w)`` float16, on disk.
        masks: ``(N, S, S)`` uint8, 0 or 1, on disk; squashed to the square that the tower saw.
    """

    tokens: NDArray[np.float16]
    masks: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, rows: Any) -> tuple[list[Tensor], Tensor]:
        """Return the tokens of some images, ``(B, C, h, w)`` for each stage, and their masks ``(B, S, S)``."""
        stages = [self.stage(rows, stage) for stage in range(self.tokens.shape[1])]
        return stages, torch.from_numpy(self.masks[np.asarray(rows)].astype(np.float32))

    def stage(self, rows: Any, stage: int) -> Tensor:
        """Return the tokens of one stage alone, ``(B, C, h, w)``."""
        return torch.from_numpy(self.tokens[np.asarray(rows), stage].astype(np.float32))


def compute_features(folder: Path, backbone: Backbone, data: AnomalyData, run: Run, name: str) -> Features:
    """Compute what is not there yet of a data set's features, on all processes, and open them.

    Args:
        folder: where to keep them, ``<name>-tokens.npy`` and ``<name>-masks.npy``; all processes must see it.
        backbone: the CLIP.
        data: the images.
        run: tells the process, and shows the progress.
        name: of these features.

    Raises:
        UsageError: the folder holds features of other images, of another tower, or in another number format.
    """
    accelerator = run.accelerator
    side, grid = backbone.image_size, backbone.image_size // backbone.patch_tower.patch
    key = {"data": digest(data), "tower": tower_hash(backbone), "stages": list(backbone.stages), "size": side}
    key["dtype"] = str(backbone.dtype).removeprefix("torch.")
    shapes = {
        "tokens": ((len(data), len(backbone.stages), backbone.width, grid, grid), np.float16),
        "masks": ((len(data), side, side), np.uint8),
    }
    if accelerator.is_main_process:
        claim(folder, name, key, shapes)
    accelerator.wait_for_everyone()
    tokens, masks = (mapped(folder / f"{name}-{part}.npy", *kind) for part, kind in shapes.items())
    shares = list(chunks(len(data), CHUNK, accelerator.process_index, accelerator.num_processes))
    for chunk in run.progress(shares, desc=f"features of {name}"):
        done = folder / f".{name}-{chunk.start}"
        if done.exists():
            continue
        samples = [data[index] for index in chunk]
        pixels = torch.stack([backbone.preprocess(sample.image) for sample in samples])
        stages = backbone.patches(pixels.to(accelerator.device))
        tokens[chunk.start : chunk.stop] = torch.stack(stages, dim=1).half().cpu().numpy()
        masks[chunk.start : chunk.stop] = np.stack([squash(sample.mask, side) for sample in samples])
        tokens.flush()
        masks.flush()
        done.touch()
    accelerator.wait_for_everyone()
    return Features(tokens, masks)


def mapped(path: Path, shape: tuple[int, ...], kind: type) -> np.memmap:
    """Open an array to be filled.

    Raises:
        UsageError: the file is missing, damaged, or holds another array.
    """
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)  # "r+" would fill up a torn file with zeros
        array: Any = np.load(path, mmap_mode="r+", allow_pickle=False)
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        raise UsageError(f"{str(path)!r} cannot be read: {error}; allowed: another folder for features") from error
    if array.shape != shape or array.dtype != kind:
        raise UsageError(f"{str(path)!r} holds {array.dtype} {array.shape}; allowed: another folder for features")
    return array


def claim(folder: Path, name: str, key: dict[str, Any], shapes: dict[str, tuple[tuple[int, ...], type]]) -> None:
    """Make empty files, unless they are there and of the same key."""
    path = folder / f"{name}.json"
    if path.exists():
        found = {"dtype": "float32"} | read_json(path)  # of before there was a choice
        differing = [field for field in key if found.get(field) != key[field]]
        if differing:
            raise UsageError(f"{str(folder)!r} holds features of another {differing[0]}; allowed: another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name}-{part}.npy": shape for part, shape in shapes.items()}
    try:
        for file, (shape, kind) in files.items():
            np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape)
            reserve(file)
        write_json(path, key)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds other features
            folder.rmdir()
        raise


def reserve(path: Path) -> None:
    """Take the room that a file is to have: on a full disk, writing to mapped memory would end the process at once."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def digest(data: AnomalyData) -> str:
    """Return a hash of what the images are called."""
    return hashlib.sha256("\n".join(entry.source for entry in data.entries).encode()).hexdigest()


def tower_hash(backbone: Backbone) -> str:
    """Return a hash of the tower's weights, without its head, which patch tokens do not see."""
    found = hashlib.sha256()
    for name, tensor in backbone.patch_tower.visual.state_dict().items():
        if not name.startswith("head."):
            found.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()


def squash(mask: NDArray[np.bool_], side: int) -> NDArray[np.uint8]:
    """Return a mask at another size, ``(side, side)`` of 0 and 1: nearest, because a mask has no greys."""
    square = Image.fromarray(mask.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    return np.array(square)

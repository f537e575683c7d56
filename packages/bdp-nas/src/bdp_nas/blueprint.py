"""What has to be known of a network to build it again, and of its images to feed it: one small JSON.

    blueprint = Blueprint.read("runs/retrain")
    network = blueprint.network()
    network.load_state_dict(safetensors.torch.load_file("runs/retrain/network.safetensors"))
    logits = Standalone(network, *blueprint.moments)(images)  # in [0, 1]

A search, a retraining and an export leave one in their folder, as ``genotype.json``.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bdp_nas.spaces import SPACES, get_space
from bdp_nas.spaces.space import Network, Size
from bdp_nas.writing import write_bytes

FILE = "genotype.json"
LARGEST = 10_000  # of a network's numbers
KINDS = {"space": str, "genotype": str, "classes": str, "channels": int, "cells": int}
KINDS |= {"image": int, "mean": float, "std": float}
"""By field of the JSON: of which type it is, or everything in its list."""

LISTS = ("classes", "image", "mean", "std")


class LabelledImages(Protocol):
    """What a blueprint has to know of the images that a network is for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        ...

    @property
    def pixels(self) -> Tensor:
        """The images, ``(N, C, H, W)``."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel, ``(C,)``, of pixels in [0, 1]."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """A genotype with everything around it.

    Args:
        space: its search space.
        genotype: the architecture.
        classes: names, in the order of the logits.
        channels: width.
        cells: depth.
        image: channels, height and width of an image.
        mean: of each channel of pixels in [0, 1].
        std: of each channel.

    Raises:
        ValueError: a value that is not possible.
    """

    space: str
    genotype: str
    classes: tuple[str, ...]
    channels: int
    cells: int
    image: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the values, which may come out of a file: a network of 10³⁰ cells would be built for ever."""
        if self.space not in SPACES:
            raise ValueError(f"space={self.space!r} is unknown; allowed: {', '.join(SPACES)}")
        if len(self.image) != 3:
            raise ValueError(f"image={self.image!r} is not possible; allowed: channels, height and width")
        for name, numbers in (("channels", (self.channels,)), ("cells", (self.cells,)), ("image", self.image)):
            if wrong := [number for number in numbers if not 1 <= number <= LARGEST]:
                raise ValueError(f"{name}={wrong[0]!r} is out of range; allowed: 1 to {LARGEST}")
        if not len(self.mean) == len(self.std) == self.image[0]:
            raise ValueError(f"mean={self.mean!r}, std={self.std!r} of {self.image[0]} channels; allowed: one of each")

    @classmethod
    def of(cls, images: LabelledImages, space: str, genotype: str, channels: int, cells: int) -> "Blueprint":
        """Return the blueprint of a network for these images."""
        mean, std = (tuple(values.tolist()) for values in images.moments())
        _, *image = images.pixels.shape
        return cls(space, genotype, images.classes, channels, cells, (image[0], image[1], image[2]), mean, std)

    @property
    def size(self) -> Size:
        """How large the network is."""
        return Size(len(self.classes), self.channels, self.cells, self.image[0])

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, ``(C,)``."""
        return torch.tensor(self.mean), torch.tensor(self.std)

    def network(self, auxiliary: bool = False) -> Network:
        """Return the new network.

        Raises:
            ValueError: a genotype that is none of the space, or an auxiliary head where the space has none.
        """
        return get_space(self.space).network(self.genotype, self.size, auxiliary)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the JSON into a folder."""
        write_bytes(Path(folder) / FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Blueprint":
        """Return what :meth:`write` left in a folder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(folder) / FILE
        try:
            return cls(**fitted(json.loads(path.read_text())))
        except FileNotFoundError:
            raise FileNotFoundError(f"{str(folder)!r} has no {FILE}") from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is no blueprint: {' '.join(str(error).split())}") from None


def fitted(values: Any) -> dict[str, Any]:
    """Return the fields of a blueprint out of a JSON.

    Raises:
        ValueError: other fields, or something of another type in one of them.
    """
    if not isinstance(values, dict) or values.keys() != KINDS.keys():
        raise ValueError(f"it holds other fields; allowed: {', '.join(KINDS)}")
    found = {}
    for name, kind in KINDS.items():
        items = values[name] if name in LISTS else [values[name]]
        types = {kind, int} if kind is float else {kind}
        if not isinstance(items, list) or not {type(item) for item in items} <= types:  # the types: True is an int, too
            raise ValueError(f"{name}={values[name]!r:.60} is of another type; allowed: {kind.__name__}")
        found[name] = tuple(map(kind, items)) if name in LISTS else items[0]
    return found

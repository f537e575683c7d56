"""What has to be known of a network to build it again, and of its images to feed it: one small JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bdp_nas.commands.data import Images
from bdp_nas.spaces import SPACES, get_space
from bdp_nas.spaces.space import Network, Size
from frugal_shared.checkpoint import write_json
from frugal_shared.errors import RunError, UsageError, check_choice, check_range
from frugal_shared.reading import read_dataclass

FILE = "genotype.json"
LARGEST = 10_000  # of a network's numbers


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
        check_choice("space", self.space, SPACES)
        for name, value in (
            ("channels", self.channels),
            ("cells", self.cells),
            *(("image", side) for side in self.image),
        ):
            check_range(name, value, 1, LARGEST)
        if not len(self.mean) == len(self.std) == self.image[0]:
            raise UsageError(f"mean={self.mean!r}, std={self.std!r} of {self.image[0]} channels; allowed: one of each")

    @classmethod
    def of(cls, images: Images, space: str, genotype: str, channels: int, cells: int) -> "Blueprint":
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

    def write(self, folder: Path) -> None:
        """Write the JSON into a folder."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Blueprint":
        """Return what :meth:`write` left in a folder.

        Raises:
            RunError: there is no such file, or it holds something else.
        """
        try:
            return read_dataclass(folder / FILE, cls)
        except RunError as error:
            allowed = "the run folder of a search or a retraining that is done"
            raise RunError(f"{error}; allowed: {allowed}") from None


def blueprint_of(text: str) -> Blueprint | None:
    """Return the blueprint in a folder of a search or a retraining; None if the text names no folder.

    Raises:
        RunError: a folder of something else.
    """
    try:
        return Blueprint.read(Path(text)) if Path(text).is_dir() else None
    except OSError:  # a genotype that is too long for a file's name
        return None


def genotype_of(text: str) -> str:
    """Return a genotype that is given as it is, or by the folder of a search or a retraining that found it.

    Raises:
        RunError: a folder of something else.
    """
    found = blueprint_of(text)
    return text if found is None else found.genotype

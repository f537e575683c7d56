"""One inspection image with its mask, and what every data set of them offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GOOD = "good"  # MVTec-AD's name of "no defect"
UNKNOWN = "unknown"  # nobody has said whether this image is normal


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is wrong with it."""

    image: NDArray[np.uint8]
    """``(H, W, 3)`` RGB."""
    mask: NDArray[np.bool_]
    """``(H, W)``, true where the image is defective; all false on a normal image, and where no mask is known."""
    category: str
    defect: str
    """Kind of defect; ``"good"`` on a normal image, ``"unknown"`` where nobody has said."""
    caption: str
    """One phrase naming state, defect, object and colour; empty if there is none."""
    source: str
    """The image's path, or ``procedural/<category>/<seed>-<index>``."""

    @property
    def is_anomalous(self) -> bool:
        """Whether the image is known to be defective; its mask may still be unknown (all false)."""
        return self.defect not in (GOOD, UNKNOWN)


@dataclass(frozen=True)
class Entry:
    """What is known of a sample before it is read or drawn."""

    category: str
    defect: str
    source: str
    has_mask: bool = True
    """Whether it is known which pixels are defective; a normal image needs no file to know that."""

    @property
    def is_anomalous(self) -> bool:
        """As :attr:`Sample.is_anomalous`."""
        return self.defect not in (GOOD, UNKNOWN)


class AnomalyData(Protocol):
    """A data set of normal and defective images: ``data[i]`` is the sample of ``data.entries[i]``."""

    @property
    def name(self) -> str:
        """What results and provenance call this data set."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in this data set, in the order of its tables."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """Category, defect and source of every sample; nothing is decoded for it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

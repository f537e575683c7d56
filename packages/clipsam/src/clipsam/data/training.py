"""What there is to train on: drawn images, painted photographs, and data sets on disk, joined to one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipsam.data.folders import load_folder
from clipsam.data.images import check_files
from clipsam.data.photographs import Painted
from clipsam.data.procedural import TRAIN_CATEGORIES, Procedural
from clipsam.data.sample import AnomalyData, Entry, Sample

PROCEDURAL, PHOTOGRAPHS = "procedural", "photographs"
TRAINED_CATEGORIES = f"{PROCEDURAL}/train-categories"
"""What provenance calls the half of the drawn categories that is trained on."""
SHARES = {PROCEDURAL: 3, PHOTOGRAPHS: 1}  # of the drawn images: photographs there are only ten
VAL_SEED = 1_000_000  # far from any seed that is trained with


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of a data set, in the given order."""

    data: AnomalyData
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.rows[index]]

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.data.name

    @property
    def categories(self) -> tuple[str, ...]:
        """The data set's categories."""
        return self.data.categories

    @property
    def entries(self) -> Sequence[Entry]:
        """Those of the chosen samples."""
        return tuple(self.data.entries[row] for row in self.rows)


@dataclass(frozen=True, eq=False)
class Joined:
    """Several data sets, one after the other."""

    parts: tuple[AnomalyData, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Sample:
        within = index
        for part in self.parts:
            if within < len(part):
                return part[within]
            within -= len(part)
        raise IndexError(f"index={index} is out of range; allowed: 0 to {len(self) - 1}")

    @property
    def name(self) -> str:
        """All names, joined by a plus."""
        return "+".join(part.name for part in self.parts)

    @property
    def categories(self) -> tuple[str, ...]:
        """All categories."""
        return tuple(dict.fromkeys(category for part in self.parts for category in part.categories))

    @property
    def entries(self) -> Sequence[Entry]:
        """Those of all parts."""
        return tuple(entry for part in self.parts for entry in part.entries)


def training_data(names: Iterable[str], images: int, val_images: int, seed: int) -> tuple[AnomalyData, AnomalyData]:
    """Return what to train on and, of other images, what to validate on.

    Args:
        names: "procedural" (the half of the categories that may be trained on), "photographs", or folders of data
            sets, whose test split is the one with masks.
        images: how many drawn images.
        val_images: how many drawn images to validate on; folders hold back as many, but at most a fifth.
        seed: of everything that is drawn.

    Raises:
        ValueError: a folder without a data set, or with a file that is no image.
    """
    names = tuple(dict.fromkeys(names))
    total = sum(SHARES.get(name, 0) for name in names)
    train, val = [], []
    for name in names:
        if name in SHARES:
            share = SHARES[name] / total
            train.append(drawn(name, round(images * share), seed))
            val.append(drawn(name, round(val_images * share), seed + VAL_SEED))
        else:
            data = load_folder(name, "test")
            check_files(path for row in data.rows for path in (row.image, row.mask) if path is not None)
            rows = tuple(row for row, entry in enumerate(data.entries) if entry.has_mask)
            every = max(5, len(rows) // val_images)
            val.append(Subset(data, rows[::every]))
            train.append(Subset(data, tuple(row for at, row in enumerate(rows) if at % every)))
    return Joined(tuple(train)), Joined(tuple(val))


def drawn(name: str, count: int, seed: int) -> AnomalyData:
    """Return drawn images of training categories, or photographs with painted defects."""
    if name == PROCEDURAL:
        return Procedural(count, TRAIN_CATEGORIES, seed=seed, name=TRAINED_CATEGORIES)
    return Painted(count, seed=seed)

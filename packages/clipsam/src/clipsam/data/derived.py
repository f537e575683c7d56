"""Data sets that are made of others: some of their samples, or several one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipsam.samples import AnomalyData, Entry, Sample


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

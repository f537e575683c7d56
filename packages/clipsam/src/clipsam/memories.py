"""What the images of a data set are compared with: a memory for every category, made when it is first needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clipsam.memory import Manner, Memory
from clipsam.pipeline import ClipSAM
from clipsam.samples import AnomalyData

Score = Literal["map", "distance", "combined", "mutual"]
SCORES: tuple[Score, ...] = get_args(Score)
"""What there is without other images; beside references; and beside each other."""
MAP, MUTUAL = "map", "mutual"


class UnusableReference(RuntimeError):
    """None of a category's references can be read."""


def wanted_manners(scores: Sequence[Score], has_references: bool) -> tuple[Manner, ...]:
    """Return the memories that the wanted rows need, the plain one beside ours.

    Raises:
        ValueError: a row that needs references, and there are none.
    """
    beside = [score for score in scores if score in ("distance", "combined")]
    if beside and not has_references:
        raise ValueError(f"score={beside[0]!r} without references; allowed: {MAP} and {MUTUAL}, or references")
    plain: tuple[Manner, ...] = ("distance", "combined") if has_references and (beside or not scores) else ()
    return (*plain, MUTUAL) if MUTUAL in scores else plain


@dataclass(frozen=True, eq=False)
class Memories:
    """The memories of every category, made when they are first needed.

    Args:
        model: the pipeline.
        data: the images that are scored, which "mutual" compares with each other.
        references: other images of their categories, if any.
        manners: which memories.
        unreadable: what a sample raises that is to be left out and named in ``failures``.
        failures: one line for every reference that could not be read.
    """

    model: ClipSAM
    data: AnomalyData
    references: AnomalyData | None
    manners: Sequence[Manner]
    unreadable: tuple[type[Exception], ...] = (OSError, ValueError)
    failures: list[str] = field(default_factory=list)
    made: dict[str, list[Memory]] = field(default_factory=dict)

    def of(self, category: str) -> list[Memory]:
        """Return a category's memories.

        Raises:
            UnusableReference: none of its references can be read.
        """
        if category not in self.made:
            made = []
            beside: list[Manner] = [manner for manner in self.manners if manner != MUTUAL]
            if beside and self.references is not None:
                images, lines = self._images(self.references, category)
                self.failures.extend(lines)
                memory = self.model.remember(images, category)
                made += [memory.seen_as(manner) for manner in beside]
            if MUTUAL in self.manners:
                images, _ = self._images(self.data, category)  # its failures are told of in their turn
                made.append(self.model.remember(images, category, manner=MUTUAL))
            self.made[category] = made
        return self.made[category]

    def _images(self, data: AnomalyData, category: str) -> tuple[list[NDArray[np.uint8]], list[str]]:
        """Return the images of a category that can be read, and one line for each of the others."""
        images, lines = [], []
        for row, entry in enumerate(data.entries):
            if entry.category == category:
                try:
                    images.append(data[row].image)
                except self.unreadable as error:
                    lines.append(f"reference {error}")
        if not images:
            raise UnusableReference(f"none of the references of {category!r} can be used: {'; '.join(lines)}")
        return images, lines

"""The progressive keep ratio: which share of its samples a level keeps in each epoch of the search.

A reconstruction: the paper prunes "gradually during the search", at a pace unknown to us.

::

    r(t) = 1                     warm-up, t < t_w
    r(t) = 1 − (1 − r_f) u       linear,     u = (t − t_w) / (t_e − t_w)
    r(t) = r_f^u                 geometric
    r(t) = r_f                   t ≥ t_e

With batches of constant size, the mean of r is the cost of the search relative to one on all samples.
"""

from dataclasses import dataclass

SHAPES = ("linear", "geometric", "steps")


@dataclass(frozen=True)
class KeepSchedule:
    """The keep ratio of one level. As it stands a search costs about 0.41 of one that keeps all.

    Args:
        epochs: of the whole search.
        final: r_f, the ratio in the end, in (0, 1]; 1 prunes nothing.
        warmup: share of the epochs before anything is pruned, rounded to whole epochs, at least one.
        end: share of the epochs after which nothing more is pruned; after the warm-up.
        shape: ``geometric`` prunes most at first, ``linear`` evenly; ``steps`` follows the geometric curve, but only
            every ``every`` epochs, each time with the same share of what is left.
        every: epochs between two prunings of ``steps``.

    Raises:
        ValueError: a value out of its range.
    """

    epochs: int
    final: float = 0.2
    warmup: float = 0.1
    end: float = 0.5
    shape: str = "geometric"
    every: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible; allowed: 1 or more")
        if not 0 < self.final <= 1:
            raise ValueError(f"final={self.final!r} is not possible; allowed: above 0, at most 1")
        if not 0 <= self.warmup < self.end <= 1:
            raise ValueError(f"warmup={self.warmup!r}, end={self.end!r} is not possible; allowed: 0 ≤ warmup < end ≤ 1")
        if self.shape not in SHAPES:
            raise ValueError(f"shape={self.shape!r} is unknown; allowed: {', '.join(SHAPES)}")

    @property
    def warmup_epochs(self) -> int:
        """t_w, at least 1: the first epoch is what the first scores come from."""
        return max(1, round(self.warmup * self.epochs))

    @property
    def end_epoch(self) -> int:
        """t_e, after t_w."""
        return max(self.warmup_epochs + 1, round(self.end * self.epochs))

    def ratio(self, epoch: int) -> float:
        """Return r(t) for t = ``epoch``, counted from 0; after the last epoch nothing changes."""
        epoch = min(epoch, self.epochs - 1)
        since, span = epoch - self.warmup_epochs, self.end_epoch - self.warmup_epochs
        if since <= 0:
            return 1.0
        if since >= span:
            return self.final
        if self.shape == "linear":
            return 1 - (1 - self.final) * since / span
        if self.shape == "steps":
            since -= since % self.every
        return self.final ** (since / span)

    def count(self, epoch: int, size: int) -> int:
        """Return how many of ``size`` samples are kept in this epoch."""
        return round(self.ratio(epoch) * size)

    def mean(self) -> float:
        """Return the mean keep ratio: the cost relative to a search that keeps all samples."""
        return sum(map(self.ratio, range(self.epochs))) / self.epochs

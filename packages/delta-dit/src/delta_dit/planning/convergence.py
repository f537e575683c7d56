"""How far uncached images are from the exact solution, by their number of steps, as a few cheap runs tell.

A solver of order p in T steps is c·T^−p away from the exact solution of its differential equation. So the images of
T/2 steps are ρ = 2^p + 1 times as far from those of 2·T as the images of T steps are, which gives p, and then c
(Richardson). Where images do not converge (a stochastic solver, a model distilled for few steps), there is no exact
one.
"""

import math
from typing import NamedTuple

LEAST_ORDER = 0.3
"""Below it, images do not come nearer to anything: halving their distance would take ten times the steps."""


class Convergence(NamedTuple):
    """The mean squared error of uncached images to the exact ones in [0, 1]² is (c·T^−p)²."""

    c: float
    p: float

    @classmethod
    def of(cls, steps: int, half: float, whole: float) -> "Convergence":
        """Return it from the mean squared errors of T/2 and of T steps to the images of 2·T steps."""
        ratio = math.sqrt(half / whole) if whole > 0 else 0.0
        p = math.log2(ratio - 1) if ratio > 1 else 0.0
        if p < LEAST_ORDER:
            return cls(math.inf, 0.0)
        return cls(math.sqrt(whole) / (1 - 2**-p) * steps**p, p)

    @property
    def exists(self) -> bool:
        """Whether there is an exact solution that the images come nearer to."""
        return self.p > 0

    def error(self, steps: int) -> float:
        """Return the mean squared error of uncached images in so many steps."""
        return (self.c * steps**-self.p) ** 2

"""What a cache did: :class:`DeltaCacheStats`."""

from collections import Counter
from dataclasses import dataclass, field

from delta_dit.delta_plan import DeltaPlan


@dataclass
class DeltaCacheStats:
    """What a cached transformer did since the cache was enabled, calls with gradients on (never cached) apart."""

    calls: int = 0
    reuse_calls: int = 0
    blocks_run: int = 0
    blocks_total: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    """Calls that the plan wanted to reuse and that ran in full, by reason; and those of runs that reused nothing."""
    delta_bytes: int = 0
    """The most that one transformer's Δs held at once, in one thread or request."""
    seconds: float = 0.0
    """Time that this process spent on the cache itself. Work that it gave to a GPU is not waited for."""
    plan: DeltaPlan | None = None
    """That of the newest run."""

    @property
    def block_speedup(self) -> float:
        """Block evaluations without the cache ÷ with it."""
        return self.blocks_total / self.blocks_run if self.blocks_run else float("nan")

    def __add__(self, other: "DeltaCacheStats") -> "DeltaCacheStats":
        return DeltaCacheStats(
            self.calls + other.calls,
            self.reuse_calls + other.reuse_calls,
            self.blocks_run + other.blocks_run,
            self.blocks_total + other.blocks_total,
            self.fallbacks + other.fallbacks,
            max(self.delta_bytes, other.delta_bytes),
            self.seconds + other.seconds,
            other.plan or self.plan,
        )

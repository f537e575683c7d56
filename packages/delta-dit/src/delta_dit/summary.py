"""What a cache did, as a table to be read: :func:`delta_cache_summary`."""

from dataclasses import dataclass
from typing import Any

from delta_dit.attach import caches_of
from delta_dit.delta_plan import DeltaPlan
from delta_dit.stats import DeltaCacheStats


@dataclass(frozen=True)
class DeltaCacheSummary:
    """What the cache of each transformer did; as a string it is a table.

    Args:
        transformers: of each the name of its class, its statistics, and why the next run will reuse nothing, if so.
    """

    transformers: tuple[tuple[str, DeltaCacheStats, str | None], ...]

    def __str__(self) -> str:
        return "\n\n".join(_table(*each) for each in self.transformers)


def delta_cache_summary(model: Any) -> DeltaCacheSummary:
    """Return what the cache of a pipeline, or of a transformer, has done so far, to be printed.

    Raises:
        ValueError: no cache is enabled.
    """
    return DeltaCacheSummary(tuple((caches.name, caches.stats, caches.look()) for caches in caches_of(model)))


def _table(name: str, stats: DeltaCacheStats, obstacle: str | None) -> str:
    saved = stats.blocks_total - stats.blocks_run
    rows = [
        ("transformer", name),
        *_plan_rows(stats.plan),
        ("calls", f"{stats.calls}: {stats.calls - stats.reuse_calls} full, {stats.reuse_calls} reused"),
        (
            "blocks saved",
            f"{saved} of {stats.blocks_total}, {_times(stats.block_speedup) if stats.calls else 'no call yet'}",
        ),
        ("Δ memory", f"{stats.delta_bytes / 1e6:.1f} MB at most"),
        ("Δ time", f"{stats.seconds:.3f} s of this process"),
        *((f"fallback × {count}", reason) for reason, count in stats.fallbacks.most_common()),
    ]
    if not stats.fallbacks:
        rows.append(("fallbacks", "none"))
    if obstacle is not None:
        rows.append(("next run", f"reuses nothing: {obstacle}"))
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in rows)


def _plan_rows(plan: DeltaPlan | None) -> list[tuple[str, str]]:
    if plan is None:
        return [("plan", "none yet: no run has begun")]
    reused = plan.steps - plan.full_steps
    return [
        ("plan", "".join("." if reuse else "F" for reuse in plan.reuses) + "  (F full, . reused)"),
        ("steps", f"{plan.steps}: {plan.full_steps} full, {reused} reused, {_times(plan.mac_speedup())} planned"),
    ]


def _times(speedup: float) -> str:
    return f"{speedup:.2f}×"

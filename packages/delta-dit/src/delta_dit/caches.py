"""Which state a call belongs to: a transformer has one cache for each thread, and one for each named request."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from delta_dit.adapters import Block
from delta_dit.cache import DeltaCache
from delta_dit.clock import Clock, RequestClock, SchedulerClock, TimestepClock
from delta_dit.config import DeltaCacheConfig
from delta_dit.stats import DeltaCacheStats

_request: ContextVar[str | None] = ContextVar("delta_cache_request", default=None)


class Caches:
    """The caches of one transformer. Two threads that sample at once, and two requests, do not mix their Δs.

    Args:
        config: what they do.
        name: the transformer's.
        blocks: the transformer's.
        pipeline: whose scheduler tells the steps, if there is one.
        look: see :class:`DeltaCache`.
        shares_runs: see :class:`DeltaCache`.
    """

    def __init__(
        self,
        config: DeltaCacheConfig,
        name: str,
        blocks: list[Block],
        pipeline: Any | None,
        look: Callable[[], str | None],
        shares_runs: bool = False,
    ) -> None:
        self.config, self.name, self.blocks, self.look, self.shares_runs = config, name, blocks, look, shares_runs
        self.place = {id(block.module): index for index, block in enumerate(blocks)}
        self.follow(pipeline)
        self._lock = threading.Lock()
        self._requests: dict[str, DeltaCache] = {}
        self._living: list[tuple[weakref.ref[DeltaCache], DeltaCacheStats]] = []
        self._past = DeltaCacheStats()
        self._told: set[str] = set()

    def follow(self, pipeline: Any | None) -> None:
        """Take the steps from this pipeline's scheduler from now on; None: off the timesteps. Runs begin anew."""
        self._pipeline = None if pipeline is None else weakref.ref(pipeline)  # it holds the transformer, which holds us
        self._scheduler = getattr(pipeline, "scheduler", None)
        self._of_thread = threading.local()

    @property
    def pipeline(self) -> Any | None:
        """Whose scheduler tells the steps, if it is still there."""
        return None if self._pipeline is None else self._pipeline()

    @property
    def cache(self) -> DeltaCache:
        """That of the request at hand, or else of this thread."""
        name = _request.get()
        if name is not None and name in self._requests:
            return self._requests[name]
        try:
            return self._of_thread.cache
        except AttributeError:
            self._of_thread.cache = self._new(self._clock())
            return self._of_thread.cache

    @property
    def stats(self) -> DeltaCacheStats:
        """What all of them did."""
        with self._lock:
            return sum((stats for _, stats in self._living), self._past)

    @contextmanager
    def request(self, name: str, steps: int, levels: Sequence[float] | None, step: int | None) -> Iterator[DeltaCache]:
        """Give a request's calls a cache of their own, which ends with the request's last step."""
        cache = self._requests.get(name)
        if cache is None or cache.clock.steps != steps or cache.clock.levels != levels:
            cache = self._requests[name] = self._new(RequestClock(steps, levels))
        assert isinstance(cache.clock, RequestClock)
        cache.clock.told = step
        token = _request.set(name)
        try:
            yield cache
        finally:
            _request.reset(token)
            if cache.run is not None and cache.run.at_its_last_step:
                self.end_request(name)

    def end_request(self, name: str) -> None:
        """Forget a request; one that is not known is no fault."""
        self._requests.pop(name, None)

    def _clock(self) -> Clock:
        if self._pipeline is None:
            return TimestepClock(self.config.num_inference_steps or 0)
        return SchedulerClock(self.pipeline or SimpleNamespace(scheduler=self._scheduler))

    def _new(self, clock: Clock) -> DeltaCache:
        cache = DeltaCache(self.config, self.blocks, clock, self.look, self._tell, self.shares_runs)
        with self._lock:
            for reference, stats in self._living:
                self._past = self._past + stats if reference() is None else self._past
            self._living = [pair for pair in self._living if pair[0]() is not None]
            self._living.append((weakref.ref(cache), cache.stats))
        return cache

    def _tell(self, message: str) -> None:
        """Warn once of each thing."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(f"{self.name}: {message}", stacklevel=2)

"""What blocks take and what they add, recorded by step while a pipeline samples: projections of some tokens."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_dit.adapters import Block, adapter_for, argument_reader, blocks_of, stream_reader
from delta_dit.attach import led_transformers
from delta_dit.clock import SchedulerClock

Hook = Callable[..., None]
TOKENS = 16
"""Of so many tokens something is kept."""
SKETCH_SIZE = 31
"""Numbers per projection of a token."""


class Recorder:
    """Keeps, by step, projections of what the first block takes and of what every block adds to it.

    Of the stream that the output is made from, not its text's; rows are samples, once per branch of guidance.

    Attributes:
        levels: noise level of each step of the run that :meth:`take` was called for last, 1 = pure noise.
        starts: of that run, the steps but the first at which a transformer runs that did not run in the step before: it
            has nothing there that could be reused.
    """

    def __init__(self, clock: SchedulerClock) -> None:
        self.clock = clock
        self.step = -1
        self.levels: list[float] = []
        self.starts: list[int] = []
        self._ran: defaultdict[int, set[int]] = defaultdict(set)  # step → which transformers
        self.kept: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        """(step, l) → the projections ``(rows, TOKENS, SKETCH_SIZE)`` of each call; block l − 1, or its input at 0."""

    def begin(self, transformer: int, timestep: Any) -> None:
        """Note which of the transformers is about to be called, and where in the run that is.

        Raises:
            ValueError: the scheduler does not tell.
        """
        self.step = self.clock.known_step(timestep)
        self._ran[self.step].add(transformer)

    def reads(self, index: int, block: Block) -> Hook:
        """Return the hook that takes a block's stream before and after it."""
        read, place = stream_reader(block), block.stack.place

        def hook(_: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            start, out = read(args, kwargs)[place], output[place] if isinstance(output, tuple) else output
            assert start is not None
            if index == 0:
                self.kept[self.step, 0].append(sketch(start).cpu())
            self.kept[self.step, index + 1].append(sketch(out - start).cpu())

        return cast(Hook, torch.compiler.disable(hook))

    def take(self, samples: int) -> Tensor:
        """Return the projections of the run that ended, ``(samples, T, 1 + L, M, K)``, and forget them.

        M are the tokens of all branches of guidance.

        A run may begin late in the scheduler's steps, as image-to-image does: its first is step 0.

        Raises:
            ValueError: guidance was on at some of the steps only, or the calls are no multiple of the samples.
        """
        kept, ran = dict(self.kept), dict(self._ran)
        self.kept.clear()
        self._ran.clear()
        steps, depth = range(min(ran), 1 + max(ran)), 1 + max(block for _, block in kept)
        if len(ran) < len(steps):
            raise ValueError(f"{type(self.clock.scheduler).__name__} gives a timestep twice; allowed: another one")
        table = [[torch.cat(kept[step, block]) for block in range(depth)] for step in steps]
        counts = {len(rows) for row in table for rows in row}
        if len(counts) > 1:
            raise ValueError("the steps have different numbers of branches; allowed: guidance that stays on")
        if counts.pop() % samples:
            raise ValueError(f"the transformer's batch is no multiple of the {samples} samples; allowed: one of them")
        self.levels = self.clock.levels[steps.start : steps.stop]
        self.starts = [step - steps.start for step in steps[1:] if ran[step] - ran[step - 1]]
        rows = torch.stack([torch.stack(row) for row in table])  # (T, 1 + L, branches · samples, TOKENS, K)
        by_sample = rows.unflatten(2, (-1, samples)).permute(3, 0, 1, 2, 4, 5)
        return by_sample.flatten(3, 4).contiguous()


@contextmanager
def recording(pipe: Any) -> Iterator[Recorder]:
    """Record what the blocks of a pipeline's transformers add to their inputs; its images stay the same.

    Raises:
        ValueError: the pipeline has no scheduler, no transformer, or such as do not go together.
    """
    recorder = Recorder(SchedulerClock(pipe))
    handles = []
    try:
        for number, transformer in enumerate(led_transformers(pipe)):
            handles.append(
                transformer.register_forward_pre_hook(_begins(recorder, number, transformer), with_kwargs=True)
            )
            for index, block in enumerate(blocks_of(transformer)):
                handles.append(block.module.register_forward_hook(recorder.reads(index, block), with_kwargs=True))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _begins(recorder: Recorder, number: int, transformer: nn.Module) -> Hook:
    timestep = argument_reader(transformer, adapter_for(transformer).timestep)

    def hook(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        recorder.begin(number, timestep(args, kwargs))

    return cast(Hook, torch.compiler.disable(hook))


def sketch(values: Tensor) -> Tensor:
    """Return random projections of some tokens, which keep inner products on average: E⟨Sx, Sy⟩ = ⟨x, y⟩.

    Channel i of a token is added to number i mod K with a random sign that follows from the number of channels.

    Args:
        values: ``(rows, ..., channels)``.

    Returns:
        ``(rows, TOKENS, K)`` float32, K = :data:`SKETCH_SIZE`.
    """
    tokens = values.flatten(1, -2)
    tokens = tokens[:, _places(tokens.shape[1])].float()
    channels = tokens.shape[2]
    signed = F.pad(tokens * _signs(channels, tokens.device), (0, -channels % SKETCH_SIZE))
    return signed.unflatten(2, (-1, SKETCH_SIZE)).sum(2)


@lru_cache(maxsize=8)
def _places(count: int) -> list[int]:
    """Return where the tokens lie, one at random in each of equal parts; some twice if there are few."""
    within = np.random.default_rng(TOKENS).random(TOKENS)
    return ((np.arange(TOKENS) + within) * count / TOKENS).astype(int).tolist()


@lru_cache(maxsize=8)
def _signs(channels: int, device: torch.device) -> Tensor:
    signs = np.random.default_rng(channels).integers(2, size=channels, dtype=np.int8)
    return torch.from_numpy(2 * signs - 1).to(device)

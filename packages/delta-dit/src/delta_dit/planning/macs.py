"""What share of a transformer's multiply-accumulates is in its blocks: what a cache can save."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from delta_dit.adapters import blocks_of
from delta_dit.attach import led_transformers


@dataclass
class Count:
    """Floating-point operations of a pipeline's transformers, and those in their blocks."""

    all: int = 0
    in_blocks: int = 0

    @property
    def block_share(self) -> float:
        """The blocks' share; 1 if nothing could be counted, as of kernels that torch's counter does not know."""
        return self.in_blocks / self.all if 0 < self.in_blocks <= self.all else 1.0


@contextmanager
def counting(pipe: Any) -> Iterator[Count]:
    """Count what a pipeline's transformers do in a ``with`` block."""
    transformers, count, counter = led_transformers(pipe), Count(), FlopCounterMode(display=False)
    began: list[int] = []

    def before(*_: Any) -> None:
        began.append(counter.get_total_flops())

    def after(module: Any, *_: Any) -> None:
        done = counter.get_total_flops() - began.pop()
        if module in transformers:
            count.all += done
        else:
            count.in_blocks += done

    modules = [*transformers, *(block.module for each in transformers for block in blocks_of(each))]
    handles = [module.register_forward_pre_hook(before) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    try:
        with counter:
            yield count
    finally:
        for handle in handles:
            handle.remove()

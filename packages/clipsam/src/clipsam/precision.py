"""Half precision where it is safe: a module whose towers compute in it while everything else stays in single."""

from typing import Any, Self

import torch
from torch import nn


class TowerPrecision(nn.Module):
    """A module that ``.to()``, ``.half()`` and their like move as a whole, but of which only the towers change format.

    Towers take nearly all of the time. Heads, prompts and maps gain nothing by half precision and lose digits.
    """

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let the towers compute in another number format."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module as :meth:`torch.nn.Module.to` does; a number format is for the towers alone."""
        parse: Any = getattr(torch._C, "_nn")._parse_to  # noqa: B009 - as torch's own, which has no stub of it
        device, dtype, *_ = parse(*args, **kwargs)
        if device is not None:
            super().to(device)
        return self if dtype is None else self.compute_in(dtype)

    def half(self) -> Self:
        """Let the towers compute in float16."""
        return self.compute_in(torch.float16)

    def bfloat16(self) -> Self:
        """Let the towers compute in bfloat16."""
        return self.compute_in(torch.bfloat16)

    def float(self) -> Self:
        """Let the towers compute in float32."""
        return self.compute_in(torch.float32)

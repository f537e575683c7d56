"""The operations of all spaces, and what cells do with them.

They follow the networks of DARTS (github.com/quark0/darts, Apache-2.0), NAS-Bench-201 (D-X-Y/AutoDL-Projects, MIT) and
MobileNetV2; every convolution is without bias and followed by a batch norm.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size, up to the stride."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


class Activated(nn.Module):
    """y = body(ReLU(x)); whoever runs many of them on one x computes the ReLU once and calls the body."""

    body: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.body(F.relu(x))


class ReLUConvBN(Activated):
    """ReLU, convolution, batch norm; ``copies`` of it run as one, their outputs one after the other as channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, affine: bool, copies: int = 1):
        super().__init__()
        outputs = copies * outputs
        self.body = nn.Sequential(conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs, affine=affine))


def separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """Return a depthwise and a pointwise convolution with one batch norm."""
    depthwise = conv(channels, channels, kernel, stride, dilation, groups=channels)
    return [depthwise, conv(channels, channels, 1), nn.BatchNorm2d(channels, affine=affine)]


class SeparableConv(Activated):
    """Twice ReLU, depthwise convolution, pointwise convolution, batch norm; the stride is the first one's."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool):
        super().__init__()
        first, second = (separable(channels, kernel, step, 1, affine) for step in (stride, 1))
        self.body = nn.Sequential(*first, nn.ReLU(), *second)


class DilatedConv(Activated):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool):
        super().__init__()
        self.body = nn.Sequential(*separable(channels, kernel, stride, 2, affine))


class TwoGrids(nn.Module):
    """Half the channels from the even pixels, half from the odd ones, then a batch norm; odd sizes are padded."""

    def __init__(self, inputs: int, outputs: int, affine: bool):
        super().__init__()
        self.even = conv(inputs, outputs // 2, 1, stride=2)
        self.odd = conv(inputs, outputs - outputs // 2, 1, stride=2)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', ⌈H/2⌉, ⌈W/2⌉)``."""
        odd = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(odd)], dim=1))


class FactorizedReduce(Activated):
    """ReLU, and a pointwise convolution with stride 2 that looks at more than a quarter of the pixels."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool):
        super().__init__()
        if outputs < 2:
            raise ValueError(f"a reducing skip with {outputs} channel; allowed: 2 or more")
        self.body = TwoGrids(inputs, outputs, affine)


def average_pool(channels: int, stride: int, *, affine: bool) -> nn.Module:
    """Return the average over 3×3, without the padding."""
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def max_pool(channels: int, stride: int, *, affine: bool) -> nn.Module:
    """Return the maximum over 3×3."""
    return nn.MaxPool2d(3, stride, 1)


def skip(channels: int, stride: int, *, affine: bool) -> nn.Module:
    """Return the identity, or with stride 2 a factorized reduction."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
"""Plain convolutions: those that leave one state read the same input, so they run as one. Separable ones do not: as
grouped convolutions they took about twice as long at 16 channels (one process on CPU, batch 64)."""

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "max_pool_3x3": max_pool,
    "avg_pool_3x3": average_pool,
    "skip_connect": skip,
    "sep_conv_3x3": lambda channels, stride, *, affine: SeparableConv(channels, 3, stride, affine=affine),
    "sep_conv_5x5": lambda channels, stride, *, affine: SeparableConv(channels, 5, stride, affine=affine),
    "dil_conv_3x3": lambda channels, stride, *, affine: DilatedConv(channels, 3, stride, affine=affine),
    "dil_conv_5x5": lambda channels, stride, *, affine: DilatedConv(channels, 5, stride, affine=affine),
    "nor_conv_1x1": lambda channels, stride, *, affine: ReLUConvBN(channels, channels, 1, stride, affine=affine),
    "nor_conv_3x3": lambda channels, stride, *, affine: ReLUConvBN(channels, channels, 3, stride, affine=affine),
}
"""What builds the operations of cells, by name, from (channels, stride, affine=); all keep the number of channels."""


class MBConv(nn.Module):
    """MobileNetV2's block: expand, depthwise convolution, project; plus its input where shapes allow.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: of the depthwise convolution.
        stride: of the depthwise convolution.
        expansion: of the channels in between; at 1 nothing expands them.
        affine: whether batch norms have a scale and a shift.
        activation: ``nn.ReLU6`` or ``nn.ReLU``.
        eps: of the batch norms.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        *,
        affine: bool,
        activation: type[nn.Module],
        eps: float,
    ):
        super().__init__()
        hidden, norm = inputs * expansion, partial(nn.BatchNorm2d, eps=eps, affine=affine)
        expand = [conv(inputs, hidden, 1), norm(hidden), activation()] if expansion > 1 else []
        depthwise = [conv(hidden, hidden, kernel, stride, groups=hidden), norm(hidden), activation()]
        self.body = nn.Sequential(*expand, *depthwise, conv(hidden, outputs, 1), norm(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``; where the input is added, drop the rest with this chance."""
        return x + drop_path(self.body(x), drop) if self.residual else self.body(x)


class Shortcut(nn.Module):
    """The identity, or a pointwise convolution and a batch norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, affine: bool):
        super().__init__()
        same = stride == 1 and inputs == outputs
        change = [] if same else [conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs, affine=affine)]
        self.body = nn.Sequential(*change)

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``; it is no path that could be dropped."""
        return self.body(x)


def drop_path(x: Tensor, chance: float) -> Tensor:
    """Set whole samples of ``(B, C, H, W)`` to 0 with this chance, and divide the others by 1 − chance."""
    if not chance:
        return x
    keep = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - chance)
    return x * keep / (1 - chance)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal parts of ``(B, C, H, W)``: channel g·C/G + c becomes c·G + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

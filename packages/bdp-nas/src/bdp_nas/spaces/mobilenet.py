"""A MobileNet-like space in the manner of ProxylessNAS: 21 blocks, kernels 3, 5, 7 × expansions 3, 6, or a skip.

A genotype lists the blocks, ``k3e3-k5e6-skip-…``; a block can be skipped where it keeps the shape, and its input is
added there in any case. ``Size.channels`` is the width of the stem (published: 32; the others follow in proportion),
``Size.cells`` the blocks in each stage but the last, which has one (published: 4). Skeleton of
github.com/mit-han-lab/proxylessnas (MIT), made for images of 224; α is relaxed by a softmax, not by sampled paths.
Which variant Bi-level Data Pruning used is not known: this is a reconstruction.
"""

import itertools
from collections.abc import Sequence
from functools import partial

from torch import nn

from bdp_nas.genotype import check_names
from bdp_nas.spaces.chain import ChainSpace, Place
from bdp_nas.spaces.operations import MBConv, Shortcut, conv
from bdp_nas.spaces.space import Size

BLOCKS = {f"k{kernel}e{expansion}": (kernel, expansion) for kernel in (3, 5, 7) for expansion in (3, 6)}
SKIP = "skip"
STEM, FIRST, LAST = 32, 16, 1280
STAGES = ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))
"""Width and stride of each stage."""

EPS = 1e-3
NORM = partial(nn.BatchNorm2d, eps=EPS)


def scaled(width: int, size: Size) -> int:
    """Return a published width in proportion to the stem's."""
    return max(1, round(width * size.channels / STEM))


class MobileNetSpace(ChainSpace):
    """The space of ProxylessNAS."""

    name = "mobilenet"
    skip = SKIP

    def operations(self, genotype: str) -> tuple[str, ...]:
        """Return the operation of each block."""
        names = tuple(genotype.strip().split("-"))
        check_names(names, (*BLOCKS, SKIP))
        return names

    def genotype(self, operations: Sequence[str]) -> str:
        """Write one operation for each block as text."""
        return "-".join(operations)

    def places(self, size: Size) -> list[Place]:
        """Return the blocks: the first of a stage changes the shape, the others can be skipped."""
        widths = [scaled(width, size) for width in (FIRST, *(width for width, _ in STAGES))]
        counts = [size.cells] * (len(STAGES) - 1) + [1]
        places = []
        for (inputs, outputs), (_, stride), count in zip(itertools.pairwise(widths), STAGES, counts):
            places.append(Place(inputs, outputs, stride, tuple(BLOCKS)))
            places += [Place(outputs, outputs, 1, (*BLOCKS, SKIP))] * (count - 1)
        return places

    def operation(self, name: str, place: Place, affine: bool) -> nn.Module:
        """Return an operation at a place."""
        if name == SKIP:
            return Shortcut(place.inputs, place.outputs, place.stride, affine=affine)
        kernel, expansion = BLOCKS[name]
        return block(place, kernel, expansion, affine)

    def stem(self, size: Size) -> nn.Module:
        """Return a convolution with stride 2 and a fixed block without expansion."""
        convolution = conv(size.in_channels, size.channels, 3, 2), NORM(size.channels), nn.ReLU6()
        fixed = Place(size.channels, scaled(FIRST, size), 1, ())
        return nn.Sequential(*convolution, block(fixed, 3, 1, affine=True))

    def head(self, size: Size) -> nn.Module:
        """Return the last pointwise convolution, the mean over pixels and the classifier."""
        inputs, width = scaled(STAGES[-1][0], size), scaled(LAST, size)
        mixing = conv(inputs, width, 1), NORM(width), nn.ReLU6()
        return nn.Sequential(*mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, size.classes))


def block(place: Place, kernel: int, expansion: int, affine: bool) -> MBConv:
    """Return MobileNetV2's block at a place."""
    shape = place.inputs, place.outputs, kernel, place.stride, expansion
    return MBConv(*shape, affine=affine, activation=nn.ReLU6, eps=EPS)

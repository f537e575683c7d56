"""NAS-Bench-Macro: 8 blocks, each an identity or one of two MobileNet blocks, 6,561 networks (arXiv 2103.11922).

A genotype is the benchmark's own text, a digit for each block, such as ``22212220``. ``Size.channels`` is the width of
the stem (published: 32), ``Size.cells`` the blocks in the last two of the three stages (published: 3), the first has
one less. Follows github.com/xiusu/NAS-Bench-Macro.
"""

from collections.abc import Sequence

from torch import nn

from bdp_nas.spaces.chain import ChainSpace, Place
from bdp_nas.spaces.operations import MBConv, Shortcut, conv
from bdp_nas.spaces.space import Size

OPERATIONS = ("identity", "k3e3", "k5e6")
LAST = 1280  # with a stem of 32
EPS = 1e-5


class MacroSpace(ChainSpace):
    """The space of NAS-Bench-Macro."""

    name = "macro"
    skip = "identity"

    def operations(self, genotype: str) -> tuple[str, ...]:
        """Return the operation of each block."""
        digits = genotype.strip()
        if not digits or set(digits) - set("012"):
            raise ValueError(f"genotype {genotype!r} does not parse; allowed: digits 0, 1 and 2, one for each block")
        return tuple(OPERATIONS[int(digit)] for digit in digits)

    def genotype(self, operations: Sequence[str]) -> str:
        """Write one operation for each block as text."""
        return "".join(str(OPERATIONS.index(operation)) for operation in operations)

    def places(self, size: Size) -> list[Place]:
        """Return the blocks: the first of each stage halves the size and doubles the width."""
        width, places = size.channels, []
        for count in (max(1, size.cells - 1), size.cells, size.cells):
            places.append(Place(width, 2 * width, 2, OPERATIONS))
            width = 2 * width
            places += [Place(width, width, 1, OPERATIONS)] * (count - 1)
        return places

    def operation(self, name: str, place: Place, affine: bool) -> nn.Module:
        """Return an operation at a place; an identity that changes the shape is a pointwise convolution."""
        if name == self.skip:
            return Shortcut(place.inputs, place.outputs, place.stride, affine=affine)
        kernel, expansion = (3, 3) if name == "k3e3" else (5, 6)
        shape = place.inputs, place.outputs, kernel, place.stride, expansion
        return MBConv(*shape, affine=affine, activation=nn.ReLU, eps=EPS)

    def stem(self, size: Size) -> nn.Module:
        """Return a convolution."""
        return nn.Sequential(conv(size.in_channels, size.channels, 3), nn.BatchNorm2d(size.channels), nn.ReLU())

    def head(self, size: Size) -> nn.Module:
        """Return the last pointwise convolution, the mean over pixels and the classifier."""
        inputs, width = 8 * size.channels, LAST * size.channels // 32
        mixing = conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        return nn.Sequential(*mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, size.classes))

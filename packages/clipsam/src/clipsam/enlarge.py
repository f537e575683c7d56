"""Enlarging masks when only the sign counts: what bilinear interpolation makes positive, without its values.

Across, the values are interpolated. Down, a row between two of them, t of the way from a to b, is positive where ::

    (1 − t) a + t b > 0    ⇔    a > −t / (1 − t) · b

so that each of its pixels costs one comparison of numbers that lie in the cache, and one byte is written for it
instead of a float that is read again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(values: Tensor, scale: int) -> Tensor:
    """Return where values ``(..., h, w)`` are positive once they are enlarged, ``(..., scale · h, scale · w)`` bool.

    Args:
        values: of which ``F.interpolate(values, scale_factor=scale, mode="bilinear")`` is meant.
        scale: an even number: every new row lies between two old ones.

    Raises:
        ValueError: an odd scale.
    """
    if scale % 2:
        raise ValueError(f"scale={scale}; allowed: an even number")
    height, width = values.shape[-2:]
    # one old row more than there are gaps to fill, because half a gap lies above the first row and below the last
    shape = values.shape[:-2].numel(), height + 1, scale, scale * width
    found = torch.empty(shape, dtype=torch.bool, device=values.device)
    for plane, target in zip(values.reshape(-1, height, width), found):
        wide = F.interpolate(plane[None], scale * width, mode="linear", align_corners=False)[0]
        above, below = torch.cat([wide[:1], wide]), torch.cat([wide, wide[-1:]])
        for row in range(scale):
            t = (row + 0.5) / scale
            torch.gt(above, below * (-t / (1 - t)), out=target[:, row])
    rows = found.flatten(1, 2)[:, scale // 2 : -(scale // 2)]
    return rows.view(*values.shape[:-2], *rows.shape[1:])

"""Masks enlarged by comparisons are those of the interpolation."""

import pytest
import torch
import torch.nn.functional as F

from clipsam.enlarge import positive


@pytest.mark.parametrize("scale", [2, 4, 6])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (16, 24)])
def test_it_is_where_the_interpolation_is_positive(scale, shape):
    values = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(scale))
    large = F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
    found = positive(values, scale)
    assert found.shape == large.shape and found.dtype == torch.bool
    unclear = large.abs() < 1e-5  # rounding decides
    assert ((found == (large > 0)) | unclear).all()


def test_zero_is_not_positive():
    assert not positive(torch.zeros(4, 4), 2).any()


def test_an_odd_scale_is_refused():
    with pytest.raises(ValueError, match="scale=3; allowed: an even number"):
        positive(torch.zeros(4, 4), 3)

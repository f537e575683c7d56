"""How near pictures are, on figures that can be worked out by hand."""

import pytest
import torch

from delta_dit.planning.fidelity import psnr, relative_l1


def test_psnr_and_relative_l1():
    reference = torch.full((2, 3, 4, 4), 0.5)
    images = torch.stack([reference[0] + 0.1, reference[1]])
    assert psnr(images, reference).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)
    assert relative_l1(images, reference).tolist() == pytest.approx([0.2, 0.0], abs=1e-6)

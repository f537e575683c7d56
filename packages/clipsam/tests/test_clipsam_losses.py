"""The losses at their limits, and against a formula written out."""

import pytest
import torch
import torch.nn.functional as F

from clipsam.losses import dice_loss, focal_loss, stage_loss


def case(seed=0):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 8, 8, generator=random) < 0.3
    return torch.randn(2, 2, 8, 8, generator=random), mask


def perfect(mask, confidence=20.0):
    return torch.stack([~mask, mask], dim=1) * confidence


def test_focal_without_gamma_is_cross_entropy():
    logits, mask = case()
    torch.testing.assert_close(focal_loss(logits, mask, gamma=0), F.cross_entropy(logits, mask.long()))


def test_focal_looks_at_the_hard_pixels():
    logits, mask = case()
    p_t = logits.softmax(1).gather(1, mask.long()[:, None])
    torch.testing.assert_close(focal_loss(logits, mask), (-((1 - p_t) ** 2) * p_t.log()).mean())


def test_a_perfect_prediction_costs_nothing():
    _, mask = case()
    assert focal_loss(perfect(mask), mask) < 1e-6
    assert dice_loss(perfect(mask), mask) < 1e-4


def test_an_image_without_anomaly_has_finite_gradients():
    logits = case()[0].requires_grad_()
    stage_loss([logits], torch.zeros(2, 8, 8), weights=(1.0,)).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_dice_counts_each_image_alone():
    logits, mask = case()
    single = torch.stack([dice_loss(s[None], m[None]) for s, m in zip(logits, mask)])
    torch.testing.assert_close(dice_loss(logits, mask), single.mean())


def test_stages_are_upsampled_and_weighted():
    _, mask = case()
    small = torch.randn(2, 2, 4, 4)
    large = F.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    one = focal_loss(large, mask) + dice_loss(large, mask)
    torch.testing.assert_close(stage_loss([small, large], mask, weights=(0.25, 0.75)), one)
    with pytest.raises(ValueError, match="for 2 stages"):
        stage_loss([small, large], mask, weights=(1.0,))

import torch

from delta_dit.embedded.judge import load_judge
from frugal_shared.datasets import TexturedDigits


def test_the_shipped_judge_reads_digits_that_nobody_trained_on():
    images, labels = TexturedDigits("test", seed=7).batch(0, 500)
    outline, texture = load_judge().reads(images, labels)
    assert outline.double().mean() > 0.95
    assert texture.double().mean() > 0.98


def test_the_judge_is_not_fooled_by_the_wrong_label():
    images, labels = TexturedDigits("test", seed=7).batch(0, 100)
    outline, texture = load_judge().reads(images, (labels + 5) % 40)  # another digit and another texture
    assert not outline.any() or outline.double().mean() < 0.1
    assert texture.double().mean() < 0.1


def test_a_verdict_does_not_depend_on_the_batch():
    images, _ = TexturedDigits("test", seed=7).batch(0, 8)
    judge = load_judge()
    with torch.no_grad():
        together, alone = judge(images)[0], torch.cat([judge(images[i : i + 1])[0] for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

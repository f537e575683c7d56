"""The module against its figure: shapes, roles, residuals, equivariance."""

import pytest
import torch

from clipsam.umci import UMCI, ScalePath, StripPath, UMCIHead, attention, rough_map

B, C, D, T, H, W = 2, 12, 16, 10, 6, 9


@pytest.fixture
def umci():
    torch.manual_seed(0)
    return UMCI(C, T, hidden=D)


def inputs(seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(B, C, H, W, generator=random), torch.randn(2, T, generator=random)


def test_two_logits_for_every_patch(umci):
    patches, language = inputs()
    assert umci(patches, language).shape == (B, 2, H, W)
    assert umci(patches[:, :, :1, :1], language).shape == (B, 2, 1, 1)  # a grid smaller than the cells


def test_rows_and_columns_are_not_swapped(umci):
    seen = {}
    umci.column_path.register_forward_pre_hook(lambda _, a: seen.update(columns=a[0]))
    umci.row_path.register_forward_pre_hook(lambda _, a: seen.update(rows=a[0]))
    patches, language = inputs()
    patches[:, :, 2] += 5 * torch.randn(C, 1)  # a horizontal line
    umci(patches, language)
    assert seen["columns"].shape == (B, D, W) and seen["rows"].shape == (B, D, H)
    projected = umci.project(patches.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(seen["columns"], projected.mean(2))
    torch.testing.assert_close(seen["rows"], projected.mean(3))


def test_swapping_the_tokens_swaps_the_logits(umci):
    patches, language = inputs()
    torch.testing.assert_close(umci(patches, language.flip(0)), umci(patches, language).flip(1))


def test_strip_attention_has_its_roles():
    """a = Attention(Q=l_q, K=v, V=v); k = GRU(a, l_q); M = v + Norm(Attention(Q=v, K=k, V=l_v)), written out."""
    torch.manual_seed(1)
    path, strip, language = StripPath(D, T), torch.randn(B, D, W), torch.randn(B, 2, T)
    v = path.visual(strip).transpose(1, 2)
    l_q, l_v = path.query(language), path.value(language)

    def attend(q, k, values):
        return (q @ k.transpose(1, 2) / D**0.5).softmax(-1) @ values

    a = attend(l_q, v, v)
    k = torch.stack([path.gru(a[:, i], l_q[:, i]) for i in (0, 1)], dim=1)
    expected = v + path.norm(attend(v, k, l_v))
    torch.testing.assert_close(path(strip, language), expected.transpose(1, 2))


def test_every_parameter_is_used(umci):
    umci(*inputs()).square().sum().backward()
    unused = [name for name, p in umci.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert unused == []


@pytest.mark.parametrize(("path", "start"), [(StripPath(D, T), "visual"), (ScalePath(D, T), "query")])
def test_the_residual_starts_after_the_convolution(path, start):
    path.norm.weight.data.zero_()  # the attention contributes nothing
    values = torch.randn(B, D, W) if start == "visual" else torch.randn(B, D, H, W)
    torch.testing.assert_close(path(values, torch.randn(B, 2, T)), getattr(path, start)(values))


def test_attention_is_softmax_attention():
    q, k, v = torch.randn(3, 4, 2, D).unbind()
    torch.testing.assert_close(attention(q, k, v), (q @ k.mT / D**0.5).softmax(-1) @ v)


def test_a_batch_gives_what_single_images_give(umci):
    patches, language = inputs()
    single = torch.cat([umci(p[None], language) for p in patches])
    torch.testing.assert_close(umci(patches, language), single)


def test_each_image_may_have_its_own_tokens(umci):
    patches, language = inputs()
    both = torch.stack([language, 2 * language])
    torch.testing.assert_close(umci(patches, both)[1:], umci(patches[1:], 2 * language))


def test_pooling():
    umci = UMCI(C, T, hidden=D, pool_kernels=(3, 9))
    patches = torch.arange(5 * 7.0).view(1, 1, 5, 7)
    tiled = umci.pool(patches, 3)
    assert tiled.shape == (1, 1, 2, 3)  # the last cells hang over the border
    assert tiled[0, 0, 0, 0] == patches[0, 0, :3, :3].mean() and tiled[0, 0, 1, 2] == patches[0, 0, 3:, 6:].mean()
    full = UMCI(C, T, hidden=D, pool_kernels=(1, 3), pool_stride=1)
    torch.testing.assert_close(full.pool(patches, 1), patches)
    assert full.pool(patches, 3).shape == patches.shape
    assert full.pool(patches, 3)[0, 0, 0, 0] == patches[0, 0, :2, :2].mean()


def test_the_rough_map_is_a_mean_of_probabilities():
    logits = [torch.randn(B, 2, H, W) for _ in range(4)]
    expected = sum(torch.sigmoid(s[:, 1] - s[:, 0]) for s in logits) / 4
    torch.testing.assert_close(rough_map(logits), expected)


def test_one_module_for_each_stage():
    head = UMCIHead(4, C, T, hidden=D)
    patches, language = inputs()
    stages = head([patches] * 4, language)
    assert len(stages) == 4 and not torch.equal(stages[0], stages[1])
    with pytest.raises(ValueError, match="3 stages"):
        head([patches] * 3, language)


@pytest.mark.parametrize("options", [{"hidden": 12}, {"hidden": 0}, {"pool_kernels": (3,)}, {"pool_kernels": (0, 3)}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="allowed"):
        UMCI(C, T, **options)

"""Rarity: what an image consists of is common, whatever it looks like, and a checkpoint says whether it counts."""

import json

import numpy as np
import pytest
import torch

from clipsam.checkpoint import CONFIG
from clipsam.pipeline import ClipSAM, image_score
from clipsam.rarity import by_rarity, patch_rarity, stage_rarity
from clipsam.umci import UMCIHead


def test_rarity_is_one_minus_the_mean_cosine_with_the_most_similar_patches():
    torch.manual_seed(0)
    tokens = torch.randn(1, 6, 5, 8)  # 5 % of 40 patches: two
    flat = torch.nn.functional.normalize(tokens[0].flatten(1).T, dim=1)
    expected = []
    for index, token in enumerate(flat):
        others = torch.cat([flat[:index], flat[index + 1 :]])
        expected.append(1 - (others @ token).sort(descending=True).values[:2].mean())
    torch.testing.assert_close(stage_rarity(tokens)[0].flatten(), torch.stack(expected).clamp(0, 1))


def test_two_kinds_of_common_patches_are_common_and_the_odd_one_is_rare():
    kinds = torch.eye(3)
    which = torch.arange(64) % 2
    which[27] = 2
    tokens = kinds[which].T.view(1, 3, 8, 8)
    found = patch_rarity([tokens, 5 * tokens]).flatten()
    assert found[27] == 1 and found.sum() == pytest.approx(1, abs=1e-4)


def test_what_is_rare_but_normal_and_what_is_abnormal_but_everywhere_count_little():
    tokens = torch.zeros(1, 2, 8, 8)
    tokens[:, 0] = 1
    tokens[:, :, 0, 0] = torch.tensor([0.0, 1.0])
    rough = torch.full((1, 8, 8), 0.9)
    rough[0, 0, 0] = 0
    assert by_rarity(rough, [tokens]).max() == 0
    rough[0, 0, 0] = 0.9
    assert by_rarity(rough, [tokens])[0, 0, 0] == pytest.approx(0.9)


@pytest.mark.parametrize("side", [1, 2])
def test_the_smallest_grids_have_a_rarity(side):
    found = patch_rarity([torch.randn(2, 4, side, side)])
    assert found.shape == (2, side, side) and found.isfinite().all()


def test_a_checkpoint_tells_whether_rarity_counts_and_an_old_one_does_not_count_it(backbones, tmp_path):
    backbone = backbones["own"]
    torch.manual_seed(0)
    umci = UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 2))
    ClipSAM(backbone, umci, rarity=True).save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    [new] = ClipSAM.from_pretrained(tmp_path, backbone=backbone).segment([image], "nut")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config.pop("rarity") is True
    (tmp_path / CONFIG).write_text(json.dumps(config))
    [old] = ClipSAM.from_pretrained(tmp_path, backbone=backbone).segment([image], "nut")
    assert np.array_equal(new.anomaly_map, old.anomaly_map)
    assert old.score == image_score(old.anomaly_map) != new.score and 0 <= new.score <= 1

"""The embedded models' parts, with the real visual tower and random weights for what is to be trained."""

import json

import numpy as np
import pytest
import torch

from clipsam.commands import train_sam, train_text
from clipsam.commands.options import TrainSamConfig, TrainTextConfig
from clipsam.data.procedural import Procedural
from clipsam.embedded import dinov2 as embedded
from clipsam.embedded import sam_recipe, text_recipe
from frugal_shared.errors import RunError, UsageError


@pytest.fixture(scope="module")
def clip():
    return embedded.build_clip()


def test_every_text_has_tokens_and_ends_with_the_largest_number():
    tokens = embedded.LetterTokenizer()(["a nut", "Größe", "x" * 200])
    assert tokens.shape == (3, embedded.CONTEXT)
    assert (tokens.argmax(1) == torch.tensor([5, 5, embedded.CONTEXT - 1])).all()
    assert tokens[1, 2] == tokens[1, 3] == embedded.LetterTokenizer.unknown


def test_clip_and_sam_see_with_the_same_tower(clip):
    backbone = embedded.frozen_backbone(clip)
    trunk = embedded.DinoEncoder().trunk
    pixels = torch.randn(1, 3, 224, 224)
    theirs = trunk.forward_intermediates(pixels, indices=list(embedded.BLOCKS), intermediates_only=True)
    for ours, other in zip(backbone.patches(pixels), theirs):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_joint_patches_are_what_the_recipe_trains(clip):
    backbone = embedded.frozen_backbone(clip)
    pixels = torch.randn(2, 3, 224, 224)
    ones = torch.ones(2, 16, 16)
    expected = torch.nn.functional.normalize(backbone.joint(pixels).mean((2, 3)), dim=1)
    found = text_recipe.embed_regions(clip, backbone.patches(pixels)[-1], ones)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_foreign_and_damaged_weights_are_refused(clip, tmp_path):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="holds no weights"):
        embedded.read_weights(path, embedded.CLIP_WEIGHTS)
    with pytest.raises(RunError, match="is missing or unknown"):
        embedded.load_part(clip, {"logit_scale": torch.zeros(())}, missing="visual.trunk.")
    with pytest.raises(RunError, match="another model's"):
        embedded.load_part(clip, {"logit_scale": torch.zeros(3)}, missing="visual.")


def test_the_text_recipe_runs_and_its_weights_load(tmp_path):
    options = {"images": 16, "val_images": 4, "steps": 2, "save_every": 2, "batch_size": 16, "cpu": True}
    config = TrainTextConfig(output_dir=tmp_path / "run", **options)
    train_text.main(config)
    backbone = embedded.embedded_backbone(weights=config.output_dir / "clip.safetensors")
    assert backbone.text_dim == embedded.JOINT_DIM
    results = json.loads((config.output_dir / "results.json").read_text())
    assert {"state_auroc", "state_auroc_object", "defect_accuracy"} <= results.keys()
    with pytest.raises(UsageError, match="num_processes=2 would split the contrast"):
        train_text.main(TrainTextConfig(output_dir=tmp_path / "two", num_processes=2, **options))


def test_the_sam_recipe_runs_and_its_weights_load(tmp_path, monkeypatch):
    monkeypatch.setattr(sam_recipe, "CHECKED", 2)
    options = {"images": 16, "val_images": 8, "steps": 2, "save_every": 2, "batch_size": 2, "cpu": True}
    config = TrainSamConfig(output_dir=tmp_path / "run", **options)
    train_sam.main(config)
    segmenter = embedded.embedded_segmenter(config.output_dir / "sam.safetensors")
    embedding = segmenter.embed(Procedural(1, size=200)[0].image)
    assert embedding.features[0].shape == (1, embedded.SAM_WIDTH, embedded.SAM_GRID, embedded.SAM_GRID)
    results = json.loads((config.output_dir / "results.json").read_text())
    assert {"point_iou", "box_iou", "loose_box_iou", "held_out_box_iou"} <= results.keys()


def test_only_the_best_level_counts_and_a_perfect_mask_costs_nothing():
    target = torch.zeros(1, 8, 8)
    target[0, 2:5, 2:5] = 1
    perfect = (target * 2 - 1)[:, None] * 50
    scores = torch.tensor([[1.0, 0.0, 0.0]])
    levels = torch.cat([perfect, -perfect, -perfect], dim=1)
    assert sam_recipe.mask_loss(levels, scores, target) < 1e-3
    assert sam_recipe.mask_loss(-perfect.expand(1, 3, 8, 8), torch.zeros(1, 3), target) > 1


def test_prompts_ask_for_what_is_damaged_inside_the_box():
    mask = np.zeros((64, 64), bool)
    mask[10:20, 10:20] = mask[40:50, 30:50] = True
    for seed in range(20):
        asked = sam_recipe.ask(mask, np.random.default_rng(seed))
        targets = asked.targets.numpy().astype(bool)
        assert not (targets & ~mask).any() and targets.any()
        if asked.prompts.boxes is None:
            assert (asked.prompts.labels == 1).all()
            continue
        for box, target in zip(asked.prompts.boxes.numpy(), targets):
            x0, y0, x1, y1 = np.round(box).astype(int)
            np.testing.assert_array_equal(target[y0:y1, x0:x1], mask[y0:y1, x0:x1])
            assert target.sum() == mask[y0:y1, x0:x1].sum()

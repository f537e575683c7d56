"""CLIP's patches and texts: the right blocks, the right places, any size, nothing trained."""

import copy

import numpy as np
import open_clip
import pytest
import torch

from clipsam.backbone import Backbone
from clipsam.prompt_bank import PromptBank

PATCH = 8


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_stages_are_blocks_counted_from_zero(backbones, kind):
    backbone, outputs = backbones[kind], {}
    visual = backbone.model.visual
    blocks = visual.trunk.blocks if kind == "timm" else visual.transformer.resblocks
    handles = [blocks[i].register_forward_hook(lambda _m, _a, out, i=i: outputs.update({i: out})) for i in (1, 3)]
    stages = backbone.patches(torch.randn(2, 3, 32, 32))
    for handle in handles:
        handle.remove()
    assert len(stages) == 2
    for stage, block in zip(stages, (1, 3)):
        tokens = outputs[block][:, 1:]  # without the class token
        torch.testing.assert_close(stage, tokens.transpose(1, 2).reshape(2, -1, 4, 4))


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_rows_and_columns_stay_in_their_place(backbones, kind):
    """One patch of a wide image is changed: in the first block's tokens that very place changes most."""
    images = torch.zeros(2, 3, 4 * PATCH, 6 * PATCH)
    images[1, :, :PATCH, -PATCH:] = 3  # the upper right corner
    first, second = backbones[kind].patches(images)[0]
    changed = (second - first).norm(dim=0)
    assert changed.shape == (4, 6)
    assert changed.flatten().argmax() == 5


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_another_size_leaves_the_model_as_it_was(backbones, kind):
    backbone, square = backbones[kind], torch.randn(1, 3, 32, 32)
    before, state = backbone.patches(square), backbone.hash
    assert backbone.patches(torch.randn(1, 3, 24, 48))[0].shape[-2:] == (3, 6)
    del backbone.hash
    assert backbone.hash == state
    for first, second in zip(before, backbone.patches(square)):
        assert torch.equal(first, second)
    assert backbone.tower.position_for(5, 7) is backbone.tower.position_for(5, 7)  # interpolated once


def test_a_constant_position_embedding_stays_constant(backbones):
    tower = backbones["own"].tower
    before = tower.position.data.clone()
    tower.position.data[1:] = 0.5
    tower._positions.clear()
    assert torch.allclose(tower.position_for(9, 5)[1:], torch.tensor(0.5), atol=1e-6)
    tower.position.data.copy_(before)
    tower._positions.clear()


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_joint_patches_have_length_1(backbones, kind):
    joint = backbones[kind].joint(torch.randn(2, 3, 32, 40))
    assert joint.shape == (2, backbones[kind].text_dim, 4, 5)
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(2, 4, 5))


def test_a_tower_that_averages_embeds_an_image_of_one_patch_as_that_patch(backbones):
    tower, image = backbones["timm"].tower, torch.randn(1, 3, PATCH, PATCH)
    position = {"trunk.pos_embed": tower.position_for(1, 1)}
    whole = torch.func.functional_call(tower.visual, position, (image,))
    [last] = tower(image, tower.last)
    torch.testing.assert_close(tower.project(last)[:, :, 0, 0], whole)


def test_nothing_is_trained(backbones):
    backbone = backbones["own"].train()
    assert not backbone.training and not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_images_are_squashed_so_that_corners_stay(backbones):
    image = np.zeros((20, 60, 3), np.uint8)
    image[-4:, -6:] = 255
    square = backbones["own"].preprocess(image)
    assert square.shape == (3, 32, 32)
    assert square[:, -1, -1].min() > 1 > square[:, 0].max()


def test_texts_are_encoded_once_and_have_length_1(backbones):
    backbone, bank = backbones["own"], PromptBank()
    tokens = backbone.text("metal_nut", bank)
    assert tokens.shape == (2, backbone.text_dim)
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(2))
    assert backbone.text("metal_nut", bank) is tokens
    assert backbone.text("metal_nut", PromptBank(templates=("a scan of {}",))) is not tokens


def test_openai_weights_get_their_activation(monkeypatch):
    """open_clip builds plain GELU for the plain name and only warns."""
    built = {}

    def create(name, *, pretrained, force_quick_gelu):
        built.update(name=name, model=original(name, force_quick_gelu=force_quick_gelu))
        return built["model"]

    original = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", create)
    Backbone.from_open_clip("ViT-B-32", "openai", image_size=224, stages=(2, 5))
    assert type(built["model"].visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    Backbone.from_open_clip("ViT-B-32", None, image_size=224, stages=(2, 5))
    assert type(built["model"].visual.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 30}, "30"),
        ({"stages": (3, 1)}, "(3, 1)"),
        ({"stages": (0, 4)}, "(0, 4)"),
        ({"stages": ()}, "()"),
    ],
)
def test_impossible_options_are_refused(backbones, options, says):
    backbone = backbones["own"]
    with pytest.raises(ValueError, match="allowed") as error:
        Backbone(backbone.model, backbone.tokenizer, **{"image_size": 32, "stages": (1, 3)} | options)
    assert says in str(error.value)


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    for name, weights in [("ViT-Z-1", None), ("ViT-B-32", str(tmp_path / "none.pt"))]:
        with pytest.raises(ValueError, match="cannot be loaded") as error:
            Backbone.from_open_clip(name, weights, image_size=224)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_towers_in_half_precision_return_float32_and_keep_their_hash(backbones, kind):
    single, images, bank = backbones[kind], torch.randn(1, 3, 32, 40), PromptBank(templates=("{}",))
    half = copy.deepcopy(single).compute_in(torch.bfloat16)
    half.text("nut", bank)
    assert half.dtype == torch.bfloat16 and half.hash == single.hash
    found, expected = (
        [*b.patches(images), b.joint(images), *b.patches_and_joint(images)[0], b.text("nut", bank)]
        for b in (half, single)
    )
    for one, other in zip(found, expected):
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_what_was_kept_is_made_anew_where_the_towers_are_moved(backbones):
    backbone, bank = copy.deepcopy(backbones["own"]), PromptBank(templates=("{}",))
    text, position = backbone.text("nut", bank), backbone.tower.position_for(3, 5)
    assert backbone.text("nut", bank) is text and backbone.tower.position_for(3, 5) is position
    backbone.to(torch.float64)
    assert backbone.text("nut", bank) is not text
    assert backbone.tower.position_for(3, 5).dtype == torch.float64


@pytest.mark.parametrize("kind", ["own", "timm"])
def test_one_pass_gives_what_two_give(backbones, kind):
    backbone, images = backbones[kind], torch.randn(2, 3, 32, 40)
    patches, joint = backbone.patches_and_joint(images)
    for found, expected in zip(patches, backbone.patches(images)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(joint, backbone.joint(images))

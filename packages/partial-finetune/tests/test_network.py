"""Pretrained networks of timm's, opened, resized, and given what fine-tuning wants; no command has a part in it."""

import pickle

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from partial_finetune import load_tuned, open_delta, open_pretrained, save_delta
from partial_finetune.deltas import base_hashes
from partial_finetune.network import with_classes, with_drop_path
from partial_finetune.tuned import base_of

NAME = "test_vit"


@pytest.fixture
def network(weights):
    return open_pretrained(NAME, weights=weights, image_size=32)


def test_a_file_gives_its_weights_and_the_pretraining_its_normalisation(weights):
    network = open_pretrained(NAME, weights=weights)
    cfg = timm.create_model(NAME).pretrained_cfg
    assert all(torch.equal(network.model.state_dict()[name], value) for name, value in load_file(weights).items())
    assert (network.mean, network.std, network.image_size) == (cfg["mean"], cfg["std"], cfg["input_size"][-1])
    assert not network.model.training


def test_the_transforms_give_what_the_network_takes(network):
    image = Image.new("RGB", (50, 40), (255, 0, 0))
    for transform in (network.eval_transform(), network.train_transform(crop_scale=0.5)):
        pixels = transform(image)
        assert pixels.shape == (3, 32, 32)
        assert network.model(pixels[None]).shape == (1, 1000)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(network.mean)) / torch.tensor(network.std)
    torch.testing.assert_close(network.eval_transform()(image)[:, 16, 16], red)


def test_a_new_classifier_follows_from_its_seed_alone(weights):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(heads))
        state = torch.get_rng_state()
        network = with_classes(open_pretrained(NAME, weights=weights), 3, seed=seed)
        heads.append(network.model.get_classifier().weight.detach())
        assert heads[-1].shape[0] == 3
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    torch.manual_seed(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_stochastic_depth_changes_no_weight(network):
    deep = with_drop_path(network, 0.5)
    assert all(torch.equal(value, network.model.state_dict()[name]) for name, value in deep.model.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(deep.model(images), network.model(images))
    torch.manual_seed(0)
    assert not torch.allclose(deep.model.train()(images), deep.model(images))
    assert with_drop_path(network, 0.0) is network


def test_what_cannot_be_opened_is_refused_in_one_line(weights, tmp_path):
    code = tmp_path / "code.pth"
    code.write_bytes(pickle.dumps(print))
    for options, words in (
        ({"name": "vit_enormous"}, "model='vit_enormous' is unknown; allowed: a name of timm's"),
        ({"weights": tmp_path / "none.pth"}, "none.pth' is not a file"),
        ({"weights": code}, "code.pth' do not fit model='test_vit'"),
        ({"image_size": 33}, "image_size=33 of model='test_vit'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            open_pretrained(**({"name": NAME, "weights": weights} | options))
        assert "\n" not in str(error.value)


@pytest.fixture
def delta(network, weights, tmp_path):
    """What was tuned: one matrix and the head."""
    model = with_classes(network, 3).model
    hashes, head = base_hashes(model), dict(model.get_classifier().state_dict(prefix="head."))
    head = {name: value.clone() for name, value in head.items()}
    with torch.no_grad():
        model.blocks[0].attn.proj.weight += 1
    info = {"model": NAME, "weights": str(weights), "classes": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.5] * 3}
    save_delta(tmp_path / "delta", model, hashes, selection=None, info=info | {"image_size": 32}, initial_head=head)
    return tmp_path / "delta", model


def test_a_tuned_network_is_opened_by_its_delta_alone(delta):
    path, model = delta
    found = load_tuned(path)
    assert found.name == NAME and found.image_size == 32
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.model.state_dict().items())


def test_weights_may_have_moved_and_the_base_may_be_given(delta, weights, tmp_path):
    path, model = delta
    moved = weights.rename(tmp_path / "moved.safetensors")
    try:
        with pytest.raises(ValueError, match="is not a file"):
            load_tuned(path)
        base = base_of(open_delta(path), weights=moved)
        assert not torch.equal(base.model.blocks[0].attn.proj.weight, model.blocks[0].attn.proj.weight)
        assert load_tuned(path, base) is base
        assert torch.equal(base.model.blocks[0].attn.proj.weight, model.blocks[0].attn.proj.weight)
    finally:
        moved.rename(weights)

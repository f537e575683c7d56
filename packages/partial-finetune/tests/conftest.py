"""Tiny models with random weights, made of timm's real classes."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from partial_finetune.commands.options import TrainConfig

NAME = "test_vit"  # timm's own, for tests: 6 blocks, 0.3 M parameters
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 4}


def build_vit(**options):
    """A ViT of four blocks, whose biases are not zero."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **(SMALL | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def build_conv():
    """EfficientNet-Lite0 with random weights: batch norms."""
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=4)


@pytest.fixture
def make_vit():
    return build_vit


@pytest.fixture
def vit():
    return build_vit()


@pytest.fixture
def conv():
    return build_conv()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with the (random) weights of a whole model, as a user would hand it in."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three classes of 20 pictures: 36 to train on, 12 to validate, 12 to test."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number, name in enumerate(("dark", "grey", "light")):
        (root / name).mkdir()
        for index in range(20):
            pixels = random.integers(60 * number, 60 * number + 130, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def configs(weights, folder):
    """A maker of options of a training that ends in a second: nine steps at 32 pixels, four tokens."""

    def options(root, name="run", kind=TrainConfig, **changed):
        given = {
            "model": NAME,
            "weights": weights,
            "image_size": 32,
            "data": str(folder),
            "val_share": 0.2,
            "cpu": True,
        }
        given |= {"epochs": 2, "batch_size": 8, "save_every": 2, "learning_rate": 1e-3}
        return kind(output_dir=root / name, **(given | changed))

    return options


@pytest.fixture
def config(configs, tmp_path):
    """The same, each run in a folder of the test."""
    return partial(configs, tmp_path)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one precision for the life of a process; every test is a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)

"""Blueprints: written and read back, built into a network, and refused in one line if they are none."""

import json

import pytest
import torch

from bdp_nas.blueprint import FILE, Blueprint
from bdp_nas.standalone import Standalone, to_program

GENOTYPE = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
FIELDS = {
    "space": "nasbench201",
    "genotype": GENOTYPE,
    "classes": ("cat", "dog"),
    "channels": 4,
    "cells": 1,
    "image": (3, 8, 8),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.1),
}


def test_what_is_written_is_read_back(tmp_path):
    blueprint = Blueprint(**FIELDS)
    blueprint.write(tmp_path / "new")
    assert Blueprint.read(tmp_path / "new") == blueprint
    assert blueprint.network()(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_whole_numbers_pass_for_floating_point(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(FIELDS | {"mean": [0, 0, 0], "std": [1, 1, 1]}))
    mean, std = Blueprint.read(tmp_path).moments
    assert (mean.tolist(), std.tolist()) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is no blueprint"),
        (b"[" * 100_000, "is no blueprint"),
        (b"[]", "other fields; allowed: space, genotype"),
        (b"{}", "other fields; allowed: space, genotype"),
        ({"more": 1}, "other fields"),
        ({"space": "nothing"}, "space='nothing' is unknown; allowed: nasbench201"),
        ({"channels": 10**30}, "is out of range; allowed: 1 to 10000"),
        ({"channels": True}, "channels=True is of another type; allowed: int"),
        ({"classes": "cat"}, "classes='cat' is of another type; allowed: str"),
        ({"image": [3, 8]}, r"image=\(3, 8\) is not possible; allowed: channels, height and width"),
        ({"image": []}, r"image=\(\) is not possible"),
        ({"image": [3, 8, 0]}, "image=0 is out of range"),
        ({"mean": [0.5]}, "of 3 channels; allowed: one of each"),
        ({"mean": [10**400] * 3}, "is no blueprint"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, content, told):
    changed = content if isinstance(content, bytes) else json.dumps(FIELDS | content).encode()
    (tmp_path / FILE).write_bytes(changed)
    with pytest.raises(ValueError, match=told) as error:
        Blueprint.read(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_without_one_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no genotype\.json"):
        Blueprint.read(tmp_path)


def test_a_standalone_network_takes_pixels_as_they_are():
    torch.manual_seed(0)
    blueprint = Blueprint(**FIELDS)
    network, images = blueprint.network().eval(), torch.rand(2, 3, 8, 8)
    mean, std = (values[:, None, None] for values in blueprint.moments)
    model = Standalone(network, *blueprint.moments)
    torch.testing.assert_close(model(images), network((images - mean) / std))


def test_a_program_takes_any_number_of_images(tmp_path):
    torch.manual_seed(0)
    blueprint = Blueprint(**FIELDS)
    model = Standalone(blueprint.network(), *blueprint.moments)
    (tmp_path / "network.pt2").write_bytes(to_program(model, torch.rand(2, 3, 8, 8)))
    program, images = torch.export.load(tmp_path / "network.pt2").module(), torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(program(images), model(images))

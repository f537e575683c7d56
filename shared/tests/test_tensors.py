"""Tensor files that notice damage: what comes back, what is refused, and that the same content is the same bytes."""

import json

import pytest
import torch
from safetensors.torch import load, save

from frugal_shared.errors import RunError
from frugal_shared.tensors import pack_tensors, read_tensors

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7), "none": torch.zeros(0, 4, dtype=torch.bfloat16)}
NOTES = {"schema": "1", "facts": "é"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS, NOTES))
    return path


def test_what_was_written_comes_back(file):
    tensors, notes = read_tensors(file)
    assert notes == NOTES
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )


def test_it_is_an_ordinary_safetensors_file(file):
    assert torch.equal(load(file.read_bytes())["b"], TENSORS["b"])


def test_the_same_content_is_the_same_bytes(file):
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert len(header["__metadata__"]) == 1  # the order of several would change from process to process


def test_any_changed_byte_is_noticed(file):
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            tensors, notes = read_tensors(file)
        except RunError as error:
            assert str(file) in str(error)
        else:  # within the header, white space, or the name of an entry that nobody reads
            assert notes == NOTES and all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_file_without_a_hash_is_refused(file):
    file.write_bytes(save(TENSORS))
    with pytest.raises(RunError, match="no hash"):
        read_tensors(file)

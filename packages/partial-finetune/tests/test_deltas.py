import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from partial_finetune import deltas
from partial_finetune.deltas import base_hashes, load_delta, merge, open_delta, save_delta, start_of

INFO = {
    "model": "tiny",
    "classes": ["a", "b", "c", "d"],
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "image_size": 32,
}
HEAD = ("head.weight", "head.bias")
SELECTION = SimpleNamespace(expression="attn.proj", parameters=("blocks.0.attn.proj.weight", *HEAD))


def vit(classes=4, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=classes
    )


def with_new_head(seed=1):
    """Return the pretrained model with a head of its own for four classes."""
    model = vit(10)
    torch.manual_seed(seed)
    model.reset_classifier(4)
    return model


def head_of(model):
    return {name: model.state_dict()[name].clone() for name in HEAD}


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    """Whether two dicts hold the same tensors to the bit (-0.0 is not 0.0)."""
    return {name: deltas._hash(tensor) for name, tensor in one.items()} == {
        name: deltas._hash(tensor) for name, tensor in other.items()
    }


def tune(model, names, by=0.1):
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(by)


@pytest.fixture
def tuned():
    return with_new_head()


@pytest.fixture
def path(tuned, tmp_path):
    """A delta of ``tuned``, which is fine-tuned on the way."""
    base, head = base_hashes(tuned), head_of(tuned)
    tune(tuned, SELECTION.parameters)
    save_delta(tmp_path / "delta", tuned, base, selection=SELECTION, info=INFO, initial_head=head)
    return tmp_path / "delta"


def resealed(path: Path):
    """Give a tampered delta the hash that goes with it, as its forger would."""
    facts = json.loads((path / "delta.json").read_text())
    facts.pop("sha256")
    facts["sha256"] = deltas._digest(path / "delta.safetensors", facts)
    (path / "delta.json").write_text(json.dumps(facts))


def test_a_delta_holds_the_tuned_tensors_exactly(path, tuned):
    delta = open_delta(path)
    assert set(delta.names) == set(SELECTION.parameters)
    assert same(delta.tensors(), {name: tuned.state_dict()[name] for name in delta.names})
    assert same({name: delta.tensor(name) for name in delta.names}, delta.tensors())
    assert (delta.expression, delta.head, delta.info["classes"]) == ("attn.proj", HEAD, INFO["classes"])
    assert same(delta.initial_head, head_of(with_new_head()))
    with pytest.raises(ValueError, match=r"no tensor 'norm\.weight'"):
        delta.tensor("norm.weight")


def test_hashes_tell_dtype_shape_and_sign():
    class Holder(nn.Module):
        def __init__(self, tensor):
            super().__init__()
            self.register_buffer("x", tensor)

    zeros = torch.zeros(2, 3)
    distinct = [zeros, -zeros, zeros.T, zeros.half(), zeros.int(), torch.zeros(()), torch.zeros(0)]
    assert len({base_hashes(Holder(tensor))["x"] for tensor in distinct}) == len(distinct)
    columns = torch.arange(6.0).reshape(2, 3)
    assert base_hashes(Holder(columns.T)) == base_hashes(Holder(columns.T.contiguous()))


def test_a_tuned_tensor_is_stored_even_if_it_did_not_change_and_a_changed_one_even_if_not_tuned(tmp_path):
    model = with_new_head()
    base, head = base_hashes(model), head_of(model)
    tune(model, ["norm.bias"])
    save_delta(tmp_path / "delta", model, base, selection=SELECTION, info=INFO, initial_head=head)
    assert set(open_delta(tmp_path / "delta").names) == {*SELECTION.parameters, "norm.bias"}


def test_loading_gives_the_fine_tuned_model(path, tuned):
    for delta in (path, open_delta(path)):
        model = with_new_head(seed=99)  # the values of the head do not matter
        load_delta(delta, model)
        assert same(model.state_dict(), tuned.state_dict())


def test_buffers_travel_with_the_delta(tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    model = network()
    base = base_hashes(model)
    model(torch.randn(8, 4))
    save_delta(tmp_path / "delta", model, base, selection=None, info=INFO, initial_head={})
    assert open_delta(tmp_path / "delta").names == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    loaded = network()
    load_delta(tmp_path / "delta", loaded)
    assert same(loaded.state_dict(), model.state_dict())


def test_tied_and_aliased_tensors_survive(tmp_path):
    def network():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = network()
    base = base_hashes(model)
    tune(model, ["0.weight"])
    save_delta(tmp_path / "delta", model, base, selection=None, info=INFO, initial_head={})
    loaded = network()
    load_delta(tmp_path / "delta", loaded)
    assert loaded[0].weight is loaded[1].weight
    assert same(loaded.state_dict(), model.state_dict())
    merged = merge(tmp_path / "delta", network())
    assert merged["0.weight"].data_ptr() != merged["1.weight"].data_ptr()
    save_file(merged, tmp_path / "merged.safetensors")


def test_a_merged_model_loads_strictly_into_timm(path, tuned):
    base = vit(10)  # with the head it was pretrained with
    before = values(base)
    merged = merge(path, base)
    plain = vit(4, seed=5)
    plain.load_state_dict(merged)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), tuned.eval()(images))
    assert list(merged) == list(tuned.state_dict())
    merged["norm.weight"].fill_(7)
    assert same(base.state_dict(), before)


def test_the_start_is_pretrained_plus_initial_head(path):
    assert same(start_of(open_delta(path), vit(10).state_dict()), with_new_head().state_dict())


def test_a_forged_initial_head_is_refused(path):
    delta = open_delta(path)
    forged = replace(delta, base=delta.base | {"head.bias": "0" * 64})
    with pytest.raises(ValueError, match=r"initial head of delta .*: 'head\.bias' has other values"):
        start_of(forged, vit(10).state_dict())


def test_another_base_is_refused_by_its_first_tensor_and_the_model_stays(path):
    other = with_new_head()
    tune(other, ["blocks.1.mlp.fc1.bias", "blocks.0.attn.qkv.weight"])
    before = values(other)
    for use in (load_delta, merge, lambda delta, model: start_of(open_delta(delta), model.state_dict())):
        with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.qkv\.weight' has other values"):
            use(path, other)
    assert same(other.state_dict(), before)


def test_a_delta_is_not_loaded_twice(path):
    model = with_new_head()
    load_delta(path, model)
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.proj\.weight' has other values"):
        load_delta(path, model)


def test_a_head_of_another_shape_is_refused_and_the_model_stays(path):
    model = vit(10)
    before = values(model)
    with pytest.raises(ValueError, match=r"'head\.weight' is .*\(10, 24\); allowed: .*\(4, 24\)"):
        load_delta(path, model)
    assert same(model.state_dict(), before)


def test_missing_and_extra_tensors_are_refused(path):
    shallow, headless, wide = with_new_head(), with_new_head(), with_new_head()
    del shallow.blocks[1]
    headless.reset_classifier(0)
    wide.register_buffer("surplus", torch.zeros(1))
    for model, message in (
        (shallow, r"lacks 'blocks\.1\."),
        (headless, r"'head\.weight' is missing"),
        (wide, "has 'surplus' besides"),
    ):
        before = values(model)
        with pytest.raises(ValueError, match=message):
            load_delta(path, model)
        assert same(model.state_dict(), before)


def test_a_stored_tensor_of_another_shape_is_refused_and_the_model_stays(path):
    tensors = load_file(path / "delta.safetensors")
    save_file(tensors | {"blocks.0.attn.proj.weight": torch.zeros(2)}, path / "delta.safetensors")
    resealed(path)
    model = with_new_head()
    before = values(model)
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.proj\.weight' is .*allowed: .*\(2,\)"):
        load_delta(path, model)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("file", ["delta.safetensors", "delta.json"])
def test_a_torn_file_is_refused(path, file):
    whole = (path / file).read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 3):
        (path / file).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"delta .* cannot be used"):
            open_delta(path)


def test_a_changed_byte_is_refused_wherever_it_is(path):
    whole = (path / "delta.safetensors").read_bytes()
    for position in (3, 100, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        (path / "delta.safetensors").write_bytes(changed)
        with pytest.raises(ValueError, match="torn or was changed"):
            open_delta(path)
    (path / "delta.safetensors").write_bytes(whole)
    facts = (path / "delta.json").read_text()
    (path / "delta.json").write_text(facts.replace('"c"', '"x"'))  # the label of a class
    with pytest.raises(ValueError, match="torn or was changed"):
        open_delta(path)
    (path / "delta.json").write_text(facts)
    open_delta(path)


def test_a_foreign_schema_is_refused(path):
    facts = json.loads((path / "delta.json").read_text())
    for foreign in (facts | {"schema": "partial-finetune-delta-9"}, {"weights": 1}, [1, 2], None):
        (path / "delta.json").write_text(json.dumps(foreign))
        with pytest.raises(ValueError, match=r"delta .* cannot be used"):
            open_delta(path)


def test_a_missing_delta_is_an_os_error_that_names_it(path, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        open_delta(tmp_path / "nowhere")
    (path / "delta.safetensors").unlink()
    with pytest.raises(OSError, match=r"delta\.safetensors"):
        open_delta(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_in_disguise_is_never_executed(path, tmp_path):
    target = tmp_path / "executed"
    (path / "delta.safetensors").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="torn or was changed"):
        open_delta(path)
    resealed(path)
    with pytest.raises(ValueError, match="cannot be used"):
        open_delta(path)
    torch.save(Bomb(target), path / "delta.safetensors")
    resealed(path)
    with pytest.raises(ValueError, match="cannot be used"):
        open_delta(path)
    assert not target.exists()


def test_undeclared_tensors_are_refused(path):
    save_file({"surprise": torch.zeros(1)}, path / "delta.safetensors")
    resealed(path)
    with pytest.raises(ValueError, match=r"delta\.safetensors lacks"):
        open_delta(path)


def test_saving_again_replaces_the_delta_and_gives_the_same_bytes(path, tuned):
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    base, head = open_delta(path).base, open_delta(path).initial_head
    save_delta(path, tuned, base, selection=SELECTION, info=INFO, initial_head=head)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["delta"]


def test_a_crash_while_saving_leaves_the_old_delta(path, tuned, monkeypatch):
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    delta = open_delta(path)
    head = delta.initial_head

    def torn(tensors, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(deltas, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save_delta(path, tuned, delta.base, selection=SELECTION, info=INFO, initial_head=head)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["delta"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_umask_decides_who_may_read_a_delta(tuned, tmp_path):
    before = os.umask(0o027)
    try:
        path = tmp_path / "delta"
        save_delta(path, tuned, base_hashes(tuned), selection=SELECTION, info=INFO, initial_head=head_of(tuned))
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(
        ("delta.safetensors", "delta.json"), 0o640
    )


def test_what_a_killed_process_left_does_not_disturb(tuned, tmp_path):
    base, head = base_hashes(tuned), head_of(tuned)
    (tmp_path / ".delta.0123abcd").mkdir()
    (tmp_path / ".delta.0123abcd" / "delta.safetensors").write_bytes(b"half")
    save_delta(tmp_path / "delta", tuned, base, selection=None, info=INFO, initial_head=head)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".delta.0123abcd", "delta"]
    open_delta(tmp_path / "delta")


def test_a_delta_that_was_aside_when_its_process_was_killed_is_not_lost(path, tuned, monkeypatch):
    before = open_delta(path).digest
    path.rename(path.with_name(".delta.old"))
    monkeypatch.setattr(deltas, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_delta(path, tuned, base_hashes(tuned), selection=None, info=INFO, initial_head=head_of(tuned))
    assert open_delta(path).digest == before


def test_a_folder_with_other_files_is_not_replaced(tuned, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex'"):
        save_delta(tmp_path, tuned, base_hashes(tuned), selection=None, info=INFO, initial_head=head_of(tuned))
    assert (tmp_path / "thesis.tex").exists()


def test_what_does_not_belong_together_is_not_saved(tuned, tmp_path):
    base, head, target = base_hashes(tuned), head_of(tuned), tmp_path / "delta"
    keys = {"selection": None, "info": INFO, "initial_head": head}
    bad = SimpleNamespace(expression="x", parameters=("nose.weight",))
    del base["norm.bias"]
    with pytest.raises(ValueError, match=r"the model has 'norm\.bias' besides"):
        save_delta(target, tuned, base, **keys)
    base = base_hashes(tuned)
    with pytest.raises(ValueError, match=r"the selection names 'nose\.weight'"):
        save_delta(target, tuned, base, **keys | {"selection": bad})
    with pytest.raises(ValueError, match="info lacks 'mean'"):
        save_delta(target, tuned, base, **keys | {"info": {"model": "tiny", "classes": []}})
    with pytest.raises(ValueError, match=r"initial_head: 'head\.bias' has other values"):
        save_delta(target, tuned, base, **keys | {"initial_head": head | {"head.bias": torch.ones(4)}})
    assert not target.exists()

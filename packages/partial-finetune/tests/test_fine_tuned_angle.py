import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from partial_finetune.fine_tuned_angle import angle, angles, tensor_angles


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turned(u, theta, seed=1):
    """Rotate ``u`` by theta towards a random orthogonal direction, in float64, stored as u is."""
    exact, other = u.double(), noise(*u.shape, seed=seed, dtype=torch.float64)
    other -= (other * exact).sum() / exact.square().sum() * exact
    return (math.cos(theta) * exact + math.sin(theta) * other * exact.norm() / other.norm()).to(u.dtype)


def unit(name, *parameters, kind="attn"):
    return SimpleNamespace(name=name, kind=kind, parameters=parameters)


def anatomy(*units):
    return SimpleNamespace(units=units)


@pytest.fixture
def base():
    return {
        "a.qkv": noise(30, 10),
        "a.proj": 20 * noise(10, 10, seed=1),
        "a.bias": noise(10, seed=2),
        "m.fc": noise(40, 10, seed=3),
        "head": noise(5, 10, seed=4),
    }


PARTS = anatomy(
    unit("attn[0]", "a.qkv", "a.proj", "a.bias"), unit("ffn[0]", "m.fc"), unit("classifier", "head", kind="classifier")
)


def test_identical_weights_have_angle_exactly_zero():
    assert angle(noise(300, 1000), noise(300, 1000)) == 0.0


@pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0, 1e4])
def test_a_scaled_copy_has_angle_zero(scale):
    u = noise(300, 1000, dtype=torch.float64)
    assert angle(u, scale * u) < 1e-12


def test_orthogonal_weights_have_a_right_angle():
    assert angle(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 7.0]])) == pytest.approx(math.pi / 2, abs=1e-15)


def test_negated_weights_have_angle_pi():
    assert angle(noise(300, 1000), -noise(300, 1000)) == math.pi


@pytest.mark.parametrize("theta", [1e-5, 1e-4, 1e-3, 1e-2, 1.0, 3.0])
def test_a_known_rotation_is_found_in_float32_weights(theta):
    u = noise(300, 1000)
    assert angle(u, turned(u, theta)) == pytest.approx(theta, rel=1e-4)


def test_the_angle_has_no_direction():
    u = noise(30, 10)
    v = turned(u, 1e-3)
    assert angle(u, v) == angle(v, u)


def test_a_zero_vector_has_no_angle():
    assert math.isnan(angle(torch.zeros(3), torch.ones(3)))
    assert math.isnan(angle(torch.ones(3), torch.zeros(3)))
    assert math.isnan(angle(torch.zeros(3), torch.zeros(3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_its_floor(dtype):
    u = noise(30, 10)
    for pair in ((u.to(dtype), u), (u, u.to(dtype))):
        with pytest.raises(ValueError, match=r"float16; allowed: float32 or float64; .*1\.66e-3"):
            angle(*pair)


def test_other_shapes_integers_and_nan_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\); allowed: .*\(2, 3\)"):
        angle(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"int64; allowed: float32 or float64$"):
        angle(torch.ones(2), torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN or infinity"):
        angle(torch.ones(2), torch.tensor([1.0, math.inf]))


def test_weight_decay_turns_nothing():
    layer = nn.Linear(300, 300, bias=False).double()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(100):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    assert (layer.weight - before).norm() / before.norm() > 0.3
    assert angle(before, layer.weight) < 1e-12


def test_a_streamed_unit_has_the_angle_of_the_concatenation(base):
    now = {name: turned(tensor, 1e-2 * (1 + i), seed=i) for i, (name, tensor) in enumerate(base.items())}
    for biases, names in ((False, ["a.qkv", "a.proj"]), (True, ["a.qkv", "a.proj", "a.bias"])):
        whole = [torch.cat([tensors[name].flatten() for name in names]) for tensors in (base, now)]
        found = angles(base, now, PARTS, biases=biases)
        assert found["attn[0]"] == pytest.approx(angle(*whole), rel=1e-12)
    mean = (angle(base["a.qkv"], now["a.qkv"]) + angle(base["a.proj"], now["a.proj"])) / 2
    assert found["attn[0]"] != pytest.approx(mean, rel=1e-2)


def test_frozen_units_and_the_classifier_are_left_out(base):
    now = base | {"m.fc": turned(base["m.fc"], 1e-3), "a.bias": base["a.bias"] + 1, "head": noise(7, 10)}
    assert angles(base, now, PARTS) == {"ffn[0]": pytest.approx(1e-3, rel=1e-3)}
    assert list(angles(base, now, PARTS, biases=True)) == ["attn[0]", "ffn[0]"]


def test_a_unit_of_zeros_is_in_no_ranking(base):
    before = base | {"m.fc": torch.zeros(40, 10)}
    now = base | {"a.proj": turned(base["a.proj"], 1e-3)}
    assert list(angles(before, now, PARTS)) == ["attn[0]"]
    assert list(tensor_angles(before, now)) == ["a.proj"]


def test_the_base_is_read_from_its_file_a_unit_at_a_time(base, tmp_path, monkeypatch):
    path = tmp_path / "base.safetensors"
    save_file(base, path)
    now = {name: turned(tensor, 1e-3) for name, tensor in base.items()}
    held = []
    monkeypatch.setattr(
        sys.modules["partial_finetune.fine_tuned_angle"], "_angle", lambda pairs: held.append(len(pairs)) or 0.5
    )
    angles(path, now, PARTS)
    assert held == [2, 1]
    monkeypatch.undo()
    assert angles(path, now, PARTS) == angles(base, now, PARTS)
    assert tensor_angles(path, now) == tensor_angles(base, now)


def test_a_model_is_compared_by_its_parameters(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(8, 4))  # moves the running statistics
    with torch.no_grad():
        model[0].weight.copy_(turned(before["0.weight"], 1e-2))
    parts = anatomy(unit("ffn[0]", "0.weight", "0.bias"), unit("norm[0]", "1.weight", "1.bias"))
    assert angles(before, model, parts) == {"ffn[0]": pytest.approx(1e-2, rel=1e-4)}
    assert tensor_angles(before, model) == {"0.weight": pytest.approx(1e-2, rel=1e-4)}


def test_single_tensors_pass_over_a_new_head(base):
    now = base | {"head": noise(7, 10), "a.bias": turned(base["a.bias"], 0.1), "new": noise(3)}
    assert tensor_angles(base, now) == {"a.bias": pytest.approx(0.1, rel=1e-4)}


def test_a_base_that_does_not_fit_is_refused(base, tmp_path):
    without = {name: tensor for name, tensor in base.items() if name != "m.fc"}
    with pytest.raises(ValueError, match=r"the base lacks 'm\.fc' of unit ffn\[0\]"):
        angles(without, base, PARTS)
    with pytest.raises(ValueError, match=r"'m\.fc' has shape \(40, 10\); allowed: .*\(4, 10\)"):
        angles(base | {"m.fc": noise(4, 10)}, base, PARTS)
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"torn\.safetensors.*allowed: a safetensors file"):
        angles(tmp_path / "torn.safetensors", base, PARTS)
    with pytest.raises(OSError, match="absent"):
        angles(tmp_path / "absent.safetensors", base, PARTS)

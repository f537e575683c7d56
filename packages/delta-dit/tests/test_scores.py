"""Scores with weights of the user: against the formulas, and what is said of weights that are none."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from delta_dit.commands.cli import main
from delta_dit.commands.scores import CLIP, INCEPTION, Scores, clip_score, inception_score
from frugal_shared.errors import RunError, UsageError

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with an Inception-v3 and a tiny CLIP, both of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(fidelity.torch, "load", lambda *_, **__: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    torch.save(network.state_dict(), folder / INCEPTION)
    save_tiny_clip(folder / CLIP)
    return folder


def save_tiny_clip(folder):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)


@pytest.fixture(scope="session")
def scores(weights):
    return Scores(weights)


def test_the_uncached_pictures_have_no_distance_to_themselves(scores):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = scores.of(images, images, ["a cat"] * 6)
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["inception_score"] > 0.999 and 0 <= found["clip_score"] <= 100
    assert scores.of(images * 0.3, images, None)["fid"] > found["fid"]
    assert scores.of(images, images, None)["clip_score"] is None  # a model that draws classes


def test_inception_score_is_its_formula():
    logits = np.random.default_rng(0).normal(size=(50, 7))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert inception_score(logits) == pytest.approx(expected, rel=1e-6)


def test_clip_score_is_the_mean_cosine_and_never_negative():
    vectors = {"right": [1.0, 0.0], "half": [0.5, 0.75**0.5], "opposite": [-1.0, 0.0]}
    prompts = ["right", "half", "opposite"] * 20  # more than one batch

    def processor(*, text, images, **_):
        assert len(text) == len(images)
        return {"text": text}

    def model(text):
        embeds = torch.tensor([vectors[word] for word in text])
        return SimpleNamespace(text_embeds=3 * embeds, image_embeds=torch.tensor([[2.0, 0.0]]).expand(len(text), -1))

    assert clip_score(model, processor, torch.rand(60, 3, 8, 8), prompts) == pytest.approx(50)


def test_bench_writes_them_into_its_rows(weights, tmp_path):
    for i in range(3):
        Image.fromarray(np.full((20 + i, 30, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    arguments = ["--steps", "4", "--samples", "3", "--batch-size", "3", "--repeats", "1", "--cpu"]
    arguments += ["--methods", "generic", "--weights", str(weights), "--real", str(tmp_path)]
    assert main(["bench", "--output-dir", str(tmp_path / "run"), *arguments]) == 0
    rows = json.loads((tmp_path / "run" / "rows.json").read_text())
    assert all(row["fid"] > 0 and row["inception_score"] > 0.999 and row["clip_score"] is None for row in rows)


def test_a_pickle_is_refused(weights, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    (tmp_path / INCEPTION).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(RunError, match="no Inception-v3 weights"):
        Scores(tmp_path)


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"allowed: a folder with inception\.pth or clip/"):
        Scores(tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / INCEPTION)
    with pytest.raises(RunError, match="no Inception-v3 weights"):
        Scores(tmp_path)
    (tmp_path / INCEPTION).unlink()
    (tmp_path / CLIP).mkdir()
    with pytest.raises(RunError, match="holds no CLIP"):
        Scores(tmp_path)


def test_real_needs_weights_and_pictures(weights, tmp_path, capsys):
    assert main(["bench", "--real", str(tmp_path), "--output-dir", str(tmp_path / "run")]) == 2
    assert "together with --weights" in capsys.readouterr().err
    with pytest.raises(UsageError, match="has 0 pictures"):
        Scores(weights, tmp_path)

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipsam.commands import train as recipe
from clipsam.commands.options import TrainConfig
from clipsam.pipeline import ClipSAM
from frugal_shared.errors import UsageError


@pytest.fixture
def config(tmp_path, backbones, monkeypatch):
    """Options of a training that ends in a second, on a tiny CLIP."""
    monkeypatch.setattr(recipe, "backbone_of", lambda *_, **__: backbones["timm"])

    def options(name="run", **changed):
        given = {"steps": 6, "save_every": 2, "images": 24, "val_images": 16, "batch_size": 4, "hidden": 8}
        given |= {"stages": (1, 3), "clip": "ViT-B-16", "cpu": True, "features": tmp_path / "features"}
        return TrainConfig(output_dir=tmp_path / name, **(given | changed))

    return options


def weights(config, backbones):
    umci = ClipSAM.from_pretrained(config.output_dir / "best", backbone=backbones["timm"]).umci
    return torch.cat([value.flatten() for value in umci.state_dict().values()])


def test_the_best_checkpoint_loads_and_says_what_it_was_trained_on(config, backbones):
    recipe.main(config())
    model = ClipSAM.from_pretrained(config().output_dir / "best", backbone=backbones["timm"])
    assert model.provenance["data"] == ["photographs", "procedural/train-categories"]
    results = json.loads((config().output_dir / "results.json").read_text())
    lines = [json.loads(line) for line in (config().output_dir / "metrics.jsonl").read_text().splitlines()]
    validated = [line["ap"] for line in lines if "ap" in line]
    assert len(validated) == 3
    assert results["ap"] == max(validated)


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(config, backbones, monkeypatch):
    recipe.main(config("whole"))
    update = recipe.Best.update

    def dies(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(recipe.Best, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(config("torn"))
    monkeypatch.setattr(recipe.Best, "update", update)
    recipe.main(config("torn", resume=True))
    torch.testing.assert_close(weights(config("torn"), backbones), weights(config("whole"), backbones), rtol=0, atol=0)


def test_the_seed_decides(config, backbones):
    recipe.main(config("a"))
    recipe.main(config("b", features=None))
    recipe.main(config("c", features=None, seed=1))
    a, b, c = (weights(config(name), backbones) for name in "abc")
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a, c)


def test_what_the_embedded_clip_cannot_give_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"stages=\(5, 11\) of the embedded CLIP"):
        recipe.main(TrainConfig(output_dir=tmp_path / "run", stages=(5, 11)))
    assert not (tmp_path / "run").exists()


def test_a_training_ends_with_a_checkpoint_even_where_no_defect_is_left_to_validate_on(config, backbones, tmp_path):
    for number in range(9):
        bad = number > 5
        folder = tmp_path / "few" / "bolt" / "test" / ("bent" if bad else "good")
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        if bad:
            mask = np.zeros((96, 96), np.uint8)
            mask[0, 0] = 255  # gone at CLIP's size
            masks = tmp_path / "few" / "bolt" / "ground_truth" / "bent"
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(masks / f"{number}_mask.png")
    with pytest.warns(RuntimeWarning, match="no pixel is anomalous"):
        recipe.main(config(data=(str(tmp_path / "few"),)))
    model = ClipSAM.from_pretrained(config().output_dir / "best", backbone=backbones["timm"])
    assert model.provenance["categories"] == ["bolt"] and len(model.provenance["files"]) == 9
    assert "ap" not in json.loads((config().output_dir / "results.json").read_text())

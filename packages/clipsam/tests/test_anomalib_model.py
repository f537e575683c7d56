"""anomalib's Engine fits, tests and predicts with the pipeline, and fitting is the calibration."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("anomalib", reason="the extra [anomalib] is missing")

from anomalib.data import Folder
from anomalib.engine import Engine

from clipsam.anomalib_model import AnomalibClipSAM
from clipsam.conformal import conformal_threshold
from clipsam.mmr import MMRConfig
from clipsam.pipeline import ClipSAM
from clipsam.sam import SamSegmenter
from clipsam.umci import UMCIHead


def draw(folder, kind, number, count):
    """Grey noise, with a bright square of its own in a defective one."""
    for index in range(count):
        random = np.random.default_rng([number, index])
        pixels, mask = random.integers(90, 130, (40, 48, 3)), np.zeros((40, 48), np.uint8)
        if kind == "bad":
            y, x = random.integers(4, 20, 2)
            pixels[y : y + 14, x : x + 14], mask[y : y + 14, x : x + 14] = 250, 255
        for name, picture in {kind: pixels.astype(np.uint8), f"{kind}_masks": mask}.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / name / f"{index:03}.png")


@pytest.fixture
def data(tmp_path):
    draw(tmp_path, "good", 0, 24)
    draw(tmp_path, "bad", 1, 6)
    return Folder(
        name="drawn", root=tmp_path, normal_dir="good", abnormal_dir="bad", mask_dir="bad_masks", train_batch_size=4,
        eval_batch_size=4, num_workers=0, normal_split_ratio=0.2,
        test_split_mode="from_dir", val_split_mode="same_as_test",
    )  # fmt: skip


def pipeline(backbones, sam):
    torch.manual_seed(3)
    backbone = backbones["own"]
    umci = UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 3), pool_stride=1)
    return ClipSAM(backbone, umci, segmenter=SamSegmenter(sam), mmr=MMRConfig(threshold=0.45))


def test_the_engine_fits_tests_and_predicts(tmp_path, data, backbones, sam):
    model = AnomalibClipSAM(pipeline(backbones, sam), category="tile", alpha=0.1, visualizer=False)
    options = {
        "logger": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "default_root_dir": tmp_path / "runs",
    }
    engine = Engine(**options)
    before = [value.clone() for value in model.parameters()]
    engine.fit(model, datamodule=data)
    assert all(map(torch.equal, before, model.parameters()))  # nothing is trained
    images = [np.array(Image.open(path)) for path in data.train_data.samples.image_path]
    squares = [np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]
    scores = [found.score for found in model.model.pipeline.segment(squares, "tile")]
    assert float(model.post_processor.image_threshold) == pytest.approx(conformal_threshold(scores, 0.1), abs=2e-3)
    [figures] = engine.test(model, datamodule=data)
    assert {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"} <= figures.keys()
    assert all(0 <= value <= 1 for value in figures.values())
    batches = engine.predict(model, datamodule=data)
    for batch in batches:
        assert batch.anomaly_map.shape[-2:] == (32, 32) and torch.isfinite(batch.anomaly_map).all()
        assert torch.equal(batch.pred_label.bool(), batch.pred_score > 0.5)
        assert torch.equal(batch.pred_mask.bool(), batch.anomaly_map > 0.5)


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="alpha=1"):
        AnomalibClipSAM(None, alpha=1)

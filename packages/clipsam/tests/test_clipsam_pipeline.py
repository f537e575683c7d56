"""The pipeline: maps on the image's own pixels, batches like single images, checkpoints that know their CLIP."""

import json

import numpy as np
import pytest
import torch

from clipsam.checkpoint import CONFIG, WEIGHTS
from clipsam.mmr import MMRConfig
from clipsam.pipeline import ClipSAM, image_score, window_probability
from clipsam.prompt_bank import PromptBank
from clipsam.sam import SamSegmenter
from clipsam.umci import UMCIHead

SIZES = [(40, 40), (30, 90), (64, 17), (1, 1)]


def pictures():
    return [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def backbone(backbones):
    return backbones["own"]


@pytest.fixture(scope="module")
def umci(backbone):
    torch.manual_seed(3)
    return UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 3), pool_stride=1)


@pytest.fixture
def clipsam(backbone, umci):
    return ClipSAM(backbone, umci, provenance={"data": ["procedural"], "seed": 7})


@pytest.mark.parametrize("trained", [True, False])
def test_maps_lie_on_the_images_own_pixels(backbone, umci, trained):
    found = ClipSAM(backbone, umci if trained else None).segment(pictures(), "metal_nut")
    for size, one in zip(SIZES, found):
        assert one.anomaly_map.shape == size and one.anomaly_map.dtype == np.float32
        assert 0 <= one.anomaly_map.min() <= one.anomaly_map.max() <= 1
        assert 0 <= one.score <= 1 and len(one.boxes) == 0


def test_a_batch_gives_what_single_images_give(clipsam):
    together = clipsam.segment(pictures(), "nut")
    for picture, one in zip(pictures(), together):
        [alone] = clipsam.segment([picture], "nut")
        np.testing.assert_allclose(one.anomaly_map, alone.anomaly_map, atol=1e-5)


def test_sam_runs_only_where_something_is_found(backbone, umci, sam):
    segmenter, calls = SamSegmenter(sam), []
    handle = sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    clipsam = ClipSAM(backbone, umci, segmenter=segmenter, mmr=MMRConfig(threshold=0.999))
    [found] = clipsam.segment(pictures()[:1], "nut")
    assert not calls and found.anomaly_map is found.rough_map
    picture = pictures()[0]
    rough = np.full(picture.shape[:2], 0.1, np.float32)
    rough[5:20, 5:20] = 0.9
    found = ClipSAM(backbone, umci, segmenter=segmenter).refined(picture, rough)
    handle.remove()
    assert calls and found.boxes.tolist() == [[5, 5, 20, 20]] and found.masks.shape == (1, 40, 40)
    assert found.score == image_score(rough)


def test_windows_are_compared_with_the_texts():
    """Written out for windows of two patches: each patch has the mean over the windows that it lies in."""
    torch.manual_seed(0)
    joint = torch.nn.functional.normalize(torch.randn(1, 5, 3, 4), dim=1)
    language = torch.nn.functional.normalize(torch.randn(2, 5), dim=1)
    total, count = torch.zeros(3, 4), torch.zeros(3, 4)
    for y in range(2):
        for x in range(3):
            window = joint[0, :, y : y + 2, x : x + 2].mean((1, 2))
            probability = (language @ (window / window.norm()) / 0.07).softmax(0)[1]
            total[y : y + 2, x : x + 2] += probability
            count[y : y + 2, x : x + 2] += 1
    torch.testing.assert_close(window_probability(joint, language, 2)[0], total / count)


def test_a_map_with_nan_is_refused_in_one_line(clipsam):
    [image] = pictures()[:1]
    rough = np.full(image.shape[:2], np.nan, np.float32)
    with pytest.raises(ValueError, match=r"the map's scores lie in \[nan, nan\]; allowed: numbers in \[0, 1\]"):
        clipsam.refined(image, rough)


def test_a_checkpoint_comes_back_and_holds_no_clip(clipsam, backbone, tmp_path):
    clipsam.save_pretrained(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [CONFIG, WEIGHTS]
    parameters = sum(p.numel() for p in clipsam.umci.parameters())
    assert (tmp_path / "new" / WEIGHTS).stat().st_size < 4 * parameters + 20_000
    loaded = ClipSAM.from_pretrained(tmp_path / "new", backbone=backbone)
    assert loaded.provenance == clipsam.provenance and loaded.mmr == clipsam.mmr
    for name, tensor in clipsam.umci.state_dict().items():
        assert torch.equal(loaded.umci.state_dict()[name], tensor)
    first, second = (model.segment(pictures()[:2], "nut") for model in (clipsam, loaded))
    for one, other in zip(first, second):
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-6)


def test_a_checkpoint_refuses_another_clip_or_other_prompts(clipsam, backbone, backbones, tmp_path):
    clipsam.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clip="):
        ClipSAM.from_pretrained(tmp_path, backbone=backbones["timm"])
    with pytest.raises(ValueError, match="prompts="):
        ClipSAM.from_pretrained(tmp_path, backbone=backbone, bank=PromptBank(templates=("a scan of {}",)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, b"{"),
        (CONFIG, b"[]"),
        (CONFIG, b'{"schema": "clipsam-9"}'),
        (CONFIG, b'{"schema": "clipsam-1"}'),
        (WEIGHTS, b"torn"),
        (WEIGHTS, b""),
    ],
)
def test_a_damaged_checkpoint_is_one_line(clipsam, backbone, tmp_path, name, content):
    clipsam.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        ClipSAM.from_pretrained(tmp_path, backbone=backbone)
    assert "\n" not in str(error.value)


def test_heads_of_another_width_are_refused(clipsam, backbone, tmp_path):
    clipsam.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["umci"]["hidden"] = 24
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no such heads"):
        ClipSAM.from_pretrained(tmp_path, backbone=backbone)


def test_bad_images_and_an_untrained_save_are_refused(clipsam, backbone, tmp_path):
    with pytest.raises(ValueError, match="float64"):
        clipsam.segment([np.zeros((4, 4, 3))], "nut")
    with pytest.raises(ValueError, match="umci=None"):
        ClipSAM(backbone).save_pretrained(tmp_path)


def test_a_checkpoint_of_when_specks_were_a_share_of_the_image_opens(clipsam, backbone, tmp_path):
    clipsam.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["mmr"] = {"min_area": 2e-4, "threshold": 0.4}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert ClipSAM.from_pretrained(tmp_path, backbone=backbone).mmr == MMRConfig(threshold=0.4)

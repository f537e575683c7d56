"""The refinement: what it leaves alone, what it improves, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipsam.map_scale import MapScale
from clipsam.metrics import PixelMetrics
from clipsam.mmr import CutOff, MMRConfig, find_components, refine

SIDE = 96


class Stub:
    """A segmenter whose masks a function of the prompts decides: (box, has points) → masks ``(M, h, w)``, scores."""

    def __init__(self, answer):
        self.answer, self.embedded, self.asked = answer, 0, 0

    def embed(self, image):
        self.embedded += 1
        return image.shape[:2]

    def decode(self, embedding, prompts):
        self.asked += len(prompts)
        rows = [self.answer(box.numpy()) for box in prompts.boxes]
        masks = torch.stack([torch.from_numpy(np.stack(masks)).float() for masks, _ in rows])
        return masks * 40 - 20, torch.tensor([scores for _, scores in rows])


def scene(seed=0, blobs=2):
    """An image, the true mask, and a rough map: the mask at an eighth of the resolution, with noise and a ghost."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((SIDE, SIDE), bool)
    for number in range(blobs):
        y, x = rng.integers(8, 32) + 44 * (number % 2), rng.integers(8, 60)
        truth[y : y + rng.integers(6, 16), x : x + rng.integers(10, 26)] = True
    coarse = F.avg_pool2d(torch.from_numpy(truth).float()[None, None], 8)
    coarse = (coarse + 0.08 * torch.from_numpy(rng.normal(size=coarse.shape)).float()).clamp(0, 1)
    rough = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[0, 0].numpy().clip(0, 1)
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), truth, rough


def overlapping(truth, box):
    """The true region that meets a box."""
    from scipy import ndimage

    labels, _ = ndimage.label(truth, np.ones((3, 3)))
    x0, y0, x1, y1 = box.astype(int)
    hit = np.bincount(labels[y0:y1, x0:x1].ravel(), minlength=2)[1:]
    return labels == hit.argmax() + 1 if hit.any() else np.zeros_like(truth)


def knowing(truth):
    """Levels as SAM's: the whole object, the anomaly, part of it; the whole one has the best score."""
    whole = np.zeros_like(truth)
    whole[4:-4, 4:-4] = True
    return Stub(lambda box: ([whole, overlapping(truth, box), overlapping(truth, box) & (np.indices(truth.shape)[0] % 2 == 0)], [0.95, 0.85, 0.6]))  # fmt: skip  # noqa: E501


def quality(pairs):
    metrics = PixelMetrics()
    for scores, truth in pairs:
        metrics.update(scores, truth)
    return metrics.compute()


def test_a_map_without_prompts_comes_back_bit_for_bit_and_the_segmenter_rests():
    image, truth, rough = scene()
    stub = knowing(truth)
    quiet = rough * np.float32(0.4)
    result = refine(image, quiet, stub)
    assert np.array_equal(result.anomaly_map, quiet) and stub.embedded == stub.asked == 0
    assert len(result.boxes) == len(result.masks) == len(result.scores) == 0


def test_good_masks_sharpen_the_map_and_an_object_s_mask_does_not_spoil_it():
    scenes = [scene(seed) for seed in range(12)]
    before = quality([(rough, truth) for _, truth, rough in scenes])
    after = quality([(refine(i, r, knowing(t)).anomaly_map, t) for i, t, r in scenes])
    assert after["ap"] > before["ap"] + 0.03
    assert after["f1_max"] > before["f1_max"] + 0.03


def test_useless_masks_do_no_harm():
    random = np.random.default_rng(0)
    noise = Stub(lambda box: (list(random.random((3, SIDE, SIDE)) < 0.3), [0.9, 0.9, 0.9]))
    everything = Stub(lambda box: ([np.ones((SIDE, SIDE), bool)] * 3, [0.99] * 3))
    scenes = [scene(seed) for seed in range(12)]
    before = quality([(rough, truth) for _, truth, rough in scenes])
    for stub in (noise, everything):
        after = quality([(refine(i, r, stub).anomaly_map, t) for i, t, r in scenes])
        assert after["ap"] > before["ap"] - 0.02


def test_the_soft_map_stays_between_the_rough_map_and_its_peak():
    for seed in range(6):
        image, truth, rough = scene(seed)
        result = refine(image, rough, knowing(truth)).anomaly_map
        assert result.dtype == np.float32 and result.shape == rough.shape
        assert result.min() >= 0 and result.max() <= rough.max() + 1e-6


def test_far_from_every_component_nothing_changes():
    image, truth, rough = scene()
    from scipy import ndimage

    far = ndimage.distance_transform_edt(rough <= 0.5) > 0.09 * SIDE
    result = refine(image, rough, knowing(truth)).anomaly_map
    assert far.any() and np.array_equal(result[far], rough[far])


def test_the_paper_s_mode_is_its_formula():
    image, truth, rough = scene()
    stub = knowing(truth)
    result = refine(image, rough, stub, MMRConfig(mode="paper"))
    total = rough.astype(float)
    for box in result.boxes:
        masks, scores = stub.answer(box)
        total += 2 * sum(s * m for s, m in zip(scores, masks))  # asked with the box, and with box and points
    expected = (total - total.min()) / (total.max() - total.min())
    np.testing.assert_allclose(result.anomaly_map, expected, atol=1e-5)
    assert result.anomaly_map.max() == 1  # of every image: why it is not the default


def test_boxes_and_points_lie_on_their_component():
    image, truth, rough = scene()
    result = refine(image, rough, knowing(truth))
    assert len(result.boxes) == 2
    for (x0, y0, x1, y1), points in zip(result.boxes.astype(int), result.points):
        window = rough[y0:y1, x0:x1] > 0.5
        assert window.any(0).all() and window.any(1).all()  # tight, ends exclusive
        assert (rough[points[:, 1].astype(int), points[:, 0].astype(int)] > 0.5).all()


def test_points_follow_from_the_seed_and_the_image():
    (first, truth, rough), (second, _, _) = scene(0), scene(1)
    points = [refine(i, rough, knowing(truth), MMRConfig(seed=s)).points for i, s in [(first, 0), (first, 0), (first, 1), (second, 0)]]  # fmt: skip  # noqa: E501
    assert np.array_equal(points[0], points[1])
    assert not np.array_equal(points[0], points[2]) and not np.array_equal(points[0], points[3])


def test_maps_come_as_other_methods_give_them():
    """With an axis in front, at another size, as distances: where and what is found is the same."""
    image, truth, rough = scene()
    plain = refine(image, rough, knowing(truth))
    again = refine(image, 10 * rough[None] + 3, knowing(truth), scale=MapScale(3, 13))
    assert np.array_equal(plain.boxes, again.boxes)
    np.testing.assert_allclose(plain.anomaly_map, again.anomaly_map, atol=1e-5)
    small = F.avg_pool2d(torch.from_numpy(rough)[None], 2).numpy()
    coarse = refine(image, small, knowing(truth))
    assert coarse.anomaly_map.shape == rough.shape and np.abs(coarse.boxes[0] - plain.boxes[0]).max() <= 3


def test_specks_and_floods_do_not_ask_for_masks():
    rng = np.random.default_rng(0)
    specks = np.zeros((200, 200), np.float32)
    specks[rng.integers(0, 200, 4000), rng.integers(0, 200, 4000)] = 0.9
    assert len(find_components(specks, MMRConfig(min_area=0))[0]) == 16
    assert find_components(specks, MMRConfig(min_area=80))[0] == []
    flood = np.full((50, 50), 0.9, np.float32)
    stub = Stub(lambda box: pytest.fail("asked"))
    assert np.array_equal(refine(np.zeros((50, 50, 3), np.uint8), flood, stub).anomaly_map, flood)


def test_the_components_with_the_highest_score_come_first():
    rough = np.zeros((60, 60), np.float32)
    rough[2:10, 2:10], rough[20:40, 20:40], rough[50:54, 50:54] = 0.9, 0.6, 0.99
    found, _ = find_components(rough, MMRConfig(max_components=2))
    assert [window[0].start for window, _ in found] == [50, 2]


@pytest.mark.parametrize(
    ("image", "rough", "says"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), np.nan), "nan"),
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 2.0), "2.0"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 5)), "(2, 4, 5)"),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4)), "float32"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4)), "(4, 4)"),
    ],
)
def test_bad_input_is_refused(image, rough, says):
    with pytest.raises(ValueError, match="allowed") as error:
        refine(image, rough, Stub(None))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "hard"},
        {"threshold": 0},
        {"threshold": 1},
        {"weight": 2},
        {"points": 0},
        {"min_area": 0.6},
        {"min_area": -1},
        {"max_area": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="allowed"):
        MMRConfig(**options)


# --- large images ---


class Close(Stub):
    """A segmenter that notes how large the images are that it sees; its masks are the boxes."""

    def __init__(self):
        super().__init__(None)
        self.sizes = []

    def embed(self, image):
        self.sizes.append(image.shape[:2])
        return super().embed(image)

    def decode(self, embedding, prompts):
        masks = torch.full((len(prompts), 1, *embedding), -20.0)
        for mask, (left, top, right, bottom) in zip(masks, prompts.boxes.int().tolist()):
            mask[:, top:bottom, left:right] = 20
        return masks, torch.ones(len(prompts), 1)


def spots(*places, size=(500, 900), side=20):
    rough = np.full(size, 0.1, np.float32)
    for y, x in places:
        rough[y : y + side, x : x + side] = 0.9
        rough[y, x] = 0.2  # so that the mask differs from the map
    return rough, np.zeros((*size, 3), np.uint8)


def test_of_a_large_image_the_segmenter_sees_what_is_around_the_components():
    rough, image = spots((5, 5), (300, 800), (310, 822), (470, 870))
    whole, close = Close(), Close()
    expected = refine(image, rough, whole, MMRConfig(whole=900))
    found = refine(image, rough, close, MMRConfig(whole=899))
    assert whole.sizes == [(500, 900)]
    assert close.sizes == [(128, 128)] * 3  # the two neighbours in one
    assert np.array_equal(found.boxes, expected.boxes) and np.array_equal(found.masks, expected.masks)
    np.testing.assert_allclose(found.scores, expected.scores)
    alone = [5, 470], [5, 870]  # of the two neighbours one's band reaches the other in the whole
    np.testing.assert_allclose(found.anomaly_map[alone], expected.anomaly_map[alone])
    assert (found.anomaly_map[alone] > 0.6).all()
    far = np.ones(rough.shape, bool)
    for left, top, right, bottom in found.boxes.astype(int):
        far[max(0, top - 60) : bottom + 60, max(0, left - 60) : right + 60] = False
    assert np.array_equal(found.anomaly_map[far], rough[far])


def test_the_paper_s_mode_always_sees_the_whole():
    rough, image = spots((5, 5), (300, 800))
    stub = Close()
    refine(image, rough, stub, MMRConfig(whole=100, mode="paper"))
    assert stub.sizes == [(500, 900)]


def test_a_small_component_is_as_good_in_a_large_image():
    for size in ((60, 60), (3000, 2000)):
        rough, image = spots((20, 20), size=size, side=8)
        assert len(refine(image, rough, Close()).boxes) == 1


def test_what_was_cut_off_is_said():
    rough, image = spots((5, 5), (300, 800), (470, 870))
    rough[100:102, 100] = rough[200, 200] = 0.9
    rough[300:, :400] = 0.8
    found = refine(image, rough, Close(), MMRConfig(max_components=2, min_area=3, max_area=0.1))
    assert found.cut_off == CutOff(min_area=2, max_area=1, max_components=1) and len(found.boxes) == 2
    assert str(found.cut_off) == "2 by min_area, 1 by max_area, 1 by max_components"
    assert str(refine(image, rough * 0, Close()).cut_off) == ""

"""Segment Anything behind the protocol: the masks of its own predictor, and coordinates that come back."""

import copy
import pickle

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from clipsam.mmr import to_grid, to_image
from clipsam.promptable import Embedding, Prompts
from clipsam.sam import SamSegmenter, filled_part
from clipsam.sam_files import open_segmenter


def photograph(height=50, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxes(count, height=50, width=80):
    random = torch.Generator().manual_seed(1)
    low = torch.rand(count, 2, generator=random) * torch.tensor([width / 2, height / 2])
    return torch.cat([low, low + torch.tensor([width / 3, height / 3])], dim=1)


@pytest.fixture
def segmenter(sam):
    return SamSegmenter(sam, chunk=2)


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64), (200, 300)])
def test_the_masks_are_those_of_the_library_s_predictor(sam, segmenter, shape):
    image, corners = photograph(*shape), boxes(3, *shape)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    logits, scores = segmenter.decode(segmenter.embed(image), Prompts(boxes=corners))
    height, width = (length // 2 for length in predictor.input_size)  # of SAM's small masks, what the image fills
    assert logits.shape == (3, 3, height, width)
    large = to_image(logits.flatten(0, 1), shape).view(3, 3, *shape)
    for box, small, mask, score in zip(corners, logits, large, scores):
        theirs, quality, low = predictor.predict(box=box.numpy(), multimask_output=True, return_logits=True)
        torch.testing.assert_close(small, torch.from_numpy(low)[:, :height, :width], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(score, torch.from_numpy(quality).clamp(0, 1), atol=1e-5, rtol=1e-5)
        assert ((mask > 0).numpy() == (theirs > 0)).mean() > 0.95  # noise, enlarged at once, not in two steps
        assert np.corrcoef(mask.flatten(), theirs.ravel())[0, 1] > 0.99


def test_points_with_boxes_are_those_of_the_library_s_predictor(sam, segmenter):
    image, corners = photograph(), boxes(2)
    points, labels = torch.tensor([[[30.0, 20], [35, 22]], [[50, 30], [55, 35]]]), torch.tensor([[1, 0], [1, 1]])
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    logits, _ = segmenter.decode(segmenter.embed(image), Prompts(corners, points, labels))
    for row in range(2):
        _, _, theirs = predictor.predict(points[row].numpy(), labels[row].numpy(), corners[row].numpy())
        torch.testing.assert_close(logits[row], torch.from_numpy(theirs)[:, :30], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(sam, segmenter, chunk):
    embedding, prompts = segmenter.embed(photograph()), Prompts(boxes=boxes(5))
    other = SamSegmenter(sam, chunk=chunk).decode(embedding, prompts)
    for first, second in zip(segmenter.decode(embedding, prompts), other):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_an_image_is_embedded_once(sam, segmenter):
    calls = []
    handle = sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        segmenter.embed(photograph(seed=0))
    assert len(calls) == 1
    for seed in range(1, 6):
        segmenter.embed(photograph(seed=seed))
    segmenter.embed(photograph(seed=0))  # forgotten by now: four are kept
    handle.remove()
    assert len(calls) == 7


def test_scores_are_between_0_and_1(sam, segmenter):
    bias = sam.mask_decoder.iou_prediction_head.layers[-1].bias.data
    before = bias.clone()
    bias += torch.tensor([9.0, 9, -9, 0])
    scores = segmenter.decode(segmenter.embed(photograph()), Prompts(boxes=boxes(2)))[1]
    bias.copy_(before)
    assert scores[:, 0].eq(1).all() and scores[:, 1].eq(0).all()


@pytest.mark.parametrize("shape", [(50, 80), (90, 33), (300, 200)])
def test_values_find_their_way_to_the_small_grid_and_back(segmenter, shape):
    """A bright block of the image is bright on the small grid where a mask of it would be, and only there."""
    height, width = shape
    values = torch.zeros(shape)
    y, x = slice(height // 4, height // 2), slice(width // 2, width * 3 // 4)
    values[y, x] = 1
    logits, _ = segmenter.decode(segmenter.embed(photograph(*shape)), Prompts(boxes=boxes(1, *shape)))
    back = to_image(to_grid(values, logits.shape[-2:]), shape)
    assert back.shape == shape
    rows, columns = torch.nonzero(back > 0.5, as_tuple=True)
    pixel = max(shape) / max(logits.shape[-2:])  # of the small grid, in pixels of the image
    for found, wanted in [(rows.min(), y.start), (rows.max() + 1, y.stop), (columns.min(), x.start), (columns.max() + 1, x.stop)]:  # fmt: skip  # noqa: E501
        assert abs(found - wanted) <= pixel + 1


def test_the_padding_does_not_leak_into_the_image():
    """Beyond the image everything is a mask; of what the image fills nothing is, also where it ends inside a cell."""
    for height in (32, 30, 29):  # of 96 pixels, on a grid of 48 cells
        beyond = torch.full((1, 1, 48, 48), 10.0)
        beyond[..., : -(-height // 2), :] = -10
        part = filled_part(beyond, (height, 96), 96)
        assert part.shape == (1, 1, round(height / 2), 48) and (part < 0).all()


@pytest.mark.parametrize("extent", [(60, 96), (96, 53), (17, 96)])
def test_the_part_that_an_image_fills_spans_the_image(extent):
    """A ramp on the square is, on the part, the ramp up to the image's border, wherever in a cell that lies."""
    ramp = (torch.arange(48.0) + 0.5) / 48
    square = torch.stack([ramp[:, None].expand(48, 48), ramp.expand(48, 48)])[None]
    part = filled_part(square, extent, 96)[0]
    for axis, length in enumerate(extent):
        count = part.shape[1 + axis]
        wanted = (torch.arange(count) + 0.5) / count * length / 96
        found = part[axis].mean(1 - axis)
        torch.testing.assert_close(found[1:-1], wanted[1:-1], atol=1e-5, rtol=0)


def test_prompts_that_do_not_fit_are_refused(sam):
    for parts in [(), (None, torch.zeros(1, 2, 2), None), (torch.zeros(2, 4), torch.zeros(1, 2, 2), torch.ones(1, 2))]:
        with pytest.raises(ValueError, match="allowed"):
            Prompts(*parts)
    with pytest.raises(ValueError, match="chunk=0"):
        SamSegmenter(sam, chunk=0)


def test_files_that_are_no_weights_are_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    path = tmp_path / "sam.pth"
    with pytest.raises(OSError, match=r"sam\.pth"):
        open_segmenter(path)
    for content in (b"", b"text", pickle.dumps(Hostile())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no weights of a SAM") as error:
            open_segmenter(path)
        assert "\n" not in str(error.value)
    torch.save({"some.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="its image encoder is none of ViT-B, ViT-L, ViT-H and TinyViT"):
        open_segmenter(path)


def test_where_an_image_lies_is_the_segmenter_s_own_affair(segmenter):
    embedding = segmenter.embed(photograph(50, 80))
    assert isinstance(embedding, Embedding) and embedding.image_size == (50, 80)
    assert segmenter.extent((50, 80)) == (60, 96)


def test_an_encoder_in_half_precision_embeds_in_float32(sam):
    single, half = SamSegmenter(sam), SamSegmenter(copy.deepcopy(sam))
    single_features = single.embed(photograph()).features[0]
    half.embed(photograph())  # kept, and forgotten by the next line
    features = half.to(dtype=torch.bfloat16).embed(photograph()).features[0]
    assert features.dtype == torch.float32 and not torch.equal(features, single_features)
    assert torch.cosine_similarity(features.flatten(), single_features.flatten(), dim=0) > 0.999
    logits, _ = half.decode(half.embed(photograph()), Prompts(boxes=boxes(2)))
    assert logits.dtype == torch.float32


def test_an_image_of_one_row_is_embedded(sam):
    segmenter = SamSegmenter(sam)
    embedding = segmenter.embed(np.full((1, 600, 3), 90, np.uint8))
    assert segmenter.extent((1, 600)) == (1, sam.image_encoder.img_size)
    logits, _ = segmenter.decode(embedding, Prompts(torch.tensor([[0.0, 0, 300, 1]])))
    assert logits.shape == (1, 3, 1, 48)


def test_embeddings_follow_the_networks(sam):
    segmenter = SamSegmenter(copy.deepcopy(sam))
    first = segmenter.embed(photograph())
    assert segmenter.embed(photograph()) is first
    assert segmenter.to("cpu") is segmenter and segmenter.embed(photograph()) is not first
    assert len({id(value) for value in segmenter.parameters()}) == len(list(sam.parameters()))

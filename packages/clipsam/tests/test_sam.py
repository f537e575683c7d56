"""Segment Anything behind the protocol: the masks of its own predictor, and coordinates that come back."""

import copy
import pickle

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from clipsam.promptable import Embedding, Prompts
from clipsam.sam import SamSegmenter


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
    embedding = segmenter.embed(image)
    logits, scores = segmenter.decode(embedding, Prompts(boxes=corners))
    large = segmenter.to_image(logits, embedding)
    assert logits.shape == (3, 3, segmenter.side, segmenter.side) and large.shape == (3, 3, *shape)
    for box, mask, score in zip(corners, large, scores):
        theirs, quality, _ = predictor.predict(box=box.numpy(), multimask_output=True, return_logits=True)
        torch.testing.assert_close(mask, torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(score, torch.from_numpy(quality).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_points_with_boxes_are_those_of_the_library_s_predictor(sam, segmenter):
    image, corners = photograph(), boxes(2)
    points, labels = torch.tensor([[[30.0, 20], [35, 22]], [[50, 30], [55, 35]]]), torch.tensor([[1, 0], [1, 1]])
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    logits, _ = segmenter.decode(segmenter.embed(image), Prompts(corners, points, labels))
    for row in range(2):
        _, _, theirs = predictor.predict(points[row].numpy(), labels[row].numpy(), corners[row].numpy())
        torch.testing.assert_close(logits[row], torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


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
def test_values_find_their_way_to_the_square_and_back(segmenter, shape):
    """A bright block of the image is bright on the small square where a mask of it would be, and only there."""
    height, width = shape
    values = torch.zeros(shape)
    y, x = slice(height // 4, height // 2), slice(width // 2, width * 3 // 4)
    values[y, x] = 1
    embedding = segmenter.embed(photograph(*shape))
    back = segmenter.to_image(segmenter.to_square(values, embedding), embedding)
    assert back.shape == shape
    rows, columns = torch.nonzero(back > 0.5, as_tuple=True)
    pixel = max(shape) / segmenter.side  # of the small square, in pixels of the image
    for found, wanted in [(rows.min(), y.start), (rows.max() + 1, y.stop), (columns.min(), x.start), (columns.max() + 1, x.stop)]:  # fmt: skip  # noqa: E501
        assert abs(found - wanted) <= pixel + 1


def test_the_padding_does_not_leak_into_the_image(segmenter):
    """On the small square everything beyond the image is a mask; on the image nothing is."""
    embedding = segmenter.embed(photograph(30, 90))
    beyond = torch.full((segmenter.side, segmenter.side), 10.0)
    beyond[: round(segmenter.side / 3) + 1] = -10
    assert (segmenter.to_image(beyond, embedding) < 0).all()
    assert segmenter.to_square(torch.ones(30, 90), embedding)[round(segmenter.side / 3) + 1 :].eq(0).all()


@pytest.mark.parametrize("shape", [(50, 80), (64, 64), (96, 96)])
def test_masks_are_where_enlarged_logits_are_positive(segmenter, shape):
    embedding = segmenter.embed(photograph(*shape))
    logits = torch.randn(2, 3, segmenter.side, segmenter.side, generator=torch.Generator().manual_seed(7))
    same = segmenter.to_masks(logits, embedding) == (segmenter.to_image(logits, embedding) > 0)
    assert same.shape == (2, 3, *shape) and same.float().mean() > 0.9999


def test_prompts_that_do_not_fit_are_refused():
    for parts in [(), (None, torch.zeros(1, 2, 2), None), (torch.zeros(2, 4), torch.zeros(1, 2, 2), torch.ones(1, 2))]:
        with pytest.raises(ValueError, match="allowed"):
            Prompts(*parts)
    with pytest.raises(ValueError, match="chunk=0"):
        SamSegmenter(None, chunk=0)


def test_files_that_are_no_weights_are_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    path = tmp_path / "sam.pth"
    with pytest.raises(ValueError, match="vit_x"):
        SamSegmenter.from_checkpoint("vit_x", path)
    with pytest.raises(OSError, match=r"sam\.pth"):
        SamSegmenter.from_checkpoint("vit_b", path)
    for content in (b"", b"text", pickle.dumps(Hostile())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no vit_b weights") as error:
            SamSegmenter.from_checkpoint("vit_b", path)
        assert "\n" not in str(error.value)


def test_an_embedding_says_where_the_image_lies(segmenter):
    embedding = segmenter.embed(photograph(50, 80))
    assert isinstance(embedding, Embedding)
    assert embedding.image_size == (50, 80) and embedding.input_size == (60, 96)


def test_an_encoder_in_half_precision_embeds_in_float32(sam):
    single, half = SamSegmenter(sam), SamSegmenter(copy.deepcopy(sam))
    single_features = single.embed(photograph()).features
    half.embed(photograph())  # kept, and forgotten by the next line
    features = half.to(dtype=torch.bfloat16).embed(photograph()).features
    assert features.dtype == torch.float32 and not torch.equal(features, single_features)
    assert torch.cosine_similarity(features.flatten(), single_features.flatten(), dim=0) > 0.999
    logits, _ = half.decode(half.embed(photograph()), Prompts(boxes=boxes(2)))
    assert logits.dtype == torch.float32


def test_an_image_of_one_row_is_embedded(sam):
    segmenter = SamSegmenter(sam)
    embedding = segmenter.embed(np.full((1, 600, 3), 90, np.uint8))
    assert embedding.input_size == (1, sam.image_encoder.img_size)
    logits, _ = segmenter.decode(embedding, Prompts(torch.tensor([[0.0, 0, 300, 1]])))
    assert segmenter.to_image(logits, embedding).shape == (1, 3, 1, 600)

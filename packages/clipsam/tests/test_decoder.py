"""The decoder for many prompts gives what Segment Anything's own gives, whatever the prompts, widths and chunks."""

import copy

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from clipsam.decoder import PromptDecoder
from clipsam.promptable import Embedding, Prompts
from clipsam.sam import SamSegmenter


def perturbed(sam):
    """A copy whose biases and norms are not the zeros and ones of a new model."""
    sam, random = copy.deepcopy(sam), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return sam


@pytest.fixture(scope="module")
def own(sam):
    return perturbed(sam)


def embedded_shape():
    """A SAM of the embedded one's width and grid, without an image encoder."""
    torch.manual_seed(0)
    prompts = PromptEncoder(embed_dim=128, image_embedding_size=(32, 32), input_image_size=(256, 256), mask_in_chans=4)
    decoder = MaskDecoder(transformer_dim=128, transformer=TwoWayTransformer(2, 128, 4, 256))
    encoder = torch.nn.Module()
    encoder.img_size = 256
    return Sam(encoder, prompts, decoder).eval()


def features(sam, seed=3):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size, generator=random)


@torch.no_grad()
def theirs(sam, image, sparse, dense):
    place = sam.prompt_encoder.get_dense_pe()
    logits, scores = [], []
    for row in range(len(sparse)):
        parts = {"sparse_prompt_embeddings": sparse[row, None], "dense_prompt_embeddings": dense[row, None]}
        found = sam.mask_decoder(image_embeddings=image, image_pe=place, multimask_output=True, **parts)
        logits.append(found[0])
        scores.append(found[1])
    return torch.cat(logits), torch.cat(scores)


def side(sam):
    return sam.image_encoder.img_size


def boxes(sam, count):
    low = torch.rand(count, 2, generator=torch.Generator().manual_seed(4)) * side(sam) / 2
    return torch.cat([low, low + side(sam) / 3], dim=1)


def points(sam, count, each):
    random = torch.Generator().manual_seed(5)
    labels = torch.randint(-1, 2, (count, each), generator=random)  # −1: rows of fewer points
    return torch.rand(count, each, 2, generator=random) * side(sam), labels


@pytest.mark.parametrize("shape", ["tiny", "embedded"])
@pytest.mark.parametrize("kinds", ["boxes", "points", "boxes and points"])
def test_it_decodes_as_the_library_does(own, shape, kinds):
    sam = own if shape == "tiny" else perturbed(embedded_shape())
    image = features(sam)
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(
            points=points(sam, 5, 6) if "points" in kinds else None,
            boxes=boxes(sam, 5) if "boxes" in kinds else None,
            masks=None,
        )
        logits, scores = PromptDecoder(sam.mask_decoder, image + dense[:1], sam.prompt_encoder.get_dense_pe())(sparse)
    wanted, qualities = theirs(sam, image, sparse, dense)
    assert wanted.std() > 0.1 and 0.02 < (wanted > 0).float().mean() < 0.98
    torch.testing.assert_close(logits, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)
    torch.testing.assert_close(scores, qualities, atol=1e-4, rtol=1e-4)
    assert ((logits > 0) == (wanted > 0)).float().mean() > 0.9999


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_the_segmenter_decodes_as_the_library_does(own, chunk):
    image = Embedding(features(own), (side(own),) * 2, (side(own),) * 2)
    where, labels = points(own, 7, 3)
    corners = boxes(own, 7)
    logits, scores = SamSegmenter(own, chunk=chunk).decode(image, Prompts(corners, where, labels))
    with torch.no_grad():
        embedded = own.prompt_encoder(points=(where, labels), boxes=corners, masks=None)
    wanted, qualities = theirs(own, image.features, *embedded)
    torch.testing.assert_close(logits, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)
    torch.testing.assert_close(scores, qualities.clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_an_image_that_fills_the_input_is_enlarged_once_and_the_same(own):
    segmenter = SamSegmenter(own)
    embedding = Embedding(features(own), (side(own),) * 2, (side(own),) * 2)
    values = torch.randn(2, 3, segmenter.side, segmenter.side, generator=torch.Generator().manual_seed(6))
    twice = own.postprocess_masks(values, embedding.input_size, embedding.image_size)
    torch.testing.assert_close(segmenter.to_image(values, embedding), twice, atol=1e-5, rtol=1e-5)

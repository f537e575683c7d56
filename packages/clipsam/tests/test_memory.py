"""Memory: an image scores as it is unlike all references, whichever of them are sound."""

import numpy as np
import pytest
import torch

from clipsam.memory import SHARE, Memory
from clipsam.pipeline import ClipSAM, image_score, to_native
from clipsam.rarity import patch_rarity
from clipsam.umci import UMCIHead, rough_map


@pytest.fixture(scope="module")
def model(backbones):
    torch.manual_seed(0)
    backbone = backbones["own"]
    return ClipSAM(backbone, UMCIHead(2, backbone.width, backbone.text_dim, hidden=16, pool_kernels=(1, 2)))


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 40, 30, 3), np.uint8))


def test_the_distance_is_one_minus_the_cosine_to_the_closest_patch_of_the_closest_references():
    torch.manual_seed(0)
    references = [torch.randn(10, 6, 3, 5), torch.randn(10, 4, 3, 5)]
    patches = [torch.randn(2, 6, 3, 5), torch.randn(2, 4, 3, 5)]
    found = Memory(references).distance(patches)
    assert found.shape == (2, 3, 5)
    for image in range(2):
        for row in range(3):
            for column in range(5):
                to_each = []
                for number in range(10):
                    cosines = [
                        torch.cosine_similarity(own[image, :, row, column], known[number].flatten(1).T).max()
                        for own, known in zip(patches, references)
                    ]
                    to_each.append(1 - sum(cosines) / 2)
                expected = torch.stack(to_each).sort().values[: round(10 * SHARE)].mean()
                torch.testing.assert_close(found[image, row, column], expected)


def test_what_was_seen_before_is_at_no_distance_and_a_few_damaged_references_do_no_harm(model):
    image, *others = pictures(10)
    memory = model.remember([image] * 3 + others[:7])
    patches = model.backbone.patches(model._batch([image]))
    assert memory.distance(patches).abs().max() < 1e-5


def test_the_order_of_the_references_and_the_images_beside_it_do_not_matter(model):
    images, references = pictures(3), pictures(5, seed=1)
    together = model.segment(images, "nut", model.remember(references))
    alone = [model.segment([image], "nut", model.remember(references[::-1]))[0] for image in images]
    for one, other in zip(together, alone):
        assert one.score == pytest.approx(other.score, rel=1e-4)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)


@pytest.mark.parametrize("counts_rarity", [False, True])
def test_the_score_joins_map_rarity_and_distance_and_the_map_stays(model, counts_rarity):
    model = ClipSAM(model.backbone, model.umci, rarity=counts_rarity)
    [image], memory = pictures(1), model.remember(pictures(4, seed=1))
    [plain] = model.segment([image], "nut")
    [found] = model.segment([image], "nut", memory)
    patches = model.backbone.patches(model._batch([image]))
    x = rough_map(model.umci(patches, model.backbone.text("nut", model.bank)))
    x = x * patch_rarity(patches) if counts_rarity else x
    [expected] = (x.detach() * memory.distance(patches) ** 4) ** 0.2
    assert found.score == pytest.approx(image_score(to_native(expected, image)))
    assert np.array_equal(found.anomaly_map, plain.anomaly_map)
    stages = model.every_stage([image], "nut", memory)
    assert [stages[name][0][1] for name in ("umci", "memory")] == pytest.approx([plain.score, found.score])


def test_both_the_map_and_the_distance_have_a_say():
    memory = Memory([torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1)])
    near, far = (torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]).view(1, 2, 1, 1) for cosine in (0.9, 0.1))
    x = torch.full((1, 1, 1), 0.5)
    scores = [memory.weighted(*each).item() for each in ((0 * x, [far]), (x / 2, [near]), (x, [near]), (x, [far]))]
    assert scores == sorted(scores) and scores[0] == 0 and scores[-1] < 1


def test_no_references_or_no_heads_are_refused(model, backbones):
    with pytest.raises(ValueError, match=r"references=\(\) is empty"):
        model.remember([])
    texts = ClipSAM(backbones["own"])
    for method in (texts.segment, texts.every_stage):
        with pytest.raises(ValueError, match="allowed: trained heads"):
            method(pictures(1), "nut", model.remember(pictures(1)))

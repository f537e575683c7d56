"""Memory: an image scores as it is unlike all references, whichever of them are sound."""

import numpy as np
import pytest
import torch

from clipsam.memory import COMMON_DISTANCE, COMMON_MAP, MANNERS, SHARE, Memory, Usual, coreset, probability, turned
from clipsam.pipeline import ClipSAM, to_native
from clipsam.rarity import patch_rarity
from clipsam.score import image_score
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


def test_references_follow_the_images_to_another_device():
    memory, patches = Memory([torch.rand(3, 6, 2, 2)] * 2), [torch.rand(1, 6, 2, 2, device="meta")] * 2
    assert memory.distance(patches).device.type == memory.stages[0].device.type == "meta"


def test_the_order_of_the_references_and_the_images_beside_it_do_not_matter(model):
    images, references = pictures(3), pictures(5, seed=1)
    together = model.segment(images, "nut", model.remember(references))
    alone = [model.segment([image], "nut", model.remember(references[::-1]))[0] for image in images]
    for one, other in zip(together, alone):
        assert one.score == pytest.approx(other.score, rel=1e-4)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)


def deviations(values, peaks, common):
    """How far some values lie above what the references reach, whose spread is as if two more had the common one."""
    spread = ((((peaks - peaks.mean()) ** 2).sum() + 2 * common.spread**2) / (len(peaks) + 1)) ** 0.5
    return (values - peaks.mean()) / spread


@pytest.mark.parametrize("counts_rarity", [False, True])
def test_map_and_score_join_the_rough_map_and_the_distance(model, counts_rarity):
    model = ClipSAM(model.backbone, model.umci, rarity=counts_rarity)
    [image], references = pictures(1), pictures(4, seed=1)
    memory = model.remember(references, "nut")
    [found] = model.segment([image], "nut", memory)

    def known(image):
        patches = model.backbone.patches(model._batch([image]))
        p = rough_map(model.umci(patches, model.backbone.text("nut", model.bank)))
        return patches, p.detach(), (p * patch_rarity(patches) if counts_rarity else p).detach()

    each = [known(other) for other in references]
    patches, p, x = known(image)
    beside = [
        Memory([torch.cat(stage) for stage in zip(*(each[k][0] for k in range(4) if k != number))])
        for number in range(4)
    ]
    d_peaks = torch.stack([memory.distance(one[0]).max() for memory, one in zip(beside, each)])
    p_peaks, x_peaks = (torch.stack([one[at].max() for one in each]) for at in (1, 2))
    z = deviations(memory.distance(patches), d_peaks, COMMON_DISTANCE)
    [expected] = probability(z + deviations(p, p_peaks, COMMON_MAP) / 2)
    np.testing.assert_allclose(found.rough_map, to_native(expected, image), atol=1e-5)
    [counted] = probability(z + deviations(x, x_peaks, COMMON_MAP) / 4)
    assert found.score == pytest.approx(image_score(to_native(counted, image)), rel=1e-4)
    distance = model.remember(references, "nut", manner="distance")
    stages = model.every_stage([image], "nut", distance, memory)
    assert list(stages) == ["clip", "umci", "distance", "combined"]
    assert stages["combined"][0][1] == pytest.approx(found.score)
    [alone] = probability(z)
    assert stages["distance"][0][1] == pytest.approx(image_score(to_native(alone, image)), rel=1e-4)


def test_images_that_are_each_others_references_leave_themselves_out(model):
    images = pictures(6)
    mutual = model.remember(images, "nut", manner="mutual")
    for number, image in enumerate(images):
        patches = model.backbone.patches(model._batch([image]))
        others = model.remember(images[:number] + images[number + 1 :], "nut")
        torch.testing.assert_close(mutual.distance(patches), others.distance(patches), atol=1e-5, rtol=0)
    odd = np.zeros_like(images[0])
    odd[10:20, 10:20] = 255
    found = model.segment([*images, odd], "nut", model.remember([*images, odd], "nut", manner="mutual"))
    assert np.argmax([one.score for one in found]) == len(images)


@pytest.mark.parametrize("manner", MANNERS)
def test_one_reference_is_enough_for_finite_maps(model, manner):
    [found] = model.segment(pictures(1), "nut", model.remember(pictures(1, seed=1), "nut", manner=manner))
    assert 0 <= found.anomaly_map.min() <= found.anomaly_map.max() <= 1 and 0 < found.score < 1


def test_what_sound_images_reach_is_drawn_to_the_common_while_there_are_few():
    common = Usual(0.3, 0.03)
    assert Usual.of(torch.zeros(0), common) == common
    assert Usual.of(torch.tensor([0.5]), common) == Usual(0.5, pytest.approx(0.03))
    many = torch.linspace(0, 1, 1000)
    assert Usual.of(many, common).spread == pytest.approx(float(many.std()), rel=1e-2)


def test_a_turned_part_is_at_no_distance_from_a_reference_in_all_positions(model):
    [image] = np.random.default_rng(4).integers(0, 256, (1, 32, 32, 3), np.uint8)
    patches = model.backbone.patches(model._batch([np.rot90(image[:, ::-1], 3).copy()]))
    assert len({one.tobytes() for one in turned(image)}) == 8
    assert model.remember([image], "nut", turn=True).distance(patches).abs().max() < 1e-5
    assert model.remember([image], "nut").distance(patches).max() > 0.01


def test_beyond_the_limit_a_coreset_covers_what_was_there(model):
    references = pictures(3)
    whole = model.remember(references, "nut")
    size = sum(stage.nelement() * 4 for stage in whole.stages)
    half = model.remember(references, "nut", limit=size // 2)
    assert 0 < sum(stage.nelement() * 4 for stage in half.stages) <= size // 2
    torch.manual_seed(0)
    clusters = torch.randn(5, 6).repeat_interleave(8, 0) + 0.01 * torch.randn(40, 6)  # (40, C)
    kept = coreset([clusters.T.reshape(1, 6, 5, 8)], 5)[0].flatten(2)[0].T
    assert torch.cdist(clusters, kept).amin(1).max() < 0.2  # one of every cluster
    assert model.remember(references, "nut", limit=1).stages[0].shape[1] == 1


def test_a_memory_tells_which_images_it_was_made_of_whatever_their_order(model):
    references = pictures(3)
    told = model.remember(references, "nut").fingerprint
    assert told == model.remember(references[::-1], "nut").fingerprint
    others = (model.remember(references[:2], "nut"), model.remember(references, "nut", turn=True))
    assert told not in {other.fingerprint for other in others}


def test_unknown_manners_are_refused(model):
    with pytest.raises(ValueError, match="manner='nearest' is unknown; allowed: distance, combined, mutual"):
        model.remember(pictures(1), manner="nearest")


def test_no_references_or_no_heads_are_refused(model, backbones):
    with pytest.raises(ValueError, match=r"references=\(\) is empty"):
        model.remember([])
    texts = ClipSAM(backbones["own"])
    for method in (texts.segment, texts.every_stage):
        with pytest.raises(ValueError, match="allowed: trained heads"):
            method(pictures(1), "nut", model.remember(pictures(1)))
    with pytest.raises(ValueError, match="allowed: trained heads"):
        texts.remember(pictures(1))

"""Drawn inspection images: reproducible, varied, honest about what is normal, and described in words."""

import pickle

import numpy as np
import pytest

from clipsam.data import captions, procedural
from clipsam.data.objects import THINGS
from clipsam.data.procedural import (
    CATEGORIES,
    COLOURS,
    DEFECTS,
    HELD_OUT_CATEGORIES,
    TRAIN_CATEGORIES,
    Procedural,
    draw,
)
from clipsam.data.textures import TEXTURES
from clipsam.samples import GOOD


@pytest.fixture(scope="module")
def samples():
    data = Procedural(4 * len(CATEGORIES), size=64, seed=1)
    return [data[index] for index in range(len(data))]


def test_enough_categories_and_kinds_none_of_them_a_solar_cell():
    assert len(CATEGORIES) >= 16
    assert len(DEFECTS) >= 10
    words = " ".join([*CATEGORIES, *captions.vocabulary()])
    assert not any(word in words for word in ("solar", "photovolt", "wafer", "busbar"))


def test_the_halves_share_nothing_and_both_hold_surfaces_and_objects():
    assert set(TRAIN_CATEGORIES) | set(HELD_OUT_CATEGORIES) == set(CATEGORIES)
    assert not set(TRAIN_CATEGORIES) & set(HELD_OUT_CATEGORIES)
    assert abs(len(TRAIN_CATEGORIES) - len(HELD_OUT_CATEGORIES)) <= 1
    for half in (TRAIN_CATEGORIES, HELD_OUT_CATEGORIES):
        assert set(half) & set(TEXTURES)
        assert set(half) & set(THINGS)


def test_a_sample_is_a_function_of_seed_and_index():
    long, short, other = Procedural(40, size=48, seed=3), Procedural(9, size=48, seed=3), Procedural(9, size=48, seed=4)
    _ = long[0]  # the order of asking does not matter
    for index in (8, 2):
        first, again = long[index], pickle.loads(pickle.dumps(short))[index]
        assert np.array_equal(first.image, again.image)
        assert np.array_equal(first.mask, again.mask)
        assert (first.caption, first.source) == (again.caption, again.source)
        assert not np.array_equal(first.image, other[index].image)
    assert np.array_equal(short[-1].image, long[8].image)


def test_entries_tell_what_the_samples_are_without_drawing(samples, monkeypatch):
    monkeypatch.setattr(procedural, "draw", None)
    entries = Procedural(len(samples), size=64, seed=1).entries
    assert [(e.category, e.defect, e.source) for e in entries] == [(s.category, s.defect, s.source) for s in samples]


def test_categories_are_balanced_and_half_is_defective(samples):
    assert all(sum(s.category == category for s in samples) == 4 for category in CATEGORIES)
    assert 0.35 < np.mean([s.is_anomalous for s in samples]) < 0.65
    assert not any(sample.is_anomalous for sample in (Procedural(6, size=32, defect_share=0)[i] for i in range(6)))


def test_every_sample_is_well_formed(samples):
    for sample in samples:
        assert sample.image.shape == (64, 64, 3)
        assert sample.image.dtype == np.uint8
        assert sample.mask.shape == (64, 64)
        assert sample.mask.dtype == bool
        assert sample.mask.any() == (sample.defect != GOOD) == sample.is_anomalous
        assert sample.source.startswith(f"procedural/{sample.category}/1-")


def test_normal_images_are_not_perfectly_even(samples):
    normal = [sample.image.astype(float) for sample in samples if not sample.is_anomalous]
    assert min(image.std() for image in normal) > 1


def test_a_quarter_is_grey_and_says_so(samples):
    grey = [bool((s.image == s.image[..., :1]).all()) for s in samples]
    assert 0.15 < np.mean(grey) < 0.45


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_varies_and_holds_its_defect(category):
    for defect in ("crack", "dark_region"):
        first, second = (draw(category, defect, np.random.default_rng(seed), 65) for seed in (1, 2))
        assert first.image.shape == (65, 65, 3)
        assert first.mask.any()
        assert np.abs(first.image.astype(float) - second.image).mean() > 5


@pytest.mark.parametrize("category", THINGS)
def test_defects_on_objects_lie_on_the_object(category):
    for seed in range(2):
        _, on_object, _ = procedural._scene(category, np.random.default_rng(seed), 64)
        sample = draw(category, "stain", np.random.default_rng(seed), 64)
        assert on_object.any()
        assert not (sample.mask & ~on_object).any()


def test_the_flawless_twin_differs_only_by_the_defect():
    for category in ("fabric", "gear"):
        scenes = [procedural._scene(category, np.random.default_rng(0), 64)[0] for _ in range(2)]
        assert np.array_equal(*scenes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"categories": ("fabric", "cheese")}, r"categories=\['cheese'\] is unknown; allowed: brushed_metal"),
        ({"categories": ()}, r"categories=\(\)"),
        ({"defects": ("wormhole",)}, r"defects=\['wormhole'\]"),
        ({"count": -1}, "count=-1 is out of range"),
        ({"size": 31}, "size=31 is out of range; allowed: 32 or more"),
        ({"seed": -1}, "seed=-1"),
        ({"defect_share": 1.1}, "defect_share=1.1 is out of range; allowed: 0 to 1"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        Procedural(**{"count": 3, **settings})


def test_index_out_of_range():
    with pytest.raises(IndexError, match="index=3 is out of range; allowed: 0 to 2"):
        Procedural(3)[3]


def test_words_for_every_category_and_every_kind():
    assert set(captions.OBJECT_WORDS) == set(CATEGORIES)
    assert set(captions.DEFECT_WORDS) == set(DEFECTS)
    assert len({name for names in captions.OBJECT_WORDS.values() for name in names}) >= 300


@pytest.mark.parametrize("defect", [GOOD, *DEFECTS])
def test_captions_tell_the_state(defect):
    phrases = captions.captions("leather", defect, "brown", np.random.default_rng(0), 60)
    adjectives, nouns = captions.DEFECT_WORDS.get(defect, ((), ()))
    bad = (*adjectives, *nouns, *captions.DAMAGED, *(f"with a {flaw}" for flaw in captions.FLAWS), "with an ")
    for phrase in phrases:
        assert any(word in phrase for word in bad) or defect == GOOD, phrase
        assert not any(word in phrase.split() for word in captions.DAMAGED) or defect != GOOD, phrase
    assert len(set(phrases)) > 40
    assert 20 < sum("brown" in phrase for phrase in phrases) < 56


def test_captions_stay_in_the_vocabulary(samples):
    known = {*captions.vocabulary(), *COLOURS}
    assert not {word for sample in samples for word in sample.caption.split()} - known


def test_a_foreign_category_is_called_by_its_name():
    phrases = captions.captions("metal_nut", "scratch", "", np.random.default_rng(1), 30)
    assert any("metal nut" in phrase for phrase in phrases)
    assert not any("_" in phrase for phrase in phrases)

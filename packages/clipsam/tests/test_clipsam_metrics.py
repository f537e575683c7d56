"""Every metric against scikit-learn or a value worked out by hand, and the histogram against the sorted twin."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from clipsam.metrics import ImageMetrics, PixelMetrics, pixel_weights

PAIR = pytest.mark.parametrize("exact", [False, True])


def images(count=6, size=(40, 56), seed=0, levels=65536):
    """Maps whose scores are multiples of 1 / levels, so that the histogram loses nothing; one image is normal."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        mask = np.zeros(size, bool)
        for _ in range(number):
            y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
            mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
        scores = np.clip(0.3 * mask + rng.normal(0.35, 0.15, size), 0, 1 - 1 / levels)
        found.append((np.floor(scores * levels) / levels, mask))
    return found


def metrics_of(pairs, **options):
    metrics = PixelMetrics(**options)
    for scores, mask in pairs:
        metrics.update(scores, mask)
    return metrics


def pooled(pairs):
    return np.concatenate([m.ravel() for _, m in pairs]), np.concatenate([s.ravel() for s, _ in pairs])


@PAIR
def test_equal_to_scikit_learn(exact):
    pairs = images()
    truth, scores = pooled(pairs)
    found = metrics_of(pairs, exact=exact).compute()
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert found["f1_max"] == pytest.approx(f1.max(), abs=1e-12)
    assert found["threshold"] == thresholds[f1[:-1].argmax()]


@PAIR
def test_the_histogram_is_the_sorted_twin_when_no_two_scores_share_a_bin(exact):
    expected = metrics_of(images(), exact=True).compute()
    assert metrics_of(images(), exact=exact).compute() == pytest.approx(expected, abs=1e-12)


def test_few_bins_cost_little():
    rng = np.random.default_rng(1)
    pairs = [(np.clip(s + rng.uniform(0, 1e-6, s.shape), 0, 1), m) for s, m in images(seed=1)]
    exact = metrics_of(pairs, exact=True).compute()
    assert metrics_of(pairs).compute()["aupro"] == pytest.approx(exact["aupro"], abs=1e-5)
    assert metrics_of(pairs, bins=1024).compute()["aupro"] == pytest.approx(exact["aupro"], abs=5e-3)


@PAIR
def test_aupro_of_two_regions_worked_out_by_hand(exact):
    """Region A (4 px) is found at 0.9, region B (1 px) at 0.5; of 20 normal pixels 2 score 0.7 and 4 score 0.3."""
    scores, mask = np.zeros((5, 5)), np.zeros((5, 5), bool)
    mask[:2, :2], mask[4, 4] = True, True
    scores[:2, :2], scores[4, 4] = 0.9, 0.5
    scores[0, 3:], scores[4, :4] = 0.7, 0.3
    # FPR, PRO: (0, 0) (0, .5) (.1, .5) (.1, 1) (.3, 1) → area to 0.3: .05 + .2 = .25, ÷ 0.3
    assert metrics_of([(scores, mask)], exact=exact).compute()["aupro"] == pytest.approx(0.25 / 0.3, abs=1e-12)
    # to 0.05 only the first region counts
    assert metrics_of([(scores, mask)], exact=exact, fpr_limit=0.05).compute()["aupro"] == pytest.approx(0.5)


@PAIR
def test_aupro_is_interpolated_at_the_limit(exact):
    scores, mask = np.zeros((1, 5)), np.zeros((1, 5), bool)
    mask[0, 0] = True  # found together with all normal pixels: PRO = FPR
    assert metrics_of([(scores, mask)], exact=exact, fpr_limit=0.3).compute()["aupro"] == pytest.approx(0.15)


def test_pixels_that_touch_at_a_corner_are_one_region_and_the_first_pixel_counts():
    weights, regions = pixel_weights(np.eye(4, dtype=bool))
    assert regions == 1 and weights == pytest.approx([0.25] * 4)
    mask = np.zeros((3, 3), bool)
    mask[0, 0] = mask[2, 2] = True
    assert pixel_weights(mask)[1] == 2


def test_exact_metrics_do_not_change_under_a_monotone_transform():
    pairs = images(seed=2)
    bent = [(s**3, m) for s, m in pairs]
    first, second = (metrics_of(p, exact=True).compute() for p in (pairs, bent))
    for name in ("auroc", "f1_max", "ap", "aupro"):
        assert first[name] == pytest.approx(second[name], abs=1e-12)
    assert abs(first["aupro_legacy200"] - second["aupro_legacy200"]) > 1e-4  # that variant does


@PAIR
def test_legacy_is_the_literature_s_algorithm(exact):
    """Against a direct transcription of its description: 200 thresholds, strictly above, rate stretched to [0, 1]."""
    pairs = images(seed=3, size=(24, 24))
    low, high = min(s.min() for s, _ in pairs), max(s.max() for s, _ in pairs)
    fprs, pros = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        shares, normal, false = [], 0, 0
        for scores, mask in pairs:
            found = scores > threshold
            weights, regions = pixel_weights(mask) if mask.any() else (np.zeros(0), 0)
            shares += [0.0] * regions
            if regions:
                shares[-regions] += (weights * found[mask]).sum()
            normal, false = normal + (~mask).sum(), false + (found & ~mask).sum()
        fprs.append(false / normal)
        pros.append(np.sum(shares) / len(shares))
    fprs, pros = np.array(fprs), np.array(pros)
    kept = fprs < 0.3
    fpr = (fprs[kept] - fprs[kept].min()) / (fprs[kept].max() - fprs[kept].min())
    assert metrics_of(pairs, exact=exact).compute()["aupro_legacy200"] == pytest.approx(auc(fpr, pros[kept]), abs=2e-4)


def test_legacy_collapses_on_nearly_binary_maps_and_aupro_does_not():
    pairs = images(seed=4, count=8)
    binary = [(np.where(s > 0.55, 0.97 + s * 0.03, s * 0.03), m) for s, m in pairs]
    found = metrics_of(binary, exact=True).compute()
    smooth = metrics_of(pairs, exact=True).compute()
    assert found["aupro"] == pytest.approx(smooth["aupro"], abs=1e-12)
    assert found["aupro_legacy200"] < smooth["aupro_legacy200"] - 0.1


@PAIR
def test_merged_parts_are_one_pass_in_any_order(exact):
    pairs = images()
    whole = metrics_of(pairs, exact=exact).compute()
    parts = [metrics_of(pairs[i::3], exact=exact) for i in (2, 0, 1)]
    parts[0].merge(parts[1])
    parts[0].merge(PixelMetrics(exact=exact).load_state(parts[2].state()))
    assert parts[0].compute() == pytest.approx(whole, abs=1e-12)


def test_the_state_does_not_grow():
    sizes = [sum(a.nbytes for a in metrics_of(images(count)).state().values()) for count in (1, 6)]
    assert sizes[0] == sizes[1] < 2e6


@PAIR
@pytest.mark.parametrize(("mask", "nan"), [(False, {"auroc", "f1_max", "threshold", "ap"}), (True, {"auroc"})])
def test_one_kind_of_pixel_gives_nan_and_a_warning(exact, mask, nan):
    metrics = metrics_of([(np.linspace(0, 1, 12).reshape(3, 4), np.full((3, 4), mask))], exact=exact)
    with pytest.warns(RuntimeWarning, match="no pixel is"):
        found = metrics.compute()
    assert {name for name, value in found.items() if np.isnan(value)} == nan | {"aupro", "aupro_legacy200"}


def test_nothing_seen_is_nan():
    with pytest.warns(RuntimeWarning):
        assert all(np.isnan(value) for value in PixelMetrics().compute().values())


@PAIR
def test_a_constant_map_says_nothing(exact):
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics_of([(np.full((4, 4), 0.5), mask)], exact=exact).compute()
    assert found["auroc"] == 0.5 and found["ap"] == pytest.approx(1 / 16) and np.isnan(found["aupro_legacy200"])


@pytest.mark.parametrize(
    ("scores", "mask", "says"),
    [
        (np.full((2, 2), np.nan), np.zeros((2, 2), bool), "nan"),
        (np.full((2, 2), 1.5), np.zeros((2, 2), bool), "1.5"),
        (np.zeros((2, 2)), np.zeros((2, 3), bool), "(2, 3)"),
        (np.zeros((0, 2)), np.zeros((0, 2), bool), "(0, 2)"),
    ],
)
def test_bad_maps_are_refused_and_change_nothing(scores, mask, says):
    metrics = metrics_of(images(3))
    before = metrics.compute()
    with pytest.raises(ValueError, match="allowed") as error:
        metrics.update(scores, mask)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert metrics.compute() == before


def test_metrics_that_count_differently_do_not_merge():
    with pytest.raises(ValueError, match="bins=8"):
        PixelMetrics().merge(PixelMetrics(bins=8))
    with pytest.raises(ValueError, match="fpr_limit=0"):
        PixelMetrics(fpr_limit=0)


def image_metrics(count=60, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    metrics = ImageMetrics()
    for number in range(count):
        metrics.update(rng.normal() + shift * (number % 3 == 0), number % 3 == 0)
    return metrics


def test_image_metrics_are_scikit_learn_s():
    metrics = image_metrics()
    found = metrics.compute()
    assert found["image_auroc"] == pytest.approx(roc_auc_score(metrics.anomalous, metrics.scores))
    assert found["image_ap"] == pytest.approx(average_precision_score(metrics.anomalous, metrics.scores))
    low, high = metrics.auroc_interval()
    assert low < found["image_auroc"] < high
    with pytest.raises(ValueError, match="nan"):
        metrics.update(float("nan"), True)


def test_the_interval_covers_the_true_auroc_as_often_as_it_says():
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2))
    covered = [low < truth < high for low, high in (image_metrics(seed=s).auroc_interval() for s in range(300))]
    assert 0.90 < np.mean(covered) < 0.99


def test_images_of_one_kind_give_nan():
    metrics = ImageMetrics([0.1, 0.2], [False, False])
    with pytest.warns(RuntimeWarning, match="no image is anomalous"):
        assert np.isnan(metrics.compute()["image_auroc"])
    assert np.isnan(metrics.auroc_interval()).all()


# --- maps whose scores lie close together, and maps of other kinds of numbers ---

SQUEEZED = {
    "saturated": lambda scores: 1 - 1e-4 * (1 - scores) ** 3,
    "squeezed": lambda scores: 1e-4 * scores,
    "to the middle": lambda scores: 0.5 + 1e-4 * scores,
    "half of it": lambda scores: np.where(scores < 0.6, 1e-4 * scores, scores),
}


@pytest.mark.parametrize("how", SQUEEZED)
def test_crowded_maps_are_ranked_as_exactly_as_by_sorting(how):
    pairs = [(SQUEEZED[how](scores.astype(float)), mask) for scores, mask in images(8, (60, 80))]
    found, expected = metrics_of(pairs).compute(), metrics_of(pairs, exact=True).compute()
    for name in ("auroc", "ap", "f1_max", "aupro"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name
    assert found["threshold"] == pytest.approx(expected["threshold"], abs=1e-12)


def test_many_ranked_scores_are_joined_and_cost_little():
    pairs = [(1 - 1e-6 * scores.astype(float), mask) for scores, mask in images(12, (60, 80))]
    metrics, expected = metrics_of(pairs, bins=1000), metrics_of(pairs, exact=True).compute()
    assert len(metrics.state()["ranked_scores"]) <= 4000 < 12 * 60 * 80
    found = metrics.compute()
    for name in ("auroc", "ap", "aupro"):
        assert found[name] == pytest.approx(expected[name], abs=2e-3), name


def test_ranked_parts_merge_and_survive_as_state():
    pairs = [(1e-4 * scores.astype(float), mask) for scores, mask in images(6)] + images(3, seed=1)
    whole, first, second = metrics_of(pairs), metrics_of(pairs[:4]), metrics_of(pairs[4:])
    first.merge(second)
    assert first.compute() == pytest.approx(whole.compute())
    assert PixelMetrics().load_state(whole.state()).compute() == whole.compute()


@pytest.mark.parametrize("kind", [np.float16, np.uint8, np.uint16])
def test_maps_of_any_kind_of_number(kind):
    pairs = images(4)
    if kind == np.float16:
        given = [(scores.astype(kind), mask) for scores, mask in pairs]
        same = [(scores.astype(float), mask) for scores, mask in given]
    else:
        white = np.iinfo(kind).max
        given = [(np.rint(scores * white).astype(kind), mask) for scores, mask in pairs]
        same = [(scores / np.float32(white), mask) for scores, mask in given]
    given.append((np.full((2, 2), 1 if kind == np.float16 else white, kind), np.eye(2, dtype=bool)))
    same.append((np.ones((2, 2)), np.eye(2, dtype=bool)))
    assert metrics_of(given).compute() == pytest.approx(metrics_of(same, exact=True).compute(), abs=1e-4)

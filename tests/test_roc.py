"""Curves, areas and thresholds of detectors, against what is known of them."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from purify.evals.detect.roc import auroc, curve, threshold


def samples(distance, n, m, seed):
    """Of two unit normal distributions that far apart: the area is Phi(distance / sqrt(2))."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(distance, size=m)


def test_the_area_is_that_of_mann_and_whitney_with_ties():
    negatives, positives = (np.round(v, 1) for v in samples(1.0, 70, 30, seed=0))
    expected = mannwhitneyu(positives, negatives).statistic / (70 * 30)
    found = auroc(negatives, positives, np.arange(30))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high and found.n == 30


def test_the_area_is_that_under_the_curve():
    negatives, positives = (np.round(v, 1) for v in samples(1.5, 50, 40, seed=1))
    false, true = curve(negatives, positives)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = np.trapezoid(true, false)
    assert auroc(negatives, positives, np.arange(40)).value == pytest.approx(area, abs=1e-12)
    at = np.searchsorted(-np.unique(np.concatenate([negatives, positives]))[::-1], -1.0)
    assert false[at] == np.mean(negatives > 1.0) and true[at] == np.mean(positives > 1.0)


def test_the_interval_covers_the_true_area():
    """200 draws of two normal samples; nominal 95 %. Binomial noise of 200 is 1.5 points, and a
    percentile bootstrap of 60 positives covers a little less than it says."""
    truth, covered = norm.cdf(1.8 / np.sqrt(2)), 0
    for seed in range(200):
        negatives, positives = samples(1.8, 100, 60, seed)
        found = auroc(negatives, positives, np.arange(60), seed=seed, num_resamples=400)
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_images_are_resampled_with_what_was_made_of_them():
    """Each positive a little above its own negative: resampled apart, they would vary far more."""
    rng = np.random.default_rng(0)
    negatives = rng.normal(size=200)
    paired = auroc(negatives, negatives + 0.01, np.arange(200))
    apart = auroc(negatives, negatives + 0.01, rng.permutation(200))
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_draws_of_an_image_count_as_one_image():
    """Drawn thrice alike they change nothing, the interval included; drawn apart they average."""
    negatives, positives = (np.round(v, 1) for v in samples(1.0, 70, 30, seed=0))
    alike = [np.repeat(values[:, None], 3, axis=1) for values in (negatives, positives)]
    assert auroc(*alike, np.arange(30)) == auroc(negatives, positives, np.arange(30))
    for once, thrice in zip(curve(negatives, positives), curve(*alike), strict=True):
        np.testing.assert_allclose(once, thrice)
    first, second = (samples(1.0, 50, 50, seed) for seed in (1, 2))
    apart = [np.stack(pair, axis=1) for pair in zip(first, second, strict=True)]
    above = apart[1].reshape(-1, 1) > apart[0].ravel()
    found = auroc(*apart, np.arange(50))
    assert found.value == pytest.approx(above.mean(), abs=1e-12) and found.n == 50


@pytest.mark.parametrize(("shift", "value"), [(10.0, 1.0), (-10.0, 0.0)])
def test_what_is_wholly_apart_has_the_exact_interval_of_independent_pairs(shift, value):
    negatives, positives = samples(shift, 30, 20, seed=0)
    found = auroc(negatives, positives, np.arange(20))
    unseen = 1 - 0.025 ** (1 / 20)
    assert found.value == value
    assert (found.low, found.high) == pytest.approx((1 - unseen, 1) if value else (0, unseen))


def test_nearly_apart_is_no_surer_than_wholly_apart():
    negatives, positives = np.arange(30.0), np.append(np.arange(30.0, 49.0), 28.5)
    apart, nearly = (auroc(negatives, v, np.arange(20)) for v in (positives + 10, positives))
    assert nearly.value == 1 - 1 / 600 and nearly.low <= apart.low < 1
    below = auroc(positives, negatives[:20], np.arange(20))
    assert below.high >= auroc(positives + 10, negatives[:20], np.arange(20)).high


def test_a_new_natural_image_exceeds_the_threshold_as_rarely_as_it_says():
    """The mean over many calibrations is the rank's own: 1 - 96 / 101 for 100 images at 5 %."""
    rng = np.random.default_rng(0)
    rates = [norm.sf(threshold(rng.normal(size=100), 0.05)) for _ in range(3000)]
    assert np.mean(rates) == pytest.approx(5 / 101, abs=4 * np.std(rates) / 3000**0.5)
    assert threshold(np.arange(19.0), 0.05) == 18.0
    assert threshold(np.arange(1, 100.0), 0.01) == 99.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: threshold(np.arange(18.0), 0.05), "18 calibration images are too few .* 19"),
        (lambda: threshold([0.0], 1.0), "rate=1.0 must be in"),
        (lambda: curve([], [1.0]), "negatives: must be a vector"),
        (lambda: curve([1.0], [np.nan]), "positives: must be a vector"),
        (lambda: auroc([1.0], [1.0, 2.0], [0, 1]), "origins: must be a position"),
        (lambda: auroc([1.0], [1.0, 2.0], [0]), "origins: must be a position"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()

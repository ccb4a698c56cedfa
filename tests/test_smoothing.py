"""Randomised smoothing: tabulated bounds and radii, SciPy, and distances that are known."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from purify.evals.smoothing import (
    ABSTAIN,
    LOOK,
    answer,
    certify,
    largest_radius,
    radius,
)
from purify.evals.stats import clopper_pearson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (990, 1000), (52, 100)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_lower_bound_is_scipys_one_sided_one(successes, n, alpha):
    test = binomtest(successes, n, alternative="greater")
    expected = test.proportion_ci(1 - alpha, method="exact").low
    assert clopper_pearson(successes, n, alpha)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("p_low", "z"),  # of a printed table of the normal distribution
    [(0.8413, 1.0), (0.975, 1.96), (0.9987, 3.01), (0.5, 0.0), (0.3, 0.0), (0.0, 0.0)],
)
def test_the_radius_is_sigma_times_the_normal_quantile(p_low, z):
    assert radius(p_low, 0.25) == pytest.approx(0.25 * z, abs=0.25 * 0.006)


def test_the_largest_radius_is_that_of_cohen_et_al():
    """They state 3.8 sigma for n = 100,000 and alpha = 0.001."""
    assert largest_radius(100_000, 0.001, 1.0) == pytest.approx(3.81, abs=0.01)
    p_low = 0.001 ** (1 / 1000)  # all of n agree: p^n = alpha
    assert largest_radius(1000, 0.001, 0.5) == pytest.approx(0.5 * norm.ppf(p_low), rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([60, 40, 0], ABSTAIN), ([90, 10, 0], 0), ([0, 3, 300], 2), ([5, 5], ABSTAIN), ([0, 0], -1)],
)
def test_an_answer_is_told_from_the_runner_up_or_withheld(counts, expected):
    """60 of 100 have a two-sided p of 0.057, above 0.001; 90 of 100 one far below."""
    assert answer(np.array(counts), 0.001) == expected


def half_line(distance: float, sigma: float, index: int, calls: list | None = None):
    """Samples of a binary linear classifier of an image at that distance from its plane, without
    clipping: of an image and its noise only the projection on the weights counts."""

    def sample(stream, first, number):
        if calls is not None:
            calls.append((stream, first, number))
        rng = np.random.default_rng([index, first, stream == "selection"])
        return (distance + sigma * rng.standard_normal(number) > 0).astype(int)

    return sample


def test_of_a_linear_classifier_no_radius_exceeds_the_distance_and_few_are_much_shorter():
    """Its smoothed classifier is itself, so that the true radius is the distance to its plane. The
    chance that a radius is too large is at most alpha for each image: of 1,000 more than 5 are with
    a chance of 6e-4."""
    sigma, n, alpha = 0.25, 20_000, 0.001
    distances = np.random.default_rng(0).uniform(0, 5 * sigma, 1000)
    options = dict(sigma=sigma, num_classes=2, num_samples=n, alpha=alpha)
    found = [certify(half_line(d, sigma, i), **options) for i, d in enumerate(distances)]
    radii = np.array([certificate.radius for certificate in found])
    assert np.sum(radii > distances) <= 5
    shares = radii / np.minimum(distances, largest_radius(n, alpha, sigma))
    assert np.median(shares) > 0.95 and (radii[distances < 0.01 * sigma] == 0).all()
    answered = [certificate.answer for certificate in found if certificate.answer != ABSTAIN]
    assert len(answered) > 900 and np.mean(answered) > 0.995  # class 1 is the smoothed answer


def test_a_look_abstains_early_and_never_certifies():
    """Of a class with chance 0.3 after one look; near 1/2 all samples are drawn, and decide."""
    for chance, expected in ((0.3, LOOK), (0.52, 50_000)):
        calls = []

        def sample(stream, first, number, *, chance=chance, calls=calls):
            calls.append(number)
            rng = np.random.default_rng(first)
            return (rng.random(number) < (0.9 if stream == "selection" else chance)).astype(int)

        found = certify(sample, sigma=1.0, num_classes=2, num_samples=50_000)
        assert sum(calls[1:]) == expected and found.top == 1
        assert (found.radius > 0) == (chance > 0.5)
        if chance < 0.5:
            assert (found.answer, found.p_low) == (ABSTAIN, 0.0)


def test_the_class_is_selected_and_certified_on_samples_of_their_own():
    calls = []
    found = certify(
        half_line(1.0, 0.25, 0, calls),
        sigma=0.25,
        num_classes=3,
        num_selection=50,
        num_samples=2500,
    )
    assert calls == [
        ("selection", 0, 50), ("defense", 0, 1000), ("defense", 1000, 1000), ("defense", 2000, 500)
    ]  # fmt: skip
    assert found.counts.tolist()[2] == 0 and found.counts.sum() == 2500
    assert found.radius == radius(clopper_pearson(found.counts[1], 2500, 1e-3)[0], 0.25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(sigma=0.0), "sigma=0.0 must be positive"),
        (dict(alpha=1.0), "alpha=1.0 must lie"),
        (dict(num_samples=0), "num_samples=0 must be at least 1"),
        (dict(num_selection=0), "num_selection=0 and"),
    ],
)
def test_what_cannot_be_certified_with_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        certify(half_line(1.0, 0.25, 0), **dict(sigma=0.25, num_classes=2) | changes)

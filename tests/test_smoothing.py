"""Randomised smoothing: tabulated bounds and radii, SciPy, and distances that are known."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from purify.evals.certify import smoothing
from purify.evals.certify.smoothing import ABSTAIN, LOOK, answer, certify, largest_radius, radius
from purify.evals.core.stats import clopper_pearson


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


def test_what_is_certified_is_answered():
    """5,180 of 10,000: enough for a radius at alpha 0.001, not for an answer at a tenth of it."""
    counts = np.array([5180, 4820])
    drawn = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))

    def sample(stream, first, number):
        return np.zeros(number, int) if stream == "selection" else drawn[first : first + number]

    options = dict(num_selection=10, num_samples=10_000, alpha=1e-3)
    found = certify(sample, sigma=1.0, num_classes=2, **options)
    assert found.radius > 0 and found.answer == found.top == 0
    assert answer(counts, 1e-4) == ABSTAIN


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
    options = dict(sigma=sigma, num_classes=2, num_selection=100, num_samples=n, alpha=alpha)
    found = [certify(half_line(d, sigma, i), **options) for i, d in enumerate(distances)]
    radii = np.array([certificate.radius for certificate in found])
    assert np.sum(radii > distances) <= 5
    shares = radii / np.minimum(distances, largest_radius(n, alpha, sigma))
    assert np.median(shares) > 0.95 and (radii[distances < 0.01 * sigma] == 0).all()
    answered = [certificate.answer for certificate in found if certificate.answer != ABSTAIN]
    assert len(answered) > 900 and np.mean(answered) > 0.995  # class 1 is the smoothed answer


SELECTED = 1


@pytest.mark.parametrize(
    ("chances", "drawn", "answered"),
    [
        ((0.7, 0.3), LOOK, 0),  # another class plainly wins
        ((0.2, 0.42, 0.2, 0.18), LOOK, SELECTED),  # it wins, and is no majority
        ((0.16, 0.53, 0.16, 0.15), 50_000, SELECTED),  # it wins, and may yet be a majority
        ((0.48, 0.52), 50_000, SELECTED),  # near 1/2 all samples are drawn, and decide
        ((0.4, 0.4, 0.2), 50_000, ABSTAIN),  # hopeless, but for an answer there is a chance
    ],
)
def test_it_ends_early_once_there_is_an_answer_and_no_hope_and_never_certifies_then(
    chances, drawn, answered
):
    calls = []

    def sample(stream, first, number):
        calls.append(number)
        if stream == "selection":
            return np.full(number, SELECTED)
        return np.random.default_rng(first).choice(len(chances), number, p=chances)

    found = certify(
        sample, sigma=1.0, num_classes=4, num_selection=10, num_samples=50_000, alpha=1e-3
    )
    assert sum(calls[1:]) == found.counts.sum() == drawn
    assert (found.top, found.answer) == (SELECTED, answered)
    certified = chances[SELECTED] > 0.5
    assert (found.radius > 0) == certified == (found.p_low > 0.5)


def test_it_ends_where_not_even_all_that_are_left_could_certify():
    """After 1,000 of 1,010, of which one more or fewer decides; then the last ten all agree."""
    n, alpha = LOOK + 10, 1e-3
    needed = next(k for k in range(n) if clopper_pearson(k, n, alpha)[0] > 0.5)
    options = dict(sigma=1.0, num_classes=4, num_selection=10, num_samples=n, alpha=alpha)
    for hits, drawn in ((needed - 10, n), (needed - 11, LOOK)):
        others = np.resize([1, 2, 3], LOOK - hits)
        classes = np.concatenate([np.zeros(hits, int), others, np.zeros(10, int)])

        def sample(stream, first, number, classes=classes):
            return classes[:number] * 0 if stream == "selection" else classes[first:][:number]

        found = certify(sample, **options)
        assert found.counts.sum() == drawn and found.answer == 0
        assert (found.radius > 0) == (drawn == n)


def test_looks_share_alpha_among_their_answers(monkeypatch):
    """What is told apart at alpha by one look, is not by the last of two; of a class that is not
    the one selected, so that nothing is certified."""
    alpha = 1.5 * binomtest(910, 2000).pvalue

    def sample(stream, first, number):
        ones = number if stream == "selection" else number * 910 // 2000
        return np.repeat([0, 1], [number - ones, ones])

    options = dict(sigma=1.0, num_classes=2, num_selection=10, num_samples=2000, alpha=alpha)
    for look, answered in ((2000, 0), (1000, ABSTAIN)):
        monkeypatch.setattr(smoothing, "LOOK", look)
        found = certify(sample, **options)
        assert found.counts.tolist() == [1090, 910] and found.answer == answered


def test_the_class_is_selected_and_certified_on_samples_of_their_own():
    calls = []
    found = certify(
        half_line(1.0, 0.25, 0, calls),
        sigma=0.25,
        num_classes=3,
        num_selection=50,
        num_samples=2500,
        alpha=1e-3,
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
        (dict(num_samples=9), "num_samples=9 can certify nothing at alpha=0.001, .* at least 10$"),
        (dict(num_samples=2, alpha=0.25), "num_samples=2 can certify nothing .* at least 3$"),
    ],
)
def test_what_cannot_be_certified_with_is_refused(changes, said):
    options = dict(sigma=0.25, num_classes=2, num_selection=10, num_samples=100, alpha=1e-3)
    with pytest.raises(ValueError, match=said):
        certify(half_line(1.0, 0.25, 0), **options | changes)


@pytest.mark.parametrize(("num_samples", "alpha"), [(10, 1e-3), (3, 0.25), (14, 1e-4)])
def test_the_fewest_samples_that_are_let_through_certify_where_all_agree(num_samples, alpha):
    assert largest_radius(num_samples, alpha, 1.0) > 0 == largest_radius(num_samples - 1, alpha, 1)
    options = dict(sigma=1.0, num_classes=2, num_selection=10, alpha=alpha)
    found = certify(half_line(100.0, 1.0, 0), num_samples=num_samples, **options)
    assert found.radius == largest_radius(num_samples, alpha, 1.0)

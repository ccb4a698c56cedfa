"""Intervals against scipy, printed tables and simulated coverage; paired tests against both."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from purify.evals.core.stats import (
    Estimate,
    beats,
    bootstrap_mean,
    flip_test,
    holm,
    mcnemar,
    paired_difference,
    paired_share,
    proportion,
)


def test_rounding_does_not_decide_whether_an_interval_excludes_zero():
    """Differences in quarters: an end that is 0 but for rounding is 0."""
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(200):
        values = rng.choice(
            [-0.25, 0.0, 0.25, 0.5], size=rng.integers(20, 60), p=[0.1, 0.6, 0.2, 0.1]
        )
        ends += bootstrap_mean(values, num_resamples=500, bounds=(-1.0, 1.0))[1:3]
    small = np.abs(ends) < 1e-9
    assert small.sum() >= 5 and not np.any(np.array(ends)[small])


def outcomes(successes: int, n: int) -> np.ndarray:
    return np.arange(n) < successes


def paired(wins: int, losses: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of a and b that disagree on wins + losses images and are right on the others."""
    index = np.arange(n)
    return ~((index >= wins) & (index < wins + losses)), index >= wins


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


# Exact 95 % limits of a binomial proportion, as tabulated for n = 10 and n = 20.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (2, 10, 0.0252, 0.5561),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (0, 20, 0.0, 0.1684),
        (10, 20, 0.2720, 0.7280),
    ],
)
def test_proportion_matches_the_printed_tables(successes, n, low, high):
    estimate = proportion(outcomes(successes, n))
    assert estimate == pytest.approx((successes / n, low, high, n), abs=6e-5)


@pytest.mark.parametrize("confidence", [0.95, 0.98])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (499, 1000), (10000, 10000)])
def test_proportion_matches_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence)
    estimate = proportion(outcomes(successes, n).astype(int), confidence=confidence)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_bootstrap_of_a_well_behaved_mean_agrees_with_the_central_limit():
    values = np.random.default_rng(0).random(2000)
    estimate = bootstrap_mean(values)
    half_width = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.value == pytest.approx(values.mean())
    # 10,000 resamples place a 2.5 % quantile within 1 to 2 % of the half width.
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.05)
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.05)


@pytest.mark.parametrize(
    ("n", "a", "b"),
    [(100, 0.3, 0.7), (100, 2.0, 2.0), (200, 0.1, 1.9)],
    ids=["bimodal", "symmetric", "few survive"],
)
def test_bootstrap_covers_the_truth_as_often_as_it_says(n, a, b):
    # Image i survives with chance p_i ~ Beta(a, b); its value is its share of 10 draws. Over 500
    # data sets, coverage has a standard error of 0.01; 3.5 of those, and 0.01 for the known
    # shortfall of BCa at this n, are allowed.
    rng = np.random.default_rng(1)
    values = rng.binomial(10, rng.beta(a, b, size=(500, n))) / 10
    hits = [covers(bootstrap_mean(v, num_resamples=1000), a / (a + b)) for v in values]
    assert 0.905 < np.mean(hits) < 0.985


SKEWED = np.random.default_rng(0).beta(0.3, 2, 15)


@pytest.mark.parametrize(
    "values",
    [
        SKEWED,
        1 - SKEWED,
        np.repeat([0.0, 0.5, 1.0], [1, 2, 7]),  # many resamples have the very mean of the values
        np.repeat([0.0, 0.5, 1.0], [10, 3, 2]),
    ],
    ids=["few survive", "most survive", "in halves, most", "in halves, few"],
)
def test_bootstrap_of_skewed_values_ends_where_scipys_bca_does(values):
    """On 100,000 resamples each. Either correction left out moves an end by 0.08 to 0.3 standard
    errors of continuous values, and by a whole step of those in halves."""
    options = dict(method="BCa", n_resamples=100_000, batch=10_000, rng=np.random.default_rng(1))
    expected = bootstrap((values,), np.mean, **options).confidence_interval
    found = bootstrap_mean(values, num_resamples=100_000)
    in_halves = np.isin(2 * values % 1, 0).all()
    atol = 1e-9 if in_halves else 0.03 * values.std() / len(values) ** 0.5
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=atol)


@pytest.mark.parametrize("n", [1, 10, 500])
def test_bootstrap_of_constant_outcomes_is_clopper_pearson(n):
    for value in (0.0, 1.0):
        exact, estimate = proportion(np.full(n, value)), bootstrap_mean(np.full(n, value))
        assert estimate == pytest.approx(exact)
        assert estimate.high - estimate.low > 0


def test_bootstrap_of_a_constant_inside_the_bounds_leaves_room_on_both_sides():
    unseen = proportion(np.zeros(20)).high
    noisy = 0.3 + 1e-15 * np.arange(20)  # float noise is not variation
    assert bootstrap_mean(noisy) == pytest.approx((0.3, 0.3 * (1 - unseen), 0.3 + 0.7 * unseen, 20))
    unbounded = bootstrap_mean(np.full(20, 0.3), bounds=(-np.inf, np.inf))
    assert (unbounded.low, unbounded.high) == (-np.inf, np.inf)


def test_bootstrap_depends_on_the_seed_but_not_on_the_order_of_the_images():
    values = np.random.default_rng(2).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values[::-1])[1:] == pytest.approx(bootstrap_mean(values)[1:])
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_bootstrap_does_not_break_on_the_most_skewed_values():
    for n in (2, 5, 1000):
        estimate = bootstrap_mean(outcomes(1, n))
        assert 0 <= estimate.low <= estimate.value < estimate.high <= 1


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (1, 9, 22 / 1024)]
)
def test_mcnemar_by_hand(wins, losses, p):
    assert mcnemar(*paired(wins, losses, 20)) == pytest.approx(p)


def test_mcnemar_matches_scipy_and_decides_the_interval():
    """For every table of up to 12 images: sign, McNemar and the interval tell one story."""
    n = 12
    for wins in range(n + 1):
        for losses in range(n - wins + 1):
            a, b = paired(wins, losses, n)
            p, difference = mcnemar(a, b), paired_difference(a, b)
            if wins + losses:
                assert p == pytest.approx(binomtest(wins, wins + losses).pvalue)
            assert (difference.low > 0 or difference.high < 0) == (p < 0.05)
            assert beats(a, b) == (p < 0.05 and wins > losses)
            assert -1 <= difference.low <= difference.value <= difference.high <= 1


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (12, 0), (7, 2), (3, 3)])
def test_swapping_the_two_mirrors_the_difference(wins, losses):
    a, b = paired(wins, losses, 12)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert backward == pytest.approx((-forward.value, -forward.high, -forward.low, 12))
    assert mcnemar(a, b) == mcnemar(b, a)
    assert not (beats(a, b) and beats(b, a))


def test_no_disagreement_is_no_certainty():
    a, b = paired(0, 0, 40)
    unseen = proportion(np.zeros(40)).high
    assert paired_difference(a, b) == pytest.approx((0, -unseen, unseen, 40))
    # The same by the bootstrap, which is taken when values are not 0/1.
    assert paired_difference(a / 2, b / 2) == pytest.approx((0, -unseen, unseen, 40))


@pytest.mark.parametrize(("wins", "losses", "n"), [(14, 2, 40), (6, 4, 30), (3, 30, 60)])
def test_the_interval_of_a_difference_is_that_of_a_product(wins, losses, n):
    """Zou and Donner (2008), for lean times rate: the corner of the box of both intervals that the
    end is nearest to, its two edges there and their product in quadrature."""
    disagree = wins + losses
    rate, lean = disagree / n, (wins - losses) / disagree
    rates = binomtest(disagree, n).proportion_ci(0.95, method="exact")
    shares = binomtest(wins, disagree).proportion_ci(0.95, method="exact")
    leans = [2 * share - 1 for share in shares]

    def end(lean_end, below):
        # What lowers (raises) the product: a smaller (larger) rate where the factor is positive.
        toward = [rates.low if (factor > 0) == below else rates.high for factor in (lean, lean_end)]
        edges = rate * (lean - lean_end), lean * (rate - toward[0])
        both = (lean - lean_end) * (rate - toward[1])
        moved = np.sqrt(edges[0] ** 2 + edges[1] ** 2 + both**2)
        corner = lean_end * toward[1]
        return max(lean * rate - moved, corner) if below else min(lean * rate + moved, corner)

    found = paired_difference(*paired(wins, losses, n))
    expected = (lean * rate, end(leans[0], True), end(leans[1], False), n)
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_difference_reaches_as_far_as_its_bounds_are_apart():
    unseen = proportion(np.zeros(20)).high
    found = paired_difference(np.full(20, 1.2), np.full(20, 0.9), bounds=(0.5, 1.5))
    assert found == pytest.approx((0.3, 0.3 - 1.3 * unseen, 0.3 + 0.7 * unseen, 20))


@pytest.mark.parametrize(("rate", "lean"), [(0.1, 0.4), (0.6, 1.0), (0.3, 0.0), (0.02, -0.5)])
def test_paired_interval_of_outcomes_covers_the_truth(rate, lean):
    # 400 data sets: a standard error of 0.011, of which 3 are allowed below the nominal 0.95.
    rng, n = np.random.default_rng(3), 300
    shares = [rate * (1 + lean) / 2, rate * (1 - lean) / 2, 1 - rate]
    tables = rng.multinomial(n, shares, size=400)
    hits = [
        covers(paired_difference(*paired(wins, losses, n)), lean * rate)
        for wins, losses, _ in tables
    ]
    assert np.mean(hits) > 0.917


def test_pairing_finds_a_small_gain_that_separate_intervals_cannot():
    rng = np.random.default_rng(4)
    difficulty = rng.random(200)
    a = np.clip(difficulty + 0.02 + 0.02 * rng.standard_normal(200), 0, 1)
    assert beats(a, difficulty) and not beats(difficulty, a)
    assert bootstrap_mean(a).low < bootstrap_mean(difficulty).high
    assert not beats(difficulty, difficulty)


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (5, 0, 1 / 32), (0, 5, 1.0), (9, 1, 11 / 1024)]
)
def test_flips_of_single_draws_are_mcnemar_one_sided(wins, losses, p):
    a, b = paired(wins, losses, 20)
    assert flip_test(a, b) == pytest.approx(p)
    if wins > losses:
        assert mcnemar(a, b) == pytest.approx(2 * p)


def test_flips_are_counted_exactly():
    """Against every one of the 2^8 sign changes, for several sets of 4 draws an image."""
    rng = np.random.default_rng(0)
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    for _ in range(20):
        a, b = rng.integers(0, 5, (2, 8))
        expected = np.mean(signs @ (a - b) >= np.sum(a - b))
        assert flip_test(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("lean", [(0.3, 0.3), (0.1, 1.0)])
def test_flips_reject_equality_as_rarely_as_they_say(lean):
    """Two equally strong attacks, 4 draws of 48 images; a standard error of 0.0022 at 0.01."""
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(2000):
        chances = rng.beta(*lean, 48)
        p_values.append(flip_test(*rng.binomial(4, chances, (2, 48))))
    assert np.mean(np.array(p_values) <= 0.01) < 0.01 + 3 * 0.0022


def test_holm_by_hand():
    assert holm([0.02, 0.001, 0.004]) == pytest.approx([0.02, 0.003, 0.008])
    assert holm([0.03, 0.02, 0.6]) == pytest.approx([0.06, 0.06, 0.6])  # never out of order
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_share_is_of_sums_and_its_interval_covers_the_truth():
    """Of 400 simulated tables of 60 images, 4 draws each, in which b withstands half of what a does
    on average; a 95 % interval of that many covers 92 to 98 % of the time, but for 1 in 100."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        chances = rng.beta(0.8, 0.8, 60)
        a = rng.binomial(4, chances) / 4
        b = rng.binomial(4, chances * rng.beta(1, 1, 60)) / 4
        covered.append(covers(paired_share(a, b, num_resamples=1000), 0.5))
    assert 0.90 <= np.mean(covered) <= 0.98
    share = paired_share([1.0, 0.5, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0])
    assert share.value == 0.5 and share.n == 4 and 0 <= share.low < 0.5 < share.high <= 1
    assert paired_share([0.0, 0.0], [0.0, 0.5]) is None  # of nothing
    assert paired_share([0.5, 1.0], [0.0, 0.0]) is None  # no resample differs
    a = np.array([0.5, 1.0, 0.0, 0.7])
    assert paired_share(a, a) is None and paired_share(a, 0.3 * a) is None  # nor where they agree


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_of_a_share_is_scipys_of_percentiles_of_pairs(confidence):
    rng = np.random.default_rng(5)
    a = rng.beta(1, 1, 25)
    b = a * rng.beta(2, 1, 25)
    options = dict(n_resamples=100_000, batch=10_000, rng=np.random.default_rng(1))
    expected = bootstrap(
        (a, b),
        lambda a, b, axis: b.sum(axis) / a.sum(axis),
        paired=True,
        method="percentile",
        confidence_level=confidence,
        **options,
    )
    found = paired_share(a, b, num_resamples=100_000, confidence=confidence)
    ends, error = expected.confidence_interval, expected.standard_error
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=0.04 * error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion([]), "n at least 1"),
        (lambda: proportion([[True]]), r"shape \(1, 1\)"),
        (lambda: proportion([0.5, 1.0]), "0/1"),
        (lambda: proportion([True], confidence=95), "confidence"),
        (lambda: bootstrap_mean([0.1, np.nan]), "NaN or infinite in 1 value"),
        (lambda: bootstrap_mean([0.1, 1.1]), "bounds"),
        (lambda: bootstrap_mean([0.1, 0.2], num_resamples=0), "num_resamples"),
        (lambda: paired_difference([0.5, 1], [0.5]), "lengths 2 and 1"),
        (lambda: paired_difference([0.5, 1], [0.5, 2]), "bounds"),
        (lambda: mcnemar([0, 1], [0, 1, 1]), "lengths 2 and 3"),
        (lambda: mcnemar([0, 0.5], [0, 1]), "a: must be"),
        (lambda: beats([], []), "n at least 1"),
        (lambda: flip_test([0.5, 1], [0, 1]), "whole numbers"),
        (lambda: paired_share([0.5, 1], [0.5]), "lengths 2 and 1"),
        (lambda: paired_share([0.5, 1], [0.5, -1]), "at least 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Randomised smoothing (Cohen, Rosenfeld and Kolter, ICML 2019) of a function of a noisy image.

The smoothed classifier answers the class that the base function f most often gives to x + sigma n,
n ~ N(0, I). If that class has probability p > 1/2, no perturbation of L2 norm below
sigma * Phi^-1(p) changes the answer (their theorem 1, with the runner-up at most 1 - p). p is not
known: a one-sided lower bound of it from samples holds with confidence 1 - alpha, and the radius
with it. Nothing here is said of other norms, other sigmas, or of one run of f.

Which function f is does not matter, as long as its draws are independent and the noise is added
first, to the unclipped image. A purifier does add it first: with the injected noise at sigma, one
run of a defence is f(x + sigma n), its clip, its steps, its stop and its classifier being f.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from purify.evals.core.stats import clopper_pearson

ABSTAIN = -1
LOOK = 1000


class Certificate(NamedTuple):
    """What the samples of one image say.

    top: the class that is certified, the most frequent of the first num_selection samples.
    counts: int [K], of the classes among the other samples.
    answer: what the smoothed classifier answers: `top` where that is certified, else as `answer`.
    p_low: the lower bound of the chance of `top`, 0 where sampling ended early.
    radius: L2, in pixel units, within which the answer stays `top`; 0 where p_low is at most 1/2,
        which is to abstain.
    """

    top: int
    counts: np.ndarray
    answer: int
    p_low: float
    radius: float


def certify(
    sample: Callable[[str, int, int], np.ndarray],
    *,
    sigma: float,
    num_classes: int,
    num_selection: int,
    num_samples: int,
    alpha: float,
) -> Certificate:
    """CERTIFY and PREDICT of Cohen et al. for one image.

    sample: (stream, first, number) -> int [number], the classes that f gives to the image under
        fresh noise; stream is 'selection' or 'defense', and draws with other numbers or of another
        stream are independent.
    sigma: of the noise, in pixel units.
    num_selection, num_samples: how many samples select the class, and how many certify it.

    Every LOOK samples it may end early, where nothing is left to find out: there is an answer, and
    the bound cannot exceed 1/2 any more or the chance of `top` is at most 1/2 with confidence
    1 - alpha. What is certified is certified by all num_samples, as if nobody had looked, and wrong
    with a chance of at most alpha. Each look answers at alpha over the number of looks: by a union
    bound an answer without a certificate, whichever look gives it, is wrong with as small a chance;
    of either kind, an answer is wrong with a chance of at most 2 alpha.

    Raises ValueError as `check`.
    """
    check(sigma=sigma, num_selection=num_selection, num_samples=num_samples, alpha=alpha)
    selected = np.bincount(sample("selection", 0, num_selection), minlength=num_classes)
    top = int(selected.argmax())
    counts, drawn = np.zeros(num_classes, int), 0
    while drawn < num_samples:
        size = min(LOOK, num_samples - drawn)
        counts += np.bincount(sample("defense", drawn, size), minlength=num_classes)
        drawn += size
        if drawn < num_samples and _hopeless(int(counts[top]), drawn, num_samples, alpha):
            found = conclude(top, counts, sigma=sigma, num_samples=num_samples, alpha=alpha)
            if found.answer != ABSTAIN:
                return found
    return conclude(top, counts, sigma=sigma, num_samples=num_samples, alpha=alpha)


def conclude(
    top: int, counts: np.ndarray, *, sigma: float, num_samples: int, alpha: float
) -> Certificate:
    """What follows from the selected class and the counts [K] of the classes among the samples that
    were drawn, all num_samples of them or, where it ended early, fewer."""
    p_low = 0.0
    if counts.sum() == num_samples:
        p_low = clopper_pearson(int(counts[top]), num_samples, alpha)[0]
    if p_low > 0.5:
        answered = top
    else:
        answered = answer(counts, alpha / math.ceil(num_samples / LOOK))
    return Certificate(top, counts, answered, p_low, radius(p_low, sigma))


def check(*, sigma: float, num_selection: int, num_samples: int, alpha: float) -> None:
    """ValueError unless `certify` can do with these: a sample to select at least, enough others to
    certify anything at all, an alpha in (0, 1), a positive sigma."""
    if num_selection < 1 or num_samples < 1:
        raise ValueError(
            f"num_selection={num_selection} and num_samples={num_samples} must be at least 1"
        )
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie strictly between 0 and 1")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma} must be positive and finite")
    # Where all n agree, the bound is alpha^(1/n).
    if num_samples < (least := math.floor(-math.log2(alpha)) + 1):
        raise ValueError(
            f"num_samples={num_samples} can certify nothing at alpha={alpha:g}, even where all "
            f"agree; it takes at least {least}"
        )


def _hopeless(top_count: int, drawn: int, num_samples: int, alpha: float) -> bool:
    best = top_count + num_samples - drawn
    if clopper_pearson(best, num_samples, alpha)[0] <= 0.5:
        return True
    return clopper_pearson(top_count, drawn, alpha)[1] <= 0.5


def answer(counts: ArrayLike, alpha: float) -> int:
    """PREDICT of Cohen et al.: the most frequent class, or ABSTAIN where a two-sided binomial test
    does not tell it from the runner-up. It is not the smoothed classifier's with a chance of at
    most alpha.

    counts: int [K], of the classes in fresh samples.
    """
    runner_up, most = np.sort(counts)[-2:]
    p = min(1.0, 2 * binom.cdf(runner_up, most + runner_up, 0.5))
    return int(np.argmax(counts)) if p <= alpha else ABSTAIN


def radius(p_low: float, sigma: float) -> float:
    """sigma * Phi^-1(p_low), in pixel units, and 0 where p_low is at most 1/2."""
    return float(sigma * norm.ppf(p_low)) if p_low > 0.5 else 0.0


def largest_radius(num_samples: int, alpha: float, sigma: float) -> float:
    """What is certified where all samples agree."""
    return radius(clopper_pearson(num_samples, num_samples, alpha)[0], sigma)


def check_certified(
    record: Mapping,
    *,
    num_classes: int,
    sigma: float,
    num_selection: int,
    num_samples: int,
    alpha: float,
) -> None:
    """ValueError unless a certificate is what its counts say; options as of `certify`."""
    counts = np.array(record["counts"])
    drawn = int(counts.sum())
    early = 0 < drawn < num_samples and drawn % LOOK == 0
    known = len(counts) == num_classes and 0 <= record["top"] < num_classes
    if not known or not (early or drawn == num_samples):
        raise ValueError(f"{drawn} samples of {len(counts)} classes, top {record['top']}")
    if record["samples"] != num_selection + drawn:
        raise ValueError(f"{record['samples']} samples, but counts of {drawn} + {num_selection}")
    expected = conclude(record["top"], counts, sigma=sigma, num_samples=num_samples, alpha=alpha)
    if record["answer"] != expected.answer or not np.allclose(
        [record["p_low"], record["radius"]], [expected.p_low, expected.radius], rtol=1e-6, atol=1e-9
    ):
        raise ValueError("its answer, p_low or radius is not what its counts say")

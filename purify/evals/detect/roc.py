"""Receiver operating characteristics of a detector: what is attacked shall be above what is not."""

import math

import numpy as np
from numpy.typing import ArrayLike

from purify.evals.core.stats import Estimate, clopper_pearson
from purify.random import generator


def threshold(calibration: ArrayLike, rate: float) -> float:
    """The smallest of the values [n] of natural images that another one exceeds with a probability
    of at most `rate`: the ceil((n + 1) (1 - rate))-th of them, by rank, whatever they are
    distributed like (Vovk, Gammerman and Shafer 2005).

    ValueError where n values are too few for that, or the rate is not in (0, 1).
    """
    values = np.sort(_draws("calibration", calibration).squeeze(1))
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} must be in (0, 1)")
    rank = math.ceil(round((len(values) + 1) * (1 - rate), 9))
    if rank > len(values):
        raise ValueError(
            f"{len(values)} calibration images are too few for a false-positive rate of {rate:g}; "
            f"at least {math.ceil(1 / rate) - 1} are needed"
        )
    return float(values[rank - 1])


def curve(negatives: ArrayLike, positives: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(false-positive rates, true-positive rates), both [L + 1] from 0 to 1, of "more than t" as t
    falls through the L levels that the values have; arguments as of `auroc`."""
    levels, below, above = _levels(negatives, positives)
    rates = []
    for of in (below, above):
        counts = np.bincount(of.ravel(), minlength=levels)[::-1]
        rates.append(np.append(0, np.cumsum(counts)) / of.size)
    return rates[0], rates[1]


def auroc(
    negatives: ArrayLike,
    positives: ArrayLike,
    origins: ArrayLike,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """The chance that a positive is above a negative, ties counted half: the area under the curve;
    n is the number of positive images. Images may have several draws of the value each.

    Its interval is that of percentiles over num_resamples bootstrap samples of images, each with
    what was made of it. A bootstrap cannot draw what it has not seen: where all positives are above
    (below) all negatives, the interval is the exact one (Clopper and Pearson) of as many
    independent pairs of a positive and a negative as there can be; and where a few are not, it
    reaches at least as far.

    Args:
        negatives: [n] or [n, D] of natural images.
        positives: [m] or [m, D] of images made of some of them.
        origins: int [m], of which: positions in negatives.

    Raises:
        ValueError: an argument is empty, not finite or no such array, or they do not fit.
    """
    levels, below, above = _levels(negatives, positives)
    origins, (n, m) = np.asarray(origins), (len(below), len(above))
    if origins.shape != (m,) or not np.isin(origins, np.arange(n)).all():
        raise ValueError("origins: must be a position in negatives for each positive")

    def area(weights: np.ndarray) -> float:
        ours, theirs = (
            np.bincount(of.ravel(), weights=np.repeat(w, of.shape[1]), minlength=levels)
            for of, w in ((above, weights[origins]), (below, weights))
        )
        pairs = ours.sum() * theirs.sum()
        return float(ours @ (np.cumsum(theirs) - theirs / 2) / pairs) if pairs else math.nan

    tail = (1 - confidence) / 2
    value = area(np.ones(n))
    pairs = min(n, m)
    if value in (0.0, 1.0):
        return Estimate(value, *clopper_pearson(round(value * pairs), pairs, tail), m)
    rng = generator(seed)
    samples = rng.multinomial(n, np.full(n, 1 / n), size=num_resamples)
    low, high = np.nanquantile([area(weights) for weights in samples], [tail, 1 - tail])
    least, most = clopper_pearson(pairs, pairs, tail)[0], clopper_pearson(0, pairs, tail)[1]
    return Estimate(value, min(float(low), least), max(float(high), most), m)


def _levels(negatives: ArrayLike, positives: ArrayLike) -> tuple[int, np.ndarray, np.ndarray]:
    """(number of distinct values, rank among them of each negative [n, D], of each positive)."""
    below, above = _draws("negatives", negatives), _draws("positives", positives)
    values = np.concatenate([below.ravel(), above.ravel()])
    levels, ranks = np.unique(values, return_inverse=True)
    return (
        len(levels),
        ranks[: below.size].reshape(below.shape),
        ranks[below.size :].reshape(above.shape),
    )


def _draws(name: str, values: ArrayLike) -> np.ndarray:
    """[n, D] of an argument that is that, or [n] with one draw each."""
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name}: must be a vector, or a matrix, of at least one finite number")
    return values.reshape(len(values), -1)

"""What detectors see in images: rates, areas and what attacks leave, as entries of results.json."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from purify.evals.attacked.results import attack_fields, cost_fields, estimate
from purify.evals.attacked.rows import Row
from purify.evals.detect.measure import RATE, UNKNOWING
from purify.evals.detect.roc import auroc, threshold

# A second rate, told only where ENOUGH natural images set its threshold and are judged by it.
SMALL_RATE, ENOUGH = 0.01, 1000
STRONGEST = "strongest"
ATTACKED = (UNKNOWING, "knowing")

Values = Mapping[str, Mapping[str, np.ndarray]]  # images -> statistic -> [n, D]
MEANING = (
    "Positives are the attacked images that fool the classifier or defence behind the detector. A "
    "rejected clean image counts as an error, a rejected attacked one as stopped. Natural images "
    "with noise or corruptions are nobody's attack: what a detector flags of them are false alarms."
)


def numbers(
    values: Values, done: Mapping[str, tuple[Row, Sequence[dict]]], *, num_draws: int, seed: int
) -> dict:
    """What results.json says.

    values: of the 'calibration' images, of clean ones, of natural ones and of attacked ones. done:
    rows of the defence behind the detector, by attack, 'clean' without, and their records.
    """
    right = {name: np.array([r["correct"] for r in records]) for name, (_, records) in done.items()}
    thresholds = {
        name: calibrated_thresholds(drawn[:, 0]) for name, drawn in values["calibration"].items()
    }
    attacks = {
        name: attack_fields(row) | cost_fields(list(records))
        for name, (row, records) in done.items()
        if row.attack
    }
    return {
        "rows": result_rows(values, right, thresholds, attacks, num_draws=num_draws, seed=seed),
        "statistics": thresholds,
        "meaning": MEANING,
    }


def result_rows(
    values: Values,
    right: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping],
    attacks: Mapping[str, Mapping],
    *,
    num_draws: int,
    seed: int,
) -> list[dict]:
    """An entry for each statistic and set of images, and one for the strongest attack on each.

    values, right: [n, D] of D draws, 2 num_draws where anything is drawn, else 1. The last
    num_draws of them are scored; on the first ones the strongest attack on each image is chosen.
    right: of clean and attacked images, whether the defence behind the detector is.
    thresholds: of each statistic, see calibrated_thresholds. attacks: what else is told of each.

    images: their name; kind: 'clean', 'natural', 'unknowing' or 'knowing'. num_positives: how many
    images it is about: all of natural ones, of attacked ones those that fool the defence in most
    draws. auroc: against the clean images. flagged: the share of these that is above the threshold
    for RATE, the realised false-positive rate where nobody attacks. left: of clean images, the
    share that is right and not flagged; of attacked ones, that does not fool the defence or is
    flagged; left_worst: in every draw. accuracy: of the defence without a detector.
    """
    scored = functools.partial(scored_draws, num_draws=num_draws)
    share = functools.partial(_share, seed=seed)
    entries: list[dict] = []
    for statistic, calibration in values["calibration"].items():
        limit, clean = thresholds[statistic]["threshold"], scored(values["clean"][statistic])
        enough = min(len(calibration), len(clean)) >= ENOUGH
        limits = (limit, threshold(calibration[:, 0], SMALL_RATE) if enough else None)
        stopped = {}
        for name in (name for name in values if name != "calibration"):
            if not (kind := kind_of(name, statistic, right)):
                continue
            found = values[name][statistic]
            positive, left, worst = np.full(len(found), True), None, None
            if kind == "clean":
                left = scored(right[name] & (found <= limit))
            elif kind in ATTACKED:
                positive = fools(scored(right[name]))
                stopped[name] = right[name] | (found > limit)
                left = scored(stopped[name])
                worst = _worst(left)
            against = None if kind == "clean" else clean
            entries.append(
                {"statistic": statistic, "images": name, "kind": kind, "num_images": len(found)}
                | _detected(scored(found), positive, against, limits, seed)
                | {"accuracy": share(scored(right[name])) if name in right else None}
                | {"left": share(left), "left_worst": share(worst)}
                | dict(attacks.get(name, {}))
            )
        if len(stopped) > 1:
            left = scored(_strongest(np.stack(list(stopped.values())), num_draws))
            entries.append(
                dict.fromkeys(entries[-1])
                | {"statistic": statistic, "images": STRONGEST, "kind": STRONGEST}
                | {"num_images": len(clean), "left": share(left), "left_worst": share(_worst(left))}
            )
    return entries


def _detected(
    found: np.ndarray,
    positive: np.ndarray,
    clean: np.ndarray | None,
    limits: tuple[float, float | None],
    seed: int,
) -> dict:
    """How the positive [n] of the images with these values [n, N] stand out from clean ones (None:
    they are the clean ones) and above the thresholds for RATE and SMALL_RATE."""
    positives = found[positive]
    ranked = clean is not None and len(positives)
    area = (
        auroc(clean, positives, np.flatnonzero(positive), seed=seed)._asdict() if ranked else None
    )
    flagged, small = (
        None if limit is None else _share(positives > limit, seed=seed) for limit in limits
    )
    return {
        "num_positives": len(positives),
        "auroc": area,
        "flagged": flagged,
        "flagged_small": small,
    }


def _strongest(stopped: np.ndarray, num_draws: int) -> np.ndarray:
    """Of attacks [m, n, D], stopped or not in each draw, for each image the one that was stopped in
    the fewest draws of those that are not scored: [n, D]."""
    chosen = stopped[..., :num_draws].mean(-1).argmin(0)
    return stopped[chosen, np.arange(stopped.shape[1])]


def _share(outcomes: np.ndarray | None, seed: int) -> dict | None:
    """The mean of outcomes [n, N], with its interval; None of none."""
    if outcomes is None or not len(outcomes):
        return None
    one_outcome = outcomes.shape[1] == 1
    return estimate(outcomes.mean(1), one_outcome=one_outcome, seed=seed)._asdict()


def _worst(outcomes: np.ndarray) -> np.ndarray:
    """[n, N] -> [n, 1]: whether all of an image's draws are."""
    return outcomes.all(1, keepdims=True)


def scored_draws(draws: np.ndarray, num_draws: int) -> np.ndarray:
    """Of draws [..., 2 num_draws] those that chose nothing; of a single draw [..., 1] that one."""
    return draws[..., -num_draws:]


def kind_of(name: str, statistic: str, right: Mapping) -> str:
    """What images of that name are to a statistic; '' for those that attack another one."""
    if name in ("clean", UNKNOWING):
        return name
    if name not in right:
        return "natural"
    return "knowing" if name.rpartition("_")[0] == statistic else ""


def fools(right: np.ndarray) -> np.ndarray:
    """Which images [n] fool the defence, right or not in D draws [n, D]: in most of them."""
    return right.mean(1) < 0.5


def calibrated_thresholds(natural: np.ndarray) -> dict:
    return {
        "num_calibration": len(natural),
        "standard_deviation": float(natural.std()),
        "threshold": threshold(natural, RATE),
        "false_positive_rate": RATE,
    }

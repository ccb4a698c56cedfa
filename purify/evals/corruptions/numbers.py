"""From records to the numbers of results.json.

The image is the unit everywhere: what is averaged, over draws, severities or corruptions, is
averaged within an image first, and intervals are over images.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from purify.data.corruptions import EXTRA
from purify.evals.attacked.results import cost_fields, defense_fields, estimate
from purify.evals.core.stats import paired_difference

CLEAN = "clean"
UNDEFENDED = "identity"
# The entries over several corruptions.
MEAN, EXTRA_MEAN = "mean", "extra_mean"


def result_rows(done: Mapping, cases: Sequence, *, seed: int) -> list[dict]:
    """The entries of results.json for each defence and case, and for clean images (severity 0).

    done: (defence, name of the case or CLEAN) -> (row, its records).
    """
    which = {case.name: (case.corruption, case.severity) for case in cases}
    entries = []
    for (_, name), (row, records) in done.items():
        corruption, severity = which.get(name, (CLEAN, 0))
        values = _per_image(records)
        accuracy = estimate(values, one_outcome=row.num_draws == 1, seed=seed)
        entries.append(
            {
                "defense": defense_fields(row),
                "corruption": corruption,
                "severity": severity,
                "num_images": accuracy.n,
                "num_draws": row.num_draws,
                "protocol": "mean",
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                **cost_fields(records),
                "seed": seed,
            }
        )
    return entries


def corruption_means(done: Mapping, cases: Sequence, *, seed: int) -> list[dict]:
    """For each defence: clean, the mean over severities of each corruption, and over those of the
    15 corruptions (MEAN) and of the 4 extra ones (EXTRA_MEAN) that there are.

    Each with its accuracy and, where the undefended classifier is among the defences, the paired
    difference from it; better, worse: its 95 % interval excludes 0.
    """
    cells = {CLEAN: [CLEAN]}
    for case in cases:
        cells.setdefault(case.corruption, []).append(case.name)
    for name, extra in ((MEAN, False), (EXTRA_MEAN, True)):
        if members := [case.name for case in cases if (case.corruption in EXTRA) == extra]:
            cells[name] = members
    defenses = dict.fromkeys(defense for defense, _ in done)
    entries = []
    for defense in defenses:
        for name, members in cells.items():
            values = _over(done, defense, members)
            row = done[defense, CLEAN][0]
            once = len(members) == row.num_draws == 1
            accuracy = estimate(values, one_outcome=once, seed=seed)
            entry = {
                "defense": defense_fields(row),
                "corruption": name,
                "of": members,
                "num_images": accuracy.n,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
            }
            if UNDEFENDED in defenses and defense != UNDEFENDED:
                difference = paired_difference(values, _over(done, UNDEFENDED, members), seed=seed)
                entry["difference"] = difference._asdict()
                entry |= {"better": difference.low > 0, "worse": difference.high < 0}
            entries.append(entry)
    return entries


def _per_image(records: list[dict]) -> np.ndarray:
    """The share of draws that are right, of each image: [n]."""
    return np.array([np.mean(record["correct"]) for record in records])


def _over(done: Mapping, defense: str, members: Iterable[str]) -> np.ndarray:
    """The same, averaged over several cases within each image: [n]."""
    return np.mean([_per_image(done[defense, name][1]) for name in members], axis=0)

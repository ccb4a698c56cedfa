"""From records of certificates to the numbers of results.json."""

from collections.abc import Mapping, Sequence

import numpy as np

from purify.evals.attacked.results import purifier_fields
from purify.evals.certify import smoothing
from purify.evals.certify.plan import CertifyOptions, SmoothedRow
from purify.evals.core.stats import bootstrap_mean, paired_difference, proportion

MEANING = (
    "Each radius holds for the smoothed classifier, the majority over noise of the given sigma, "
    "under L2, with confidence 1 - alpha for each image; not for one run of the defence, for "
    "another sigma, or in another norm."
)

# Rows, and the records of their images in their order.
Done = Sequence[tuple[SmoothedRow, Sequence[Mapping]]]


def numbers(done: Done, options: CertifyOptions, *, seed: int) -> dict:
    """What results.json says of rows that are done."""
    return {
        "rows": [_result(*each, options, seed=seed) for each in done],
        "differences": differences(done, options, seed=seed),
        "meaning": MEANING,
    }


def _radii(records: Sequence[Mapping]) -> np.ndarray:
    """The certified radius of each image, 0 where it is wrong or there is none: [n]."""
    return np.array([r["radius"] if r["top"] == r["label"] else 0.0 for r in records])


def _result(
    row: SmoothedRow, records: Sequence[Mapping], options: CertifyOptions, *, seed: int
) -> dict:
    """The entry of results.json for one row."""
    radii = _radii(records)
    shares = {
        "abstained": proportion([r["radius"] == 0 for r in records]),
        "accuracy": proportion([r["answer"] == r["label"] for r in records]),
        "no_answer": proportion([r["answer"] == smoothing.ABSTAIN for r in records]),
    }
    largest = smoothing.largest_radius(row.num_samples, options.alpha, row.sigma)
    average = bootstrap_mean(radii, seed=seed, bounds=(0.0, largest))
    return {
        "defense": {"name": row.defense_name, **purifier_fields(row.defense.purifier)},
        "num_images": len(records),
        "num_samples": row.num_samples,
        "num_selection": row.num_selection,
        "alpha": options.alpha,
        "average_certified_radius": average.value,
        "low": average.low,
        "high": average.high,
        "largest_radius": largest,
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: [share.low, share.high] for name, share in shares.items()},
        "certified_radii": radii.tolist(),
        "certified": [
            {"radius": float(r), **proportion(radii > r)._asdict()} for r in options.radii
        ],
        "nfe_per_image": float(np.mean([r["nfe"] for r in records])),
        "seconds_per_image": float(np.median([r["seconds"] for r in records])),
        "seed": seed,
    }


def differences(done: Done, options: CertifyOptions, *, seed: int) -> list[dict]:
    """For each row the paired differences from plain smoothing at its sigma with as many samples,
    on the images that both have; none of a row without one to compare with.

    done: (row, its records) of all rows.
    """
    plain = {(r.sigma, r.num_samples): (r, records) for r, records in reversed(done) if r.is_plain}
    entries = []
    for row, records in done:
        baseline, its_records = plain.get((row.sigma, row.num_samples), (row, records))
        if baseline is row:
            continue
        both = min(len(records), len(its_records))  # each has the first ones
        radii, its_radii = (_radii(side[:both]) for side in (records, its_records))
        largest = smoothing.largest_radius(row.num_samples, options.alpha, row.sigma)
        # As shares of it: radii that are all 0 would pass for outcomes, whose largest is 1.
        average = paired_difference(radii / largest, its_radii / largest, seed=seed)
        entries.append(
            {
                "defense": row.defense_name,
                "against": baseline.defense_name,
                "sigma": row.sigma,
                "num_images": both,
                "num_samples": row.num_samples,
                "average_certified_radius": largest * average.value,
                "low": largest * average.low,
                "high": largest * average.high,
                "certified": [
                    {"radius": float(r), **paired_difference(radii > r, its_radii > r)._asdict()}
                    for r in options.radii
                ],
                "seed": seed,
            }
        )
    return entries

"""From records of samples and paths to results.json."""

from collections.abc import Sequence

import numpy as np

from purify.evals.attacked.results import purifier_fields
from purify.evals.core.inputs import Inputs
from purify.evals.core.store import Store
from purify.evals.sample.measure import SAMPLES, ShownPath
from purify.langevin import AnnealedLangevin

MEANING = (
    "The images of samples.npz are drawn by annealed Langevin dynamics (purify/langevin.py) and "
    "clipped to [0, 1]; where they start from noised images, labels and index are those images'. "
    "A path has the image, x_0 (noised), ..., x_T of the first run that an evaluation scores: "
    "score_norms (rms of h) and predictions are of each of them, step_sizes[t] leads from x_t to "
    "x_{t+1}, and steps is how many were taken."
)


def numbers(
    store: Store,
    sampler: AnnealedLangevin | None,
    settings: dict,
    centres: Inputs,
    paths: Sequence[ShownPath],
    followed: Inputs,
) -> dict:
    """What results.json says of samples around centres and of paths of followed images; settings:
    of the sampler."""
    return {
        "samples": sampler and _samples_entry(store, sampler, centres, settings),
        "paths": [entry for path in paths for entry in _path_entries(store, path, followed)],
        "meaning": MEANING,
    }


def _samples_entry(
    store: Store, sampler: AnnealedLangevin, centres: Inputs, settings: dict
) -> dict:
    records = store.records(SAMPLES)
    seconds = [records[index]["seconds"] for index in centres.indices.tolist()]
    return {
        "file": "samples.npz",
        **settings,
        "eps": sampler.step_size * sampler.sigma_min**2,  # in the terms of Song and Ermon
        "nfe_per_image": sampler.nfe,
        "seconds_per_image": float(np.median(seconds)),
    }


def _path_entries(store: Store, path: ShownPath, followed: Inputs) -> list[dict]:
    defense = {"name": path.name, **purifier_fields(path.purifier)}
    records = store.records(path.row)
    return [
        {"defense": defense, "stepwise": path.stepwise}
        | {k: v for k, v in records[int(index)].items() if k != "row"}
        for index in followed.indices
    ]

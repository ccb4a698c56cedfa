"""What --mode=sample leaves: samples.npz, results.json and figures."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from purify.evals import plots
from purify.evals.attacked.results import purifier_fields
from purify.evals.core.figures import drawn
from purify.evals.core.inputs import Inputs
from purify.evals.core.result_files import write_results
from purify.evals.core.show import Shown
from purify.evals.core.store import Store
from purify.evals.core.tables import Table, all_columns
from purify.evals.core.terminal import print_reservations, tell_written
from purify.evals.sample.measure import SAMPLES, ShownPath, path_shape
from purify.langevin import AnnealedLangevin
from purify.random import image_keys
from purify.runtime.messages import counted
from purify.saving.files import writing

FIGURE_IMAGES = 10  # of those that samples started from
FIGURE_COLUMNS = 12  # of a path; of longer ones not every step is shown


def write(
    config,
    store: Store,
    sampler: AnnealedLangevin | None,
    centres: Inputs,
    paths: Sequence[ShownPath],
    followed: Inputs,
    settings: dict,
) -> None:
    """Write all of it, and say where."""
    figures, written = store.folder / "figures", [store.folder / "images.jsonl"]
    if sampler:
        written.append(_write_samples(config, store, centres))
    shown = paths if len(followed.labels) else []
    told = {
        "samples": sampler and _samples_entry(store, sampler, settings["sampler"]),
        "paths": [entry for path in shown for entry in _path_entries(store, path, followed)],
        "meaning": MEANING,
        **settings,
        **store.computed_by(),
        "trained": followed.trained(),
        "config": config.to_dict(),
    }
    written.insert(0, write_results(store.folder, told))
    print_reservations(told)
    if sampler:
        samples = _samples(store, centres)
        written += drawn(figures / "samples.png", lambda path: plots.image_grid(path, samples))
        if config.sample.start == "noised":
            draw = functools.partial(
                _starts_figure, sampler=sampler, centres=centres, samples=samples, seed=config.seed
            )
            written += drawn(figures / "starts.png", draw)
    for path in shown:
        draw = functools.partial(_path_figure, store=store, path=path, followed=followed)
        written += drawn(figures / f"{path.row}.png", draw)
    tell_written(written)


def _samples(store: Store, centres: Inputs) -> np.ndarray:
    return np.array(store.array(SAMPLES, centres.images.shape, SAMPLES, centres.indices))


def _write_samples(config, store: Store, centres: Inputs) -> Path:
    samples = _samples(store, centres)
    given = {"labels": centres.labels} if config.sample.start == "noised" else {}
    path = store.folder / "samples.npz"
    with writing(path) as file:
        np.savez(file, images=samples, index=centres.indices, **given)
    return path


def _starts_figure(
    file: Path, sampler: AnnealedLangevin, centres: Inputs, samples: np.ndarray, *, seed: int
) -> None:
    """The first samples below what they started from."""
    n = min(FIGURE_IMAGES, len(samples))
    images = centres.images[:n]
    keys = image_keys(seed, centres.indices[:n], stream="sample")
    noised = np.clip(jax.vmap(sampler.start)(keys, images), 0.0, 1.0)
    plots.image_rows(file, {"image": images, "noised": noised, "sample": samples[:n]})


def _samples_entry(store: Store, sampler: AnnealedLangevin, settings: dict) -> dict:
    seconds = [record["seconds"] for record in store.records(SAMPLES).values()]
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


def _path_figure(file: Path, store: Store, path: ShownPath, followed: Inputs) -> None:
    """A strip for each image: itself, noised, and after each step, or the result alone."""
    shape = path_shape(path, followed)
    images = store.array(path.row, shape, path.row, followed.indices)
    last = path.length - 1
    columns = np.unique(np.rint(np.linspace(1, last, FIGURE_COLUMNS - 1)).astype(int))
    columns = np.append(0, columns)
    heads = ["image", "noised" if path.stepwise else "purified"]
    heads += [f"step {step}" for step in range(1, last)]
    rows, captions, notes, names = {}, {}, {}, followed.class_names
    for place, (index, label) in enumerate(zip(followed.indices, followed.labels, strict=True)):
        name, record = f"image {index}\nlabel {names[label]}", store.records(path.row)[int(index)]
        rows[name] = images[place, columns]
        if record["predictions"]:
            classes = np.array(record["predictions"])[columns]
            captions[name] = [(names[c], bool(c == label)) for c in classes]
        norms = [f"{record['score_norms'][at]:.2f}" for at in columns]
        notes[name] = {"score norm": norms}
        if path.stepwise:
            taken = [f"{size:.3g}" for size in record["step_sizes"][: record["steps"]]]
            sizes = ["", "", *taken, *["stopped"] * (last - 1 - len(taken))]
            notes[name]["step size"] = [sizes[at] for at in columns]
    plots.image_rows(file, rows, captions, notes=notes, heads=[heads[at] for at in columns])


MEANING = (
    "The images of samples.npz are drawn by annealed Langevin dynamics (purify/langevin.py) and "
    "clipped to [0, 1]; where they start from noised images, labels and index are those images'. "
    "A path has the image, x_0 (noised), ..., x_T of the first run that an evaluation scores: "
    "score_norms (rms of h) and predictions are of each of them, step_sizes[t] leads from x_t to "
    "x_{t+1}, and steps is how many were taken."
)


def says(results: Mapping) -> str:
    """How many samples and paths there are."""
    samples = results.get("samples")
    said = [counted(samples["num_images"], "sample")] if samples else []
    images = len({entry["index"] for entry in results["paths"]})
    return ", ".join([*said, *([f"the paths of {counted(images, 'image')}"] if images else [])])


def tables(results: Mapping) -> list[Table]:
    """What was recorded of the paths, where there are any."""
    return [all_columns(results["paths"])] if results["paths"] else []


FIGURES = {
    "samples": (
        "Samples of the score model",
        "A grid of images drawn from the score model",
    ),
    "starts": (
        "What samples started from",
        "Rows of images, of those images noised, and of the samples that were drawn from there",
    ),
}
SHOWN = Shown("Samples and paths", says, tables, figures=FIGURES)

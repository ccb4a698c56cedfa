"""What --mode=sample leaves: samples.npz, results.json and figures."""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from purify.evals import plots
from purify.evals.core.figures import drawn
from purify.evals.core.inputs import Inputs
from purify.evals.core.show import Shown
from purify.evals.core.store import Store
from purify.evals.core.tables import Table, all_columns
from purify.evals.sample.measure import SAMPLES, ShownPath, path_shape
from purify.langevin import AnnealedLangevin
from purify.random import image_keys
from purify.runtime.messages import counted
from purify.saving.files import writing

FIGURE_IMAGES = 10  # of those that samples started from
FIGURE_COLUMNS = 12  # of a path; of longer ones not every step is shown


def samples_of(store: Store, centres: Inputs) -> np.ndarray:
    """Float32 [n, H, W, C], around the centres."""
    return np.array(store.array(SAMPLES, centres.images.shape, SAMPLES, centres.indices))


def write_samples(
    folder: Path,
    sampler: AnnealedLangevin,
    samples: np.ndarray,
    centres: Inputs,
    seed: int,
    *,
    noised: bool,
) -> list[Path]:
    """Write samples.npz and draw them; noised: below what they started from, too."""
    figures, path = folder / "figures", folder / "samples.npz"
    given = {"labels": centres.labels} if noised else {}
    with writing(path) as file:
        np.savez(file, images=samples, index=centres.indices, **given)
    drawing = drawn(figures / "samples.png", lambda path: plots.image_grid(path, samples))
    if noised:
        draw = functools.partial(
            _starts_figure, sampler=sampler, centres=centres, samples=samples, seed=seed
        )
        drawing += drawn(figures / "starts.png", draw)
    return [path, *drawing]


def draw_path(store: Store, path: ShownPath, followed: Inputs, number: int) -> list[Path]:
    """Draw the path of each of the first `number` followed images."""
    shape = path_shape(path, followed)
    images = store.array(path.row, shape, path.row, followed.indices)[:number]
    shown, records = followed.first(number), store.records(path.row)
    draw = functools.partial(
        _path_figure, images=images, records=records, path=path, followed=shown
    )
    return drawn(store.folder / "figures" / f"{path.row}.png", draw)


def _starts_figure(
    file: Path, sampler: AnnealedLangevin, centres: Inputs, samples: np.ndarray, *, seed: int
) -> None:
    """The first samples below what they started from."""
    n = min(FIGURE_IMAGES, len(samples))
    images = centres.images[:n]
    keys = image_keys(seed, centres.indices[:n], stream="sample")
    noised = np.clip(jax.vmap(sampler.start)(keys, images), 0.0, 1.0)
    plots.image_rows(file, {"image": images, "noised": noised, "sample": samples[:n]})


def _path_figure(
    file: Path, images: np.ndarray, records: Mapping, path: ShownPath, followed: Inputs
) -> None:
    """A strip for each image: itself, noised, and after each step, or the result alone."""
    last = path.length - 1
    columns = np.unique(np.rint(np.linspace(1, last, FIGURE_COLUMNS - 1)).astype(int))
    columns = np.append(0, columns)
    heads = ["image", "noised" if path.stepwise else "purified"]
    heads += [f"step {step}" for step in range(1, last)]
    rows, captions, notes, names = {}, {}, {}, followed.class_names
    for place, (index, label) in enumerate(zip(followed.indices, followed.labels, strict=True)):
        name, record = f"image {index}\nlabel {names[label]}", records[int(index)]
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

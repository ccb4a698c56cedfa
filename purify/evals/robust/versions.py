"""What a defence does to attacked images: each as it was, attacked, noised and purified."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from purify.data.image_io import MAX_INTEGER, take_images, take_integers, to_uint8
from purify.defense import first_run
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.rows import Row
from purify.evals.core.engine import Engine
from purify.purifiers.noise import add_noise
from purify.random import image_keys
from purify.runtime.compilation import jit
from purify.runtime.messages import shown
from purify.runtime.progress import progress
from purify.saving.arrays import Archive
from purify.saving.files import named, open_file, subfolder, writing
from purify.types import Stepwise

VERSIONS = ("clean", "attacked", "noised", "purified")


class Versions(NamedTuple):
    """images: version -> uint8 [n, H, W, C]; answers: version -> the class that the classifier
    alone sees in it, int [n]; labels, index (in the data set): int [n]."""

    images: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    labels: np.ndarray
    index: np.ndarray


def versions_path(engine: Engine, row: Row) -> Path:
    """Where save_versions writes."""
    return engine.store.folder / "purified" / f"{row.name}.npz"


def save_versions(evaluation: Evaluation, row: Row) -> Path:
    """Write purified/<row>.npz in the evaluation's folder, of all images of the row; its path.

    Noise and purification are those of the first run of the first draw that was scored. A file
    that has these images already stays as it is.
    """
    engine = evaluation.engine
    path = versions_path(engine, row)
    index = engine.indices[: row.num_images]
    attacked, keys = evaluation.attacked_images(row), image_keys(engine.seed, index)
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is made anew
        there, shown = read_versions(path), to_uint8(attacked[: row.num_images])
        if np.array_equal(there.index, index) and np.array_equal(there.images["attacked"], shown):
            return path
    parts, batch_size = [], engine.size(row.score_job)
    starts = range(0, row.num_images, batch_size)
    for start in progress(starts, desc=f"{row.name}: images", leave=False):
        # The batches of the scoring: behind some purifiers neighbours count.
        own = np.arange(start, min(start + batch_size, row.num_images))
        at = np.resize(own, batch_size)
        images = engine.images[at], np.array(attacked[at])
        noised, purified, answers = jax.device_get(_versions(row.defense, keys[at], *images))
        batch = {**dict(zip(VERSIONS, (*images, noised, purified), strict=True)), **answers}
        parts.append({name: array[: len(own)] for name, array in batch.items()})
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays |= {name: to_uint8(arrays[name]) for name in VERSIONS}
    subfolder(path.parent.parent, path.parent.name)
    labels = engine.labels[: row.num_images]
    with writing(path) as file:
        np.savez_compressed(file, **arrays, labels=labels, index=index)
    return path


def read_versions(path: Path) -> Versions:
    """What save_versions wrote; ValueError where the file is damaged, FileError where it is a link
    or no regular file."""
    name = f"'{shown(path)}'"
    with named(path), open_file(path) as file:
        arrays = Archive(file, name).read_all()
    shape = take_images(arrays, "clean", name).shape
    integers = {
        field: take_integers(arrays, field, name, shape[0], MAX_INTEGER)
        for field in (*map(_answers, VERSIONS), "labels", "index")
    }
    images = {version: take_images(arrays, version, name, shape[1:]) for version in VERSIONS}
    if any(len(array) != shape[0] for array in images.values()):
        raise ValueError(f"{name} is damaged: its versions are not of as many images each")
    return Versions(
        images,
        {version: integers[_answers(version)] for version in VERSIONS},
        integers["labels"],
        integers["index"],
    )


def _answers(version: str) -> str:
    return f"{version}_answers"


@jit
def _versions(defense, keys, clean, attacked):
    """(noised, purified) images of the first run of the first draw, and the classifier's answers to
    the clean, the attacked, the noised and the purified ones, by name of the array."""
    purifier = defense.purifier

    def one(key, image):
        run_key = first_run(key)
        if isinstance(purifier, Stepwise):
            path, _ = purifier.path(run_key, image)
            return path[0], path[-1]
        noised = add_noise(run_key, image, getattr(purifier, "sigma", 0.0))
        return noised, purifier(run_key, image)

    noised, purified = jax.vmap(one, axis_name="batch")(keys, attacked)
    versions = zip(VERSIONS, (clean, attacked, noised, purified), strict=True)
    logits = {_answers(name): jax.vmap(defense.classifier)(images) for name, images in versions}
    return noised, purified, {name: values.argmax(-1) for name, values in logits.items()}

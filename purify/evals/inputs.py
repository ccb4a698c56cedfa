"""What evaluations read, networks and images, and the settings that tell them apart."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purify import data
from purify.checkpoint import (
    ROLES,
    image_shape,
    load_classifier,
    load_score,
    read_settings,
    weight_hash,
)
from purify.defense import Defense
from purify.evals.defenses import Networks, build_defense, network_run
from purify.evals.evaluation import Evaluation
from purify.evals.store import Store
from purify.image_io import load_labelled_npz, to_float
from purify.networks import Score

_IMAGES = ("images", "labels", "indices")


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The networks of an evaluation and the images that they are evaluated on.

    runs, networks: name (see `network_run`) -> folder of the run that made the network, and the
    network. num_classes: of the classifiers, 0 where there are none. class_names: as the data set
    has them, for all labels and all classes of the classifiers; where it has none their numbers.
    images: float32 [n, H, W, C] in [0, 1]; labels, indices (in the data set): int [n].
    """

    runs: Mapping[str, Path]
    networks: Networks
    num_classes: int
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    @property
    def score(self) -> Score:
        """The evaluation's own score model."""
        return self.networks["score"]

    def first(self, num_images: int) -> "Inputs":
        return self.take(slice(num_images))

    def take(self, positions: slice | np.ndarray) -> "Inputs":
        """The images at these positions alone."""
        cut = {name: getattr(self, name)[positions] for name in _IMAGES}
        return dataclasses.replace(self, **cut)

    def of_split(self, config, split: str) -> "Inputs":
        """With the images of another split of the data set; ValueError where they do not fit."""
        shape = self.images.shape[1:]
        _, *images = _load_images(config, shape, self.num_classes, None, split)
        return dataclasses.replace(self, **dict(zip(_IMAGES, images, strict=True)))

    def defense(self, config, name: str) -> Defense:
        return build_defense(config, name, self.networks)

    def evaluation(self, config, store: Store) -> Evaluation:
        """Of the images, in batches of config.eval.batch_size, into that store."""
        arrays = self.images, self.labels, self.indices
        return Evaluation(store, *arrays, seed=config.seed, batch_size=config.eval.batch_size)

    def settings(self, config) -> dict:
        """Seed, data set, networks and the images themselves: files of the same name may hold
        others."""
        others = {
            name: score_settings(self.networks[name], run)
            for name, run in self.runs.items()
            if name.endswith("/score")
        }
        arrays = {name: getattr(self, name) for name in _IMAGES}
        return {
            "seed": config.seed,
            "data": without(config.data.to_dict(), "dir"),
            "weights": {name: weight_hash(net.variables) for name, net in self.networks.items()},
            "networks": {name: read_settings(run)["network"] for name, run in self.runs.items()},
            "images": weight_hash(arrays),
            **score_settings(self.score, self.runs["score"]),
            **({"scores": others} if others else {}),
        }


def load_inputs(
    config,
    workdir: Path,
    defenses: Iterable[str],
    input: str | None = None,
    *,
    need_classifier: bool = True,
) -> Inputs:
    """Of the networks of these defences and the images of the test split, or of `input`, an .npz.

    need_classifier: else the score model alone will do where `workdir` has no classifier; there are
        no classifiers then, and 0 classes.
    MissingCheckpoint where a network has no run, ValueError where images and networks do not fit.
    """
    runs = network_runs(config, workdir, defenses)
    if not need_classifier and not (runs["classifier"] / "settings.json").exists():
        runs = {"score": runs["score"]}
    networks, shape = load_networks(runs), image_shape(workdir)
    num_classes = _agreed_classes(runs, shape)
    named, images, labels, indices = _load_images(config, shape, num_classes, input)
    numbered = map(str, range(len(named), max(num_classes, labels.max(initial=-1) + 1)))
    return Inputs(runs, networks, num_classes, (*named, *numbered), images, labels, indices)


def network_runs(config, workdir: Path, defenses: Iterable[str]) -> dict[str, Path]:
    """The folders of the runs that made the networks, by their `network_run`: those of `workdir`,
    and those that these defences have from elsewhere."""
    own = {role: workdir / role for role in ROLES}
    names = (network_run(config, name, role) for role in ROLES for name in defenses)
    return own | {name: Path(name) for name in names if name not in own}


def load_networks(runs: Mapping[str, Path]) -> Networks:
    """The networks of `network_runs`."""
    load: dict[str, Any] = {"classifier": load_classifier, "score": load_score}
    return {name: load[run.name](run.parent) for name, run in runs.items()}


def _agreed_classes(runs: Mapping[str, Path], shape: tuple) -> int:
    """The number of classes, 0 without a classifier; ValueError where a network from elsewhere has
    others, or other images."""
    classes = {}
    for name, run in runs.items():
        settings = read_settings(run)
        if (found := tuple(settings["image_shape"])) != shape:
            raise ValueError(
                f"{name} is for images of shape {found}, the evaluation's own networks for {shape}"
            )
        if run.name == "classifier":
            classes[name] = settings["network"]["num_classes"]
    num_classes = classes.get("classifier", 0)
    for name, found in classes.items():
        if found != num_classes:
            raise ValueError(
                f"{name} is for images in {found} classes, the evaluation's own classifier for "
                f"images in {num_classes}"
            )
    return num_classes


def _load_images(
    config, shape: tuple, num_classes: int, input: str | None, split: str = ""
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """(class names, images float32 in [0, 1], labels, dataset indices) of `input`, which names no
    classes, or of a split, by default the test split."""
    if input:
        return (), *load_labelled_npz(input, shape, num_classes=num_classes or None)
    cfg = config.data
    dataset = data.load(cfg.name, split or cfg.test_split, data_dir=cfg.dir, path=cfg.path)
    if dataset.images.shape[1:] != shape:
        raise ValueError(
            f"{cfg.name} has images of shape {dataset.images.shape[1:]}, the networks were trained "
            f"on {shape}; train in another --workdir"
        )
    if dataset.num_classes > num_classes > 0:
        raise ValueError(
            f"{cfg.name} has {dataset.num_classes} classes, the classifier was trained on "
            f"{num_classes}; train in another --workdir"
        )
    indices = np.arange(len(dataset.labels))
    return dataset.class_names, to_float(dataset.images), dataset.labels, indices


def tell_seen(cfg, runs: Mapping[str, Path], num_images: int, split: str = "") -> list[str]:
    """Say it where a network was trained on the first images of a split, by default the test split,
    or where that is not known; and return the names of those."""
    where = dict(data_dir=cfg.dir, path=cfg.path)
    evaluated = data.members(cfg.name, split or cfg.test_split, **where)[:num_images]
    told = []
    for name, folder in runs.items():
        if not (trained := read_settings(folder).get("data")):
            told.append(f"{name} (unknown)")
            print(
                f"note: the weights of the {name} came from elsewhere; what it has seen is unknown"
            )
            continue
        if trained["name"] != cfg.name and not split:
            print(f"note: the {name} was trained on {trained['name']}, these images are {cfg.name}")
        if (trained["name"], trained["path"]) != (cfg.name, cfg.path):
            continue
        seen = set(data.members(cfg.name, trained["train_split"], **where)) & set(evaluated)
        if seen:
            told.append(name)
            of = f"images of {split!r}" if split else "these images"
            print(
                f"note: the {name} was trained on {len(seen)} of {of}; config.data."
                f"test_split={cfg.test_split!r}, its train_split={trained['train_split']!r}"
            )
    return told


def score_settings(score_model: Score, run: Path) -> dict:
    """What a score model is beside network and weights: its head and, where it was not Gaussian
    noise, the perturbation that its run has learnt to undo."""
    recorded = read_settings(run)
    learnt = {name: recorded[name] for name in ("perturbation",) if name in recorded}
    return {"head": score_model.head, **learnt}


def without(fields: dict, name: str) -> dict:
    """Without a field that decides no result, but rounding, memory or what is refused."""
    return {key: value for key, value in fields.items() if key != name}

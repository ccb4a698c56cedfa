"""What evaluations read, networks and images, and the settings that tell them apart."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

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
from purify.evals.defenses import build_defense, classifier_run
from purify.evals.evaluation import Evaluation
from purify.evals.store import Store
from purify.image_io import load_labelled_npz, to_float
from purify.networks import Classifier, Score

_IMAGES = ("images", "labels", "indices")


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The networks of an evaluation and the images that they are evaluated on.

    runs: name -> folder of the run that made the network; classifiers: those of them that are;
    num_classes: theirs, 0 where there are none.
    images: float32 [n, H, W, C] in [0, 1]; labels, indices (in the data set): int [n].
    """

    runs: Mapping[str, Path]
    classifiers: Mapping[str, Classifier]
    score: Score
    num_classes: int
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def first(self, num_images: int) -> "Inputs":
        return self.take(slice(num_images))

    def take(self, positions: slice | np.ndarray) -> "Inputs":
        """The images at these positions alone."""
        cut = {name: getattr(self, name)[positions] for name in _IMAGES}
        return dataclasses.replace(self, **cut)

    def of_split(self, config, split: str) -> "Inputs":
        """With the images of another split of the data set; ValueError where they do not fit."""
        shape = self.images.shape[1:]
        images = _load_images(config, shape, self.num_classes, None, split)
        return dataclasses.replace(self, **dict(zip(_IMAGES, images, strict=True)))

    def defense(self, config, name: str) -> Defense:
        return build_defense(config, name, classifiers=self.classifiers, score=self.score)

    def evaluation(self, config, store: Store) -> Evaluation:
        """Of the images, in batches of config.eval.batch_size, into that store."""
        arrays = self.images, self.labels, self.indices
        return Evaluation(store, *arrays, seed=config.seed, batch_size=config.eval.batch_size)

    def settings(self, config) -> dict:
        """Seed, data set, networks and the images themselves: files of the same name may hold
        others."""
        networks: dict[str, Classifier | Score] = {**self.classifiers, "score": self.score}
        arrays = {name: getattr(self, name) for name in _IMAGES}
        return {
            "seed": config.seed,
            "data": without(config.data.to_dict(), "dir"),
            "weights": {name: weight_hash(net.variables) for name, net in networks.items()},
            "networks": {name: read_settings(run)["network"] for name, run in self.runs.items()},
            "images": weight_hash(arrays),
            **score_settings(self.score, self.runs["score"]),
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
    classifiers, score, shape = load_classifiers(runs), load_score(workdir), image_shape(workdir)
    num_classes = _agreed_classes(runs, shape)
    images = _load_images(config, shape, num_classes, input)
    return Inputs(runs, classifiers, score, num_classes, *images)


def network_runs(config, workdir: Path, defenses: Iterable[str]) -> dict[str, Path]:
    """The folders of the runs that made the networks: by role those of `workdir`, and by their
    `classifier_run` the classifiers that these defences have from elsewhere."""
    names = (classifier_run(config, name) for name in defenses)
    own = {role: workdir / role for role in ROLES}
    return own | {name: Path(name) for name in names if name not in own}


def load_classifiers(runs: Mapping[str, Path]) -> dict[str, Classifier]:
    """All but the score model of `network_runs`."""
    return {name: load_classifier(run.parent) for name, run in runs.items() if name != "score"}


def _agreed_classes(runs: Mapping[str, Path], shape: tuple) -> int:
    """The number of classes, 0 without a classifier; ValueError where another classifier has
    others, or other images."""
    if "classifier" not in runs:
        return 0
    num_classes = read_settings(runs["classifier"])["network"]["num_classes"]
    for name in runs.keys() - set(ROLES):
        settings = read_settings(runs[name])
        found = tuple(settings["image_shape"]), settings["network"]["num_classes"]
        if found != (shape, num_classes):
            raise ValueError(
                f"{name} is for images of shape {found[0]} in {found[1]} classes, the evaluation's "
                f"own classifier for {shape} in {num_classes}"
            )
    return num_classes


def _load_images(
    config, shape: tuple, num_classes: int, input: str | None, split: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images float32 in [0, 1], labels, dataset indices) of `input`, or of a split, by default the
    test split."""
    if input:
        return load_labelled_npz(input, shape, num_classes=num_classes or None)
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
    return to_float(dataset.images), dataset.labels, np.arange(len(dataset.labels))


def tell_seen(cfg, runs: Mapping[str, Path], num_images: int, split: str = "") -> list[str]:
    """Say it where a network was trained on the first images of a split, by default the test split,
    and return the names of those."""
    where = dict(data_dir=cfg.dir, path=cfg.path)
    evaluated = data.members(cfg.name, split or cfg.test_split, **where)[:num_images]
    told = []
    for name, folder in runs.items():
        trained = read_settings(folder).get("data")
        if not trained or (trained["name"], trained["path"]) != (cfg.name, cfg.path):
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

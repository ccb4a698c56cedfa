"""What evaluations read, networks and images, and the settings that tell them apart."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purify.data import datasets
from purify.data.classes import check_same, meaning
from purify.data.image_io import load_labelled_npz, to_float
from purify.defense import Defense
from purify.evals.core.defenses import Networks, build_defense, has_score, network_run
from purify.evals.core.engine import Engine
from purify.evals.core.store import Store
from purify.models.networks import Score
from purify.random import check_seed
from purify.runtime.messages import printable
from purify.runtime.paths import same_path
from purify.saving.checkpoint import (
    ROLES,
    Loaded,
    build_network,
    has_checkpoint,
    image_hash,
    load_run,
    run_folder,
    weight_hash,
)
from purify.saving.settings import read_settings

_IMAGES = ("images", "labels", "indices")


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The networks of an evaluation and the images that they are evaluated on.

    runs, steps, networks: name (see `network_run`) -> folder of the run that made the network, the
    step of its training at which its weights were saved (0: unknown, of weights from elsewhere),
    and the network. num_classes: of the classifiers, 0 where there are none. class_names: as the
    classifier has learnt them, or else as the data set has them, for all labels and all classes;
    where neither has names their numbers.
    notes: what a reader should know of the labels.
    images: float32 [n, H, W, C] in [0, 1]; labels, indices (in the data set): int [n].
    """

    runs: Mapping[str, Path]
    steps: Mapping[str, int]
    networks: Networks
    num_classes: int
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
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
        found = _load_images(config, self.images.shape[1:], self.runs, None, split)
        return dataclasses.replace(self, **{name: getattr(found, name) for name in _IMAGES})

    def defense(self, config, name: str) -> Defense:
        return build_defense(config, name, self.networks)

    def engine(self, config, store: Store) -> Engine:
        """Of the images, in batches of config.eval.batch_size, into that store."""
        arrays = self.images, self.labels, self.indices
        return Engine(store, *arrays, seed=config.seed, batch_size=config.eval.batch_size)

    def trained(self) -> dict[str, dict]:
        """Name -> the settings of the run that made the network, and its step, where that is
        known."""
        steps = {name: {"step": step} if step else {} for name, step in self.steps.items()}
        return {name: read_settings(run) | steps[name] for name, run in self.runs.items()}

    def unfinished(self) -> list[str]:
        """A line for each network whose training has not come to its end."""
        return [
            f"{name}: unfinished training, step {of['step']} of {of['train']['num_steps']}"
            for name, of in self.trained().items()
            if "step" in of and of["step"] < of.get("train", {}).get("num_steps", 0)
        ]

    def titled(self, title: str) -> str:
        """The title of a table of these networks' results, with what is unfinished."""
        return "\n".join([title, *self.unfinished()])

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
            **(score_settings(self.score, self.runs["score"]) if "score" in self.runs else {}),
            **({"scores": others} if others else {}),
        }


def load_inputs(
    config,
    workdir: Path,
    defenses: Iterable[str],
    input: str | None = None,
    *,
    needed: Collection[str] = ("classifier",),
) -> Inputs:
    """The networks of these defences and the images of the test split, or of `input`, an .npz.

    needed: the roles that the mode itself needs; see `network_runs`.
    MissingCheckpoint where a network has no run, ValueError where images and networks do not fit,
    or the seed is none.
    """
    check_seed(config.seed, "config.seed")
    runs = network_runs(config, workdir, defenses, needed=needed)
    loaded, shape = _load_runs(runs), shape_of(runs)
    networks = {name: build_network(runs[name].name, each) for name, each in loaded.items()}
    steps = {name: each.step for name, each in loaded.items()}
    num_classes = _agreed_classes(runs)
    images = _load_images(config, shape, runs, input)
    labels = images.labels
    numbered = map(str, range(len(images.names), max(num_classes, labels.max(initial=-1) + 1)))
    names = (*images.names, *numbered)
    return Inputs(
        *(runs, steps, networks, num_classes, names),
        *(images.notes, images.images, labels, images.indices),
    )


def network_runs(
    config, workdir: Path, defenses: Iterable[str], *, needed: Collection[str] = ("classifier",)
) -> dict[str, Path]:
    """The folders of the runs that made the networks, by their `network_run`: those of `workdir`,
    and those that these defences have from elsewhere.

    needed: roles that must be there. A score model must be there also where a defence has one, and
    no other network of `workdir` need be.
    """
    defenses = tuple(defenses)
    asked = set(needed)
    asked |= {network_run(config, n, "score") for n in defenses if has_score(config, n)}
    own = {role: run_folder(workdir, role) for role in ROLES}
    runs = {role: folder for role, folder in own.items() if role in asked or has_checkpoint(folder)}
    names = (network_run(config, name, role) for role in ROLES for name in defenses)
    return runs | {name: Path(name) for name in names if name not in own}


def load_networks(runs: Mapping[str, Path]) -> Networks:
    """The networks of `network_runs`."""
    loaded = _load_runs(runs)
    return {name: build_network(runs[name].name, each) for name, each in loaded.items()}


def _load_runs(runs: Mapping[str, Path]) -> dict[str, Loaded]:
    return {name: load_run(run.parent, run.name) for name, run in runs.items()}


def shape_of(runs: Mapping[str, Path]) -> tuple[int, int, int]:
    """(H, W, C) of the images that all the networks are for; ValueError where that differs."""
    shapes = {name: tuple(read_settings(run)["image_shape"]) for name, run in runs.items()}
    (first, shape), *others = shapes.items()
    for name, found in others:
        if found != shape:
            raise ValueError(
                f"the {name} is for images of shape {found}, the {first} for {shape}: an image "
                "fits one of them alone; train both in one --workdir, on the same data"
            )
    return shape


def _agreed_classes(runs: Mapping[str, Path]) -> int:
    """The number of classes, 0 without a classifier; ValueError where classifiers differ in it, or
    in the names of their classes."""
    classifiers = {n: read_settings(run) for n, run in runs.items() if run.name == "classifier"}
    if not classifiers:
        return 0
    first = next(iter(classifiers.values()))
    for name, settings in classifiers.items():
        check_same(name, settings, first)
    return first["network"]["num_classes"]


class _Images(NamedTuple):
    """names: of classes; notes: what a reader should know of them; the others as in Inputs."""

    names: tuple[str, ...]
    notes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def _load_images(
    config, shape: tuple, runs: Mapping[str, Path], input: str | None, split: str = ""
) -> _Images:
    """The images of `input`, whose labels are the classifier's, or of a split, by default the test
    split, whose labels become the classifier's."""
    trained = read_settings(runs["classifier"]) if "classifier" in runs else {}
    if input:
        num_classes = trained["network"]["num_classes"] if trained else None
        names = tuple(trained.get("class_names", ()))
        return _Images(names, (), *load_labelled_npz(input, shape, num_classes=num_classes))
    cfg = config.data
    dataset = datasets.load(cfg.name, split or cfg.test_split, data_dir=cfg.dir, path=cfg.path)
    if dataset.images.shape[1:] != shape:
        raise ValueError(
            f"{cfg.name} has images of shape {dataset.images.shape[1:]}, the networks were trained "
            f"on {shape}; train in another --workdir"
        )
    meant = meaning(cfg.name, dataset.class_names, trained)
    labels = meant.labels.astype(dataset.labels.dtype)[dataset.labels]
    notes = (meant.note,) if meant.note else ()
    return _Images(meant.names, notes, to_float(dataset.images), labels, np.arange(len(labels)))


class Seen(NamedTuple):
    """notes: what a reader should know of images. by: the networks that were trained on some of
    them, or may have been."""

    notes: list[str]
    by: list[str]

    def tell(self) -> None:
        for note in self.notes:
            print(f"note: {note}")


def seen(cfg, inputs: Inputs, positions: Iterable[int], split: str = "") -> Seen:
    """Whose labels the images at these positions of a split have, by default the test split, which
    networks were trained on some of them, and where that is not known."""
    notes = [] if split else [printable(note) for note in (*inputs.notes, *inputs.unfinished())]
    where = dict(data_dir=cfg.dir, path=cfg.path)
    members = datasets.members(cfg.name, split or cfg.test_split, **where)
    evaluated = {members[position] for position in positions}
    told = []
    for name, folder in inputs.runs.items():
        trained = read_settings(folder)
        if "data" not in trained:
            told.append(f"{name} (unknown)")
            notes.append(
                f"the weights of the {name} came from elsewhere; what it has seen is unknown"
            )
            continue
        if trained["data"]["name"] != cfg.name and not split:
            of = trained["data"]["name"]
            notes.append(f"the {name} was trained on {printable(of)}, these images are {cfg.name}")
        try:
            known = evaluated & _seen(trained, cfg)
        except ValueError as error:
            told.append(f"{name} (unknown)")
            why = printable(error)
            notes.append(f"whether the {name} was trained on these images is unknown: {why}")
            continue
        if known:
            told.append(name)
            of = f"images of {split!r}" if split else "these images"
            train_split = trained["data"]["train_split"]
            notes.append(
                f"the {name} was trained on {len(known)} of {of}; config.data."
                f"test_split={cfg.test_split!r}, its train_split={printable(repr(train_split))}"
            )
    return Seen(notes, told)


def _seen(trained: Mapping, cfg) -> frozenset:
    """What a run with these settings has seen of the data set of config.data, see data.members;
    ValueError where that is not known."""
    if not _same_data(trained, cfg):
        return frozenset()
    where = dict(data_dir=cfg.dir, path=cfg.path)
    return frozenset(datasets.members(cfg.name, trained["data"]["train_split"], **where))


def _same_data(trained: Mapping, cfg) -> bool:
    """Whether a run with these settings was trained on the data set of config.data, whose files may
    have moved since: the hash of its training images says so. ValueError where these cannot be
    read."""
    own = trained["data"]
    if own["name"] != cfg.name:
        return False
    if same_path(own["path"], cfg.path):
        return True
    if "images" not in trained:
        return False
    where = dict(data_dir=cfg.dir, path=cfg.path)
    try:
        datasets.members(cfg.name, own["train_split"], **where)
    except ValueError:  # it has no such split
        return False
    there = datasets.load(cfg.name, own["train_split"], **where)
    return image_hash(there.images, there.labels) == trained["images"]


def score_settings(score_model: Score, run: Path) -> dict:
    """What a score model is beside network and weights: its head and, where it was not Gaussian
    noise, the perturbation that its run has learnt to undo."""
    recorded = read_settings(run)
    learnt = {name: recorded[name] for name in ("perturbation",) if name in recorded}
    return {"head": score_model.head, **learnt}


def without(fields: dict, name: str) -> dict:
    """Without a field that decides no result, but rounding, memory or what is refused."""
    return {key: value for key, value in fields.items() if key != name}

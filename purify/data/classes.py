"""What a label means: the class of that name, as the classifier was trained on it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from purify.runtime.messages import few

SHOWN = 12  # names in a message
FOLDER = "folder"  # config.data.name of labelled folders


class Meaning(NamedTuple):
    """labels: the classifier's label of each of the data set's, int [k]. names: of the classifier's
    classes, or of the data set's where the classifier has none. note: what a reader should know,
    '' for nothing."""

    labels: np.ndarray
    names: tuple[str, ...]
    note: str


def meaning(name: str, names: Sequence[str], trained: Mapping) -> Meaning:
    """The meaning of the labels of the data set `name`, whose classes have these names.

    trained: settings of the run that made the classifier, empty without one. Classes are those of
    the same name. Labels keep their numbers where one side has nothing but numbers for names, as
    classes of an .npz, or where weights came from elsewhere.

    Raises ValueError where a class is none of the classifier's.
    """
    names, labels = tuple(names), np.arange(len(names))
    if not trained:
        return Meaning(labels, names, "")
    count = trained["network"]["num_classes"]
    ours = tuple(trained.get("class_names", ()))
    if name == FOLDER and not ours and _sorted_as_texts(names, trained):
        if len(names) < count:
            raise ValueError(
                f"the classifier was trained by an earlier version, which sorted its {count} "
                f"numbered classes as texts: which labels the {len(names)} of {name} had there "
                "nobody knows; train in another --workdir"
            )
        ours = tuple(sorted(names)) if len(names) == count else ours
    if set(names) <= set(ours):
        if names == ours[: len(names)]:
            return Meaning(labels, ours, "")
        labels = np.array([ours.index(each) for each in names])
        moved = [f"{each} is {label}" for each, label in zip(names, labels, strict=True)]
        note = f"labels of {name} are those of the classifier's classes of the same name"
        return Meaning(labels, ours, f"{note}: {few(moved, limit=SHOWN)}")
    if len(names) > count:
        raise ValueError(
            f"{name} has {len(names)} classes, the classifier was trained on {count}; train in "
            "another --workdir"
        )
    if not _unnamed(names) and (not _unnamed(ours) or len(names) < count):
        known = few(ours, limit=SHOWN) if ours else f"{count} without names"
        strange = next(each for each in names if each not in ours)
        raise ValueError(
            f"{name} has the classes {few(names, limit=SHOWN)}, the classifier was trained on "
            f"{known}: which of them {strange!r} is nobody knows; name the classes as there, or "
            "train in another --workdir"
        )
    if _unnamed(names) and _unnamed(ours):
        return Meaning(labels, names, "")
    side = "the classifier" if _unnamed(ours) else name
    note = f"{side} has no names of classes: its class 0 is taken for the other's 0, and so on"
    return Meaning(labels, names if _unnamed(ours) else ours, note)


def check_same(run: str, theirs: Mapping, ours: Mapping) -> None:
    """ValueError where the classifier of that run answers with other classes than the evaluation's
    own; both given by the settings of their runs."""
    counts = [settings["network"]["num_classes"] for settings in (theirs, ours)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{run} is for images in {counts[0]} classes, the evaluation's own classifier for "
            f"images in {counts[1]}"
        )
    names = [tuple(settings.get("class_names", ())) for settings in (theirs, ours)]
    if names[0] != names[1] and not any(map(_unnamed, names)):
        raise ValueError(
            f"{run} was trained on the classes {few(names[0], limit=SHOWN)}, the evaluation's own "
            f"classifier on {few(names[1], limit=SHOWN)}: the same answer would mean another class"
        )


def check_order(folder: str, names: Sequence[str], recorded: Mapping) -> None:
    """ValueError where the training that `folder` holds has begun with other labels for these
    classes: by a version that recorded no names, and sorted numbers as texts."""
    began = "class_names" not in recorded and _sorted_as_texts(names, recorded)
    if began and sorted(names) != list(names):
        raise ValueError(
            f"{folder} was begun by an earlier version, which sorted the classes "
            f"{few(names, limit=SHOWN)} as texts: their labels are others now; train in another "
            "--workdir"
        )


def _unnamed(names: Sequence[str]) -> bool:
    """Whether these are no names: 0, 1, 2, ..., or none at all."""
    return tuple(names) == tuple(map(str, range(len(names))))


def _sorted_as_texts(names: Sequence[str], trained: Mapping) -> bool:
    """Whether a run that recorded no names learnt folders like these, which are numbers, in the
    order of texts, which is another one from eleven on: 0, 1, 10, 2."""
    of_folders = trained.get("data", {}).get("name") == FOLDER
    many = trained.get("network", {}).get("num_classes", 0) > 10
    return of_folders and many and all(name.isdecimal() for name in names)

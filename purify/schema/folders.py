"""What lies beside records and weights: settings.json and sha256.json."""

from typing import Annotated, Any, Required, TypedDict

import msgspec

from purify.schema.atoms import MAX_CLASSES, Count, Hash, Name, Positive, Share, Side, check


class Data(TypedDict, total=False):
    name: str
    path: str | None
    train_split: str
    test_split: str


class Perturbation(TypedDict, total=False):
    name: Required[str]


class Settings(TypedDict, total=False):
    """A settings.json, of a training or an evaluation. Its content names folders: it has no
    version."""

    seed: Count
    data: Data
    images: str
    # of a training
    network: dict[str, Any]
    image_shape: Annotated[list[Side], msgspec.Meta(min_length=3, max_length=3)]
    num_classes: Annotated[int, msgspec.Meta(gt=0, le=MAX_CLASSES)]
    class_names: Annotated[list[str], msgspec.Meta(max_length=MAX_CLASSES)]
    train: dict[str, Any]
    head: str
    sigma_max: Positive
    sigma_min: Positive
    num_levels: Side
    label_smoothing: Share
    perturbation: Perturbation
    adversarial: dict[str, Any]
    imported: dict[str, Any]
    # of an evaluation
    weights: dict[str, str]
    networks: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    attacks: dict[Name, dict[str, Any]]
    variants: dict[Name, dict[str, Any]]
    eval: dict[str, Any]
    given: bool


def settings(value: Any) -> dict:
    """What a settings.json holds; ValueError that says what is wrong with it."""
    return check(value, Settings)


def hashes(value: Any) -> dict[str, str]:
    """What a sha256.json holds: name of a file below its folder -> its hash, at least one."""
    found = check(value, Annotated[dict[str, Hash], msgspec.Meta(min_length=1)])
    for name in found:
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError("a name of a file that does not lie below the folder")
    return found

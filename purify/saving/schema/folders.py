"""What lies beside records and weights: settings.json and sha256.json."""

from typing import Annotated, Any, Required, TypedDict

import msgspec

from purify.saving.schema.atoms import MAX_CLASSES, Count, Hash, Name, Positive, Share, Side, check


class Data(TypedDict, total=False):
    name: str
    path: str | None
    train_split: str
    test_split: str


class TrainedOn(TypedDict, total=False):
    """What a training has seen; all that evaluations ask of it has always been there."""

    name: Required[str]
    path: Required[str | None]
    train_split: Required[str]


class Network(TypedDict, total=False):
    """All else are options of that network, see models.options."""

    arch: str
    num_classes: Annotated[int, msgspec.Meta(gt=0, le=MAX_CLASSES)]


class Train(TypedDict, total=False):
    num_steps: Count


class Perturbation(TypedDict, total=False):
    name: Required[str]
    sigma_eff: Positive


class Shared(TypedDict, total=False):
    """A settings.json, of a training or an evaluation. Its content names folders: it has no
    version."""

    seed: Count
    images: str
    # of a training
    network: Network
    image_shape: Annotated[list[Side], msgspec.Meta(min_length=3, max_length=3)]
    num_classes: Annotated[int, msgspec.Meta(gt=0, le=MAX_CLASSES)]
    class_names: Annotated[list[str], msgspec.Meta(max_length=MAX_CLASSES)]
    train: Train
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


class Settings(Shared, total=False):
    """Of an evaluation, or of nobody knows what."""

    data: Data


class Training(Shared, total=False):
    """data: none where the weights were imported from elsewhere."""

    data: TrainedOn


class Listed(TypedDict, total=False):
    """bytes: of the file; lists of earlier versions have none."""

    bytes: Count
    sha256: Required[Hash]


class Hashes(TypedDict, total=False):
    """A sha256.json. files: name below its folder -> what is known of it. settings: the hash of
    those of the run."""

    files: Required[Annotated[dict[str, Listed], msgspec.Meta(min_length=1)]]
    settings: Hash


def settings(value: Any) -> dict:
    """What a settings.json holds; ValueError that says what is wrong with it."""
    return check(value, Training if isinstance(value, dict) and "network" in value else Settings)


def hashes(value: Any) -> Hashes:
    """What a sha256.json holds, in today's form: those of earlier versions are {name: hash}."""
    if not (isinstance(value, dict) and isinstance(value.get("files"), dict)):
        plain = check(value, Annotated[dict[str, Hash], msgspec.Meta(min_length=1)])
        value = {"files": {name: {"sha256": each} for name, each in plain.items()}}
    for name in check(value, Hashes)["files"]:
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError("a name of a file that does not lie below the folder")
    return value

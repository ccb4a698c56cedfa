"""What the JSON files of runs and evaluations hold: their types, checked at one door where they are
read. Values stay as they are: fields that no type names are kept."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Required, TypedDict, TypeVar

import msgspec

T = TypeVar("T")
FINITE = 1.7976931348623157e308
MAX_CLASSES = 100_000

# A part of the name of a file: never a way into another folder.
Name = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.{1,2}\Z)[^/\x00]{1,255}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Number = Annotated[float, msgspec.Meta(ge=-FINITE, le=FINITE)]
Positive = Annotated[float, msgspec.Meta(ge=0, le=FINITE)]  # or 0
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Class = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CLASSES)]
Answer = Annotated[int, msgspec.Meta(ge=-1, lt=MAX_CLASSES)]  # -1: none
Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Side = Annotated[int, msgspec.Meta(gt=0, lt=2**31)]


class Record(TypedDict, total=False):
    """A line of an images.jsonl: what was computed of one image for one row."""

    row: Required[Name]
    index: Required[Index]


class Costs(Record, total=False):
    queries: Required[Count]
    nfe: Required[Count]
    nge: Required[Count]
    seconds: Required[Positive]


class Attack(Costs, total=False):
    """'attack:<crafted>': what an attack did. chosen: the strongest of several."""

    loss: Required[float]
    start_loss: Required[float]
    distance: Required[Positive]
    interim_success: bool
    chosen: Name


class Choice(Costs, total=False):
    """'choice:<row>:<candidate>': how strong a candidate is."""

    loss: Required[float]
    settled: Required[bool]


class Scored(Costs, total=False):
    """'<defence>-<attack>', or a corruption in the attack's place: draws of the defence.

    correct: [N] draws; predictions: [N][S], of single runs. loss and so on: the attack's.
    """

    label: Required[Class]
    correct: Required[Annotated[list[bool], msgspec.Meta(min_length=1)]]
    predictions: Required[list[Annotated[list[Class], msgspec.Meta(min_length=1)]]]
    defense_nfe: Required[Positive]
    defense_seconds: Required[Positive]
    loss: float
    start_loss: float
    distance: Positive
    interim_success: bool
    chosen: Name


class Certified(Record, total=False):
    """'<defence>-<sigma>': see smoothing.Certificate. counts: of classes [K]."""

    label: Required[Class]
    top: Required[Answer]
    answer: Required[Answer]
    counts: Required[list[Count]]
    p_low: Required[Share]
    radius: Required[Positive]
    samples: Required[Count]
    nfe: Required[Count]
    seconds: Required[Positive]


class Path(Record, total=False):
    """'path-<purifier>': an image on its way. predictions: None without a classifier."""

    label: Required[Class]
    steps: Required[Count]
    step_sizes: Required[list[Number]]
    score_norms: Required[list[Number]]
    predictions: Required[list[Class] | None]
    nfe: Required[Count]
    seconds: Required[Positive]


class Sample(Record, total=False):
    """'samples': one that the score model has drawn."""

    seconds: Required[Positive]


class Probed(Record, total=False):
    """'probe': see probes.Local."""

    gain: Required[Number]
    predicted: Required[Number]
    random_gain: Required[Number]
    resolution: Required[Number]
    gap: Required[Number]
    cosine: Required[Number]


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


class Signature(TypedDict, total=False):
    """A line of a provenance.jsonl: what computed records, see store.provenance."""

    time: Required[str]
    commit: Required[str]
    versions: Required[dict[str, str]]
    python: Required[str]
    machine: Required[str]
    precision: str
    batch_size: Side
    chunk: Side
    devices: Side


class Report(TypedDict, total=False):
    """A line of a metrics.jsonl: numbers of a training after so many steps."""

    step: Required[Count]


# How the rows of a kind of records begin; those of others are told by their fields.
_PREFIXES = {"attack:": Attack, "choice:": Choice}
_FIELDS = dict.fromkeys(("step_sizes", "score_norms"), Path)
_FIELDS |= dict.fromkeys(("counts", "radius"), Certified)
_ROWS = {"probe": Probed, "samples": Sample}


def record(value: Any) -> dict:
    """A line of an images.jsonl, of any mode; ValueError that says what is wrong with it."""
    row = check(value, Record)["row"]
    for prefix, kind in _PREFIXES.items():
        if row.startswith(prefix):
            return check(value, kind)
    if row.startswith("statistics:"):
        return _numbers(value, list[Number], but=("row", "index"))
    if row in _ROWS:
        return check(value, _ROWS[row])
    kind = next((kind for field, kind in _FIELDS.items() if field in value), Scored)
    check(value, kind)
    if kind is Scored:
        draws, runs = value["predictions"], {len(draw) for draw in value["predictions"]}
        if len(draws) != len(value["correct"]) or len(runs) != 1:
            raise ValueError("`predictions` are not of as many runs in each draw of `correct`")
    return value


def settings(value: Any) -> dict:
    """What a settings.json holds; ValueError that says what is wrong with it."""
    return check(value, Settings)


def signature(value: Any) -> dict:
    """A line of a provenance.jsonl; ValueError that says what is wrong with it."""
    return check(value, Signature)


def metrics(value: Any) -> dict:
    """A line of a metrics.jsonl; ValueError that says what is wrong with it."""
    check(value, Report)
    return _numbers(value, float, but=("step",))


def hashes(value: Any) -> dict[str, str]:
    """What a sha256.json holds: name of a file below its folder -> its hash, at least one."""
    found = check(value, Annotated[dict[str, Hash], msgspec.Meta(min_length=1)])
    for name in found:
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError("a name of a file that does not lie below the folder")
    return found


def check(value: Any, kind: type[T] | Any) -> Any:
    """The value as it is, which must be of that type; ValueError that says where it is not."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = re.sub(r"`str` matching regex .*?(?= - at |$)", "`str` of another form", str(error))
        raise ValueError(said) from None
    except UnicodeEncodeError:
        raise ValueError("a name that is no Unicode text") from None
    return value


def _numbers(value: Mapping, kind: Any, *, but: tuple[str, ...]) -> Any:
    """The value, whose fields but those must be of that type."""
    check({name: each for name, each in value.items() if name not in but}, dict[str, kind])
    return value

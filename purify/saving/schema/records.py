"""Lines of images.jsonl, provenance.jsonl and metrics.jsonl."""

from typing import Annotated, Any, Required, TypedDict

import msgspec

from purify.saving.schema.atoms import (
    Answer,
    Class,
    Count,
    Index,
    Name,
    Number,
    Positive,
    Share,
    Side,
    check,
    numbers,
)

Draws = Annotated[list[Number], msgspec.Meta(min_length=1)]  # of a statistic


class Record(TypedDict, total=False):
    """A line of an images.jsonl: what was computed of one image for one row.

    arrays: name of an array -> the seal of its entry of this image, see evals.core.sealed_arrays.
    """

    row: Required[Name]
    index: Required[Index]
    arrays: dict[Name, str]


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


_ATTACKED = ("loss", "start_loss", "distance")  # an attacked image has all of them
# How the rows of a kind of records begin; those of others are told by their fields.
_PREFIXES = {"attack:": Attack, "choice:": Choice}
_FIELDS = {"step_sizes": Path, "score_norms": Path, "counts": Certified, "radius": Certified}
_ROWS = {"probe": Probed, "samples": Sample}


def record(value: Any) -> dict:
    """A line of an images.jsonl, of any mode; ValueError that says what is wrong with it."""
    row = check(value, Record)["row"]
    for prefix, kind in _PREFIXES.items():
        if row.startswith(prefix):
            return check(value, kind)
    if row.startswith("statistics:"):
        if value.keys() <= {"row", "index", "arrays"}:
            raise ValueError("missing required field: a statistic")
        return numbers(value, Draws, but=("row", "index", "arrays"))
    if row in _ROWS:
        return check(value, _ROWS[row])
    kind = next((kind for field, kind in _FIELDS.items() if field in value), Scored)
    check(value, kind)
    if kind is Scored:
        draws, runs = value["predictions"], {len(draw) for draw in value["predictions"]}
        if len(draws) != len(value["correct"]) or len(runs) != 1:
            raise ValueError("`predictions` are not of as many runs in each draw of `correct`")
        if missing := {*_ATTACKED} - value.keys() if value.keys() & {*_ATTACKED} else None:
            raise ValueError(f"missing required field `{min(missing)}` of an attack")
    return value


def signature(value: Any) -> dict:
    """A line of a provenance.jsonl; ValueError that says what is wrong with it."""
    return check(value, Signature)


def metrics(value: Any) -> dict:
    """A line of a metrics.jsonl; ValueError that says what is wrong with it."""
    check(value, Report)
    return numbers(value, float, but=("step",))

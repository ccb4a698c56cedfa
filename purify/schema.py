"""What the JSON files of runs and evaluations hold: their types, checked where they are read."""

from typing import Annotated, Any, Required, TypedDict, TypeVar

import msgspec

T = TypeVar("T")
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Record(TypedDict, total=False):
    """A line of an images.jsonl: what was computed of one image for one row."""

    row: Required[str]
    index: Required[Index]


def check(value: Any, kind: type[T]) -> T:
    """The value, which must be of that type; ValueError that says where it is not."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def settings(value: Any) -> dict:
    """The settings of a run."""
    return check(value, dict)


def record(value: Any) -> dict:
    """A line of an images.jsonl."""
    return dict(check(value, Record))


def hashes(value: Any) -> dict[str, str]:
    """Name of a file -> SHA-256 of its content, in hex; at least one."""
    found = check(value, dict[str, Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]])
    if not found:
        raise ValueError("an empty list")
    return found


class Metrics(TypedDict):
    """A line of a metrics.jsonl; the other fields are numbers by name."""

    step: Index


def metrics(value: Any) -> dict:
    """A line of a metrics.jsonl."""
    return dict(check(value, Metrics))

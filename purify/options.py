"""Options: frozen dataclasses whose fields have ranges, and names of the project's literal tables.

@dataclasses.dataclass(frozen=True)
class Budget(Options):
    num_images: Count = 100

read(Budget, {"num_images": 0}, "config.budget")
ValueError: config.budget.num_images=0 must be at least 1
"""

import dataclasses
import functools
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from purify.runtime.messages import few, printable

_FINITE = 1.7976931348623157e308
Count = Annotated[int, msgspec.Meta(ge=1, description="at least 1")]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_FINITE, description="at least 0 and finite")]
Fraction = Annotated[
    float, msgspec.Meta(gt=0, lt=1, description="a number strictly between 0 and 1")
]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """Checked when it is made: ValueError that names a field of another type or out of its range.

    Lists become tuples. What a range alone cannot say belongs into `check`.
    """

    def __post_init__(self):
        for name, kind in _kinds(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), kind))
        self.check()

    def check(self) -> None:
        """ValueError where fields do not fit each other."""


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value as that type has it, lists as tuples; ValueError that says what it must be."""
    try:
        return msgspec.convert(value.item() if isinstance(value, np.generic) else value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"{name}={printable(repr(value), limit=80)} must {_must(kind, str(error))}"
        ) from None


def _must(kind: Any, error: str) -> str:
    """What a field of that type must be, in words; error: what msgspec says."""
    origin, each = typing.get_origin(kind), "be"
    if origin is tuple:
        kind, each = typing.get_args(kind)[0], "all be"
    described = next((m.description for m in getattr(kind, "__metadata__", ())), "")
    if described and ", got " not in error:
        return f"{each} {described}"
    base = typing.get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    words = {int: "an integer", float: "a number", str: "a text", bool: "True or False"}
    of = words.get(base, f"of type {getattr(base, '__name__', base)}")
    if each == "all be":
        return f"be a tuple of which each is {of}{f', {described}' * bool(described)}"
    return f"be {of}{f', {described}' * bool(described)}"


def read(cls: type[T], values: Mapping, field: str) -> T:
    """Options of that class; ValueError that names `field` and what is wrong below it: an unknown
    name, a missing one, another type, a value out of range."""
    check_options(field, cls, values)
    missing = [
        option.name
        for option in dataclasses.fields(cls)  # type: ignore[arg-type]
        if option.name not in values
        and option.default is option.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{field} needs {', '.join(missing)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from None


def choose(kind: str, table: Mapping, name: str):
    """table[name]; ValueError that lists the known names otherwise."""
    if not isinstance(name, str) or name not in table:
        said = printable(repr(name))
        raise ValueError(f"{kind} {said} is unknown; known: {', '.join(table)}")
    return table[name]


def check_options(
    name: str, cls, options: Collection[str], *, reserved: frozenset[str] = frozenset()
):
    """ValueError that lists the known options unless all of `options` are fields of dataclass cls.

    reserved: fields that are no options (arrays, or a framework's own).
    """
    known = {field.name for field in dataclasses.fields(cls)} - reserved
    if unknown := set(options) - known:
        said = few(sorted(map(str, unknown)), limit=12)
        raise ValueError(f"{name} has no option {said}; known: {', '.join(sorted(known))}")

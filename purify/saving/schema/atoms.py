"""Types of single fields, and the check of a value against a type."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

FINITE = 1.7976931348623157e308
MAX_CLASSES = 100_000  # a label beyond is a mistake, and a name for each up to it fills the memory

# A part of the name of a file: never a way into another folder.
_NAME, _HASH = r"\A(?!\.{1,2}\Z)[^/\x00]{1,255}\Z", r"\A[0-9a-f]{64}\Z"
Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Number = Annotated[float, msgspec.Meta(ge=-FINITE, le=FINITE)]
Positive = Annotated[float, msgspec.Meta(ge=0, le=FINITE)]  # or 0
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Class = Annotated[int, msgspec.Meta(ge=0, lt=MAX_CLASSES)]
Answer = Annotated[int, msgspec.Meta(ge=-1, lt=MAX_CLASSES)]  # -1: none
Hash = Annotated[str, msgspec.Meta(pattern=_HASH)]
Side = Annotated[int, msgspec.Meta(gt=0, lt=2**31)]


_MEANINGS = {_NAME: "a plain name, without '/'", _HASH: "64 hexadecimal digits"}


def check(value: Any, kind: Any) -> Any:
    """The value as it is, which must be of that type; ValueError that says where it is not."""
    converted(value, kind)
    return value


def converted(value: Any, kind: Any) -> Any:
    """The value as that type has it: lists as tuples, and of a TypedDict no more than its fields;
    ValueError that says where it is not of that type."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = str(error)
        for pattern, meaning in _MEANINGS.items():
            said = said.replace(f"`str` matching regex {pattern!r}", meaning)
        raise ValueError(said) from None
    except UnicodeEncodeError:
        raise ValueError("a name that is no Unicode text") from None


def numbers(value: Mapping, kind: Any, *, but: tuple[str, ...]) -> Any:
    """The value, of which all fields but those must be of that type."""
    check({name: each for name, each in value.items() if name not in but}, dict[str, kind])
    return value

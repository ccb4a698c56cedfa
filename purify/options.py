"""Looking up a name in one of the project's literal tables, with errors that list what exists."""

import dataclasses
from collections.abc import Mapping

from purify.runtime.messages import few, printable


def choose(kind: str, table: Mapping, name: str):
    """table[name]; ValueError that lists the known names otherwise."""
    if not isinstance(name, str) or name not in table:
        said = printable(repr(name))
        raise ValueError(f"{kind} {said} is unknown; known: {', '.join(table)}")
    return table[name]


def check_options(name: str, cls, options: Mapping, *, reserved: frozenset[str] = frozenset()):
    """ValueError that lists the known options unless all of `options` are fields of dataclass cls.

    reserved: fields that are no options (arrays, or a framework's own).
    """
    known = {field.name for field in dataclasses.fields(cls)} - reserved
    if unknown := set(options) - known:
        said = few(sorted(map(str, unknown)), limit=12)
        raise ValueError(f"{name} has no option {said}; known: {', '.join(sorted(known))}")

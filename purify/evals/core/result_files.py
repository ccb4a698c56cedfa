"""results.json, written and read: with its version, and as its mode has it."""

from collections.abc import Mapping
from pathlib import Path

from purify.runtime.errors import FileError
from purify.runtime.messages import shown
from purify.saving import schema
from purify.saving.files import inside
from purify.saving.jsonl import read_json, write_json

RESULTS = "results.json"


def write_results(folder: Path, results: Mapping) -> Path:
    """Write the file of an evaluation's folder, whole or not at all; its path."""
    path = folder / RESULTS
    write_json(path, {"version": schema.VERSION, **results})
    return path


def read_results(folder: Path, mode: str) -> dict:
    """What an evaluation of that mode left in its folder, by this version or an earlier one.

    FileError that names the file where it is not such a one, is of a later version or is a link.
    """
    path = inside(folder, RESULTS)
    try:
        return schema.results(read_json(path), mode)
    except schema.LaterVersion as error:
        raise FileError(f"'{shown(path)}' {error}") from None
    except FileError:
        raise
    except ValueError as error:
        raise FileError(
            f"'{shown(path)}' is damaged ({error}): bring it back, or move it elsewhere and give "
            "the command of the evaluation again, which makes it of the images.jsonl beside it"
        ) from None

"""settings.json: what made a run or an evaluation what it is, and who may go on with it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from purify.runtime import parallel
from purify.runtime.errors import FileError
from purify.runtime.messages import few
from purify.runtime.paths import same_path
from purify.saving import schema
from purify.saving.files import inside, moved_aside
from purify.saving.jsonl import read_json, write_json
from purify.saving.locking import Lock

SETTINGS = "settings.json"
# What settings have not always had: a run of an earlier version is the same run without it.
LATER = ("class_names", "images")
# What a run leaves, and nothing but its settings says how it was made.
RESULTS = ("checkpoints", "images.jsonl", "arrays", "results.json")


def claim(workdir: Path, settings: Mapping, *below: str) -> Lock:
    """The right to write in the folder of a run, with settings.json in it: made, or checked to say
    that the run was made with the same settings, see `differing_settings`.

    workdir: as the user named it; below: the names that lead from there to the folder, none of them
    a link. In this order, so that what is refused changes nothing: the lock, a look, the file.
    Raises ValueError that lists the fields that differ, as resuming would mix two runs; and where
    results are there without the settings that made them.
    """
    folder = inside(workdir, *below)
    lock = Lock(folder)
    settings = json.loads(json.dumps(settings))
    try:
        # One process has the lock: another one could move away the file that this one writes.
        written = parallel.is_first_process() and _written(folder, settings)
        parallel.wait_for_all("the settings are there")
        if not written:
            _check_same(folder, settings)
    except BaseException:
        lock.release()
        raise
    return lock


def _written(folder: Path, settings: Mapping) -> bool:
    """Write settings.json where there is none, or a damaged one that the folder's name makes up
    for; False where it is to be looked at, or to be missed."""
    named = folder.name == settings_name(settings)  # the name says what the file said
    try:
        read_settings(folder)
        return False
    except FileNotFoundError:
        if _results(folder) and not named:
            return False
    except FileError:
        if not named:
            return False
        moved_aside(folder / SETTINGS, "damaged")
    write_json(folder / SETTINGS, settings)
    return True


def _check_same(folder: Path, settings: Mapping) -> None:
    try:
        there = read_settings(folder)
    except FileNotFoundError:
        raise FileError(
            f"{folder} has {few(_results(folder))}, but no {SETTINGS}, which says how they were "
            "made: bring it back, or move that folder elsewhere"
        ) from None
    if differing := differing_settings(there, settings):
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(differing)}; choose another "
            "--workdir, or move that folder elsewhere"
        )


def _results(folder: Path) -> list[str]:
    return [name for name in RESULTS if os.path.lexists(folder / name)]


def settings_name(settings: Mapping) -> str:
    """The name of the folder of an evaluation with these settings: 8 hex of their SHA-256."""
    return settings_hash(settings)[:8]


def settings_hash(settings: Mapping) -> str:
    """SHA-256 of settings, however their file is spelled."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_settings(folder: Path) -> dict:
    """The settings of the run in `folder`; FileError where the file is damaged."""
    try:
        return schema.settings(read_json(inside(folder, SETTINGS)))
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise FileError(
            f"{folder / SETTINGS} is damaged ({error}); bring it back, or move {folder} elsewhere "
            "and make it anew"
        ) from None


def differing_settings(old: Mapping, new: Mapping) -> list[str]:
    """`differing_fields` of the settings of two runs, less what makes them no other runs: fields
    that earlier versions did not record, and another path to the same images."""
    same = {field: new[field] for field in LATER if field in new and field not in old}
    if old.get("data") and new.get("data") and _same_place(old, new):
        same["data"] = {**old["data"], "path": new["data"].get("path")}
    return differing_fields({**old, **same}, dict(new))


def _same_place(a: Mapping, b: Mapping) -> bool:
    """Whether config.data.path of two runs' settings leads to the same images: to one file or
    folder, or by the hash of the images, which a run of an earlier version may lack."""
    known = "images" in a and "images" in b
    same = known and a["images"] == b["images"]
    return same or same_path(a["data"].get("path", ""), b["data"].get("path", ""))


def differing_fields(old, new, prefix: str = "") -> list[str]:
    """'a.b: 1 -> 2' for every leaf of two nested dicts that is not equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            line
            for key in keys
            for line in differing_fields(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [f"{prefix[:-1]}: {old!r} -> {new!r}"]

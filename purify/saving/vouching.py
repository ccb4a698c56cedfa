"""What vouches for a checkpoint: a list inside it of its files, each with its size and hash, and
the hash of the settings that say what its weights are of."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from purify.runtime.messages import few
from purify.saving import schema
from purify.saving.files import inside, open_file
from purify.saving.jsonl import read_json, write_json
from purify.saving.settings import settings_hash

HASHES = "sha256.json"  # in each checkpoint


def vouch(folder: Path, settings: Mapping | None) -> None:
    """Write the list into the folder of a checkpoint; settings: of its run, None where it has
    none."""
    files = {n: {"bytes": p.stat().st_size, "sha256": _hash(p)} for n, p in _files(folder).items()}
    of_settings = {} if settings is None else {"settings": settings_hash(settings)}
    write_json(folder / HASHES, {"files": files} | of_settings)


def check_files(folder: Path) -> str | None:
    """ValueError unless the files of a checkpoint are those that were saved; the hash of the
    settings of its run, None where its list has none, as those of earlier versions.

    Orbax reads a changed weight without complaint, and trips over a missing one in many lines.
    Names come before sizes, and these before contents: whatever else lies there is not read whole.
    """
    try:
        listed = schema.hashes(read_json(folder / HASHES))
    except FileNotFoundError:
        raise ValueError(f"no list of its files' hashes, {HASHES}") from None
    except ValueError:
        raise ValueError(f"damaged: {HASHES}") from None
    recorded, found = listed["files"], _files(folder)
    folders = {os.path.dirname(name) for name in recorded}
    wrong = [name for name in found.keys() - recorded.keys() if not _is_stray(name, folders)]
    wrong += recorded.keys() - found.keys()
    if not wrong:
        sizes = {name: path.stat().st_size for name, path in found.items()}
        wrong = [n for n, of in recorded.items() if of.get("bytes", sizes[n]) != sizes[n]]
    if not wrong:
        wrong = [name for name, of in recorded.items() if _hash(found[name]) != of["sha256"]]
    if wrong:
        raise ValueError(f"damaged: {few(sorted(wrong))}")
    return listed.get("settings")


def size_of(folder: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(path.stat().st_size for path in _files(folder).values())


def _files(folder: Path) -> dict[str, Path]:
    """Name below the folder -> path, of all but the list; FileError for a link, which leads to what
    is none of it."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = inside(Path(parent), name)
            if name in names and path != folder / HASHES:
                found[path.relative_to(folder).as_posix()] = path
    return found


def _is_stray(name: str, folders: set[str]) -> bool:
    """Whether it is what a desktop or a network file system leaves beside others (.DS_Store,
    .nfs0123): a hidden file, which nobody reads. Orbax does look into hidden folders."""
    parent, own = os.path.split(name)
    return own.startswith(".") and parent in folders


def _hash(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

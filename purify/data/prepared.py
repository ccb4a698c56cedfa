"""Prepared copies of TFDS's data sets: what TFDS is going to read is regular, and of a size that is
fit for it, before it reads any of it."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from purify.data.png_jpeg import memory_for_files
from purify.runtime.errors import FileError
from purify.runtime.messages import counted, shown
from purify.saving.schema.atoms import MAX_CLASSES

MAX_TEXT = 2**24  # bytes of each file that holds no records
FEW = 100_000  # examples that do no harm where they are not
RECORDS = (".array_record", ".tfrecord")  # in the names of the files that do


def check_prepared(folder: Path) -> None:
    """FileError unless all files of a data set's folder are regular, and those without records
    small: TFDS would wait for a pipe, and takes descriptions whole."""
    for path in _files(folder):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise FileError(f"'{shown(path)}' is no regular file")
        if not _has_records(path) and path.stat().st_size > MAX_TEXT:
            raise FileError(f"'{shown(path)}' has more than {MAX_TEXT:,} bytes")


def check_info(
    folder: Path, where: str, sizes: Mapping[str, int], class_names: Sequence[str]
) -> int:
    """Bytes that the images of a prepared version may take (see `check_total`), which says that it
    has splits of these sizes, and these classes; FileError where it cannot have them.

    where: how errors call the folder.
    """
    records = [path.stat().st_size for path in _files(folder) if _has_records(path)]
    total = sum(sizes.values())
    # A record takes more than a byte, compressed or not. That some are missing is told on reading.
    if min(sizes.values(), default=0) < 0 or total > max(sum(records), FEW):
        raise FileError(
            f"'{where}' says that it has {counted(total, 'example')}, but its records take "
            f"{counted(sum(records), 'byte')}: move that folder away and prepare it anew"
        )
    if len(class_names) > MAX_CLASSES:
        raise FileError(
            f"'{where}' has {len(class_names):,} names of classes: allowed are {MAX_CLASSES:,}"
        )
    return memory_for_files(records)


def _has_records(path: Path) -> bool:
    return any(part in path.name for part in RECORDS)


def _files(folder: Path) -> list[Path]:
    """Of the folder and those below; links to nothing are none."""
    found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.exists()]

"""One process per folder: what two would write at once is neither's."""

import fcntl
import os
from pathlib import Path
from typing import IO

from purify import parallel

NAME = "lock"


class Lock:
    """The right to write in a folder, until `release` or the end of the process, even by a kill.

    Of processes that share the work the first has it for all. Raises ValueError where another
    process of this machine, or of one that shares the file system, has it.
    """

    def __init__(self, folder: Path):
        self._file: IO | None = None
        if not parallel.is_first_process():
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / NAME, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise ValueError(
                f"{folder} is being written by another process ({owner or 'unknown'}); wait until "
                "it ends, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def __del__(self):
        self.release()  # where what held it broke off before it could

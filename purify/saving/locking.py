"""One process per folder: what two would write at once is neither's."""

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from purify.runtime import parallel
from purify.saving.files import make_folders, open_descriptor

NAME = "lock"

# How flock says that the file system has no locks: Lustre without its option flock, NFS without its
# lock service, some file systems in user space.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class Lock:
    """The right to write in a folder, until `release` or the end of the process, even by a kill.

    Of processes that share the work the first has it for all. Raises ValueError where another
    process of this machine, or of one that shares the file system, has it. Where the file system
    has no locks it says so and goes on without: clusters' scratch folders often have none.
    """

    def __init__(self, folder: Path):
        self._file: IO | None = None
        if not parallel.is_first_process():
            return
        make_folders(folder)
        descriptor = open_descriptor(folder / NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        file = os.fdopen(descriptor, "a+", encoding="utf-8", errors="backslashreplace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the only way in which flock says that another has it
            file.seek(0)
            owner = file.read(100).strip()
            file.close()
            raise ValueError(
                f"{folder} is being written by another process ({owner or 'unknown'}); wait until "
                "it ends, or choose another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise OSError(error.errno, error.strerror, str(folder / NAME)) from None
            print(
                f"warning: the file system of {folder} has no locks ({error.strerror}); do not "
                "give the same command twice at once: what two processes write there is neither's",
                file=sys.stderr,
            )
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

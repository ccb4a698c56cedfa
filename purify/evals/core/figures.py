"""Pictures of results: one that fails, for whatever reason, is left out, and costs nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from purify.runtime.ending import of_system
from purify.runtime.messages import printable, shown
from purify.saving.files import subfolder

T = TypeVar("T")


def attempted(path: Path, make: Callable[[], T]) -> T | None:
    """What `make` gives; where it fails None, after saying that the file at `path` is left out.
    Errors of the system, as of a full disk, pass: the same command draws it once they are mended.
    """
    try:
        return make()
    except Exception as error:  # whatever it is: the numbers are there already
        if of_system(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        print(f"left out: {shown(path)} ({type(error).__name__}: {printable(reason)})")
        return None


def drawn(path: Path, draw: Callable[[Path], object]) -> list[Path]:
    """The figure at `path` that `draw` makes there, in a list; an empty list where it fails, and no
    figure then, not even of earlier results."""

    def make() -> list[Path]:
        subfolder(path.parent.parent, path.parent.name)
        try:
            draw(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return [path]

    return attempted(path, make) or []

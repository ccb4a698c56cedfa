"""Progress of long work: a bar where a terminal can redraw it, lines at intervals elsewhere."""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

from tqdm import tqdm

Progress: TypeAlias = Any  # a tqdm, which has no types
INTERVAL = 10.0  # seconds between two lines, at least
# Of work whose units have no name.
BAR = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} gone, {remaining} left"
LINE = "{desc}{percentage:.0f} %, {elapsed} gone, {remaining} left{postfix}"
COUNTED_LINE = (
    "{desc}{percentage:.0f} %, {n_fmt} of {total_fmt} {unit}s, " + LINE.partition(", ")[2]
)


def progress(
    iterable: Iterable | None = None, *, unit: str = "", disable: bool = False, **options
) -> Progress:
    """A tqdm on stderr: over the iterable, or to be updated by hand.

    unit: what is counted, in the singular; '' for work of no common unit, of which the share that
        is done is shown alone. disable: show nothing, as TQDM_DISABLE=1 says for a whole process.
    options: tqdm's total, initial, desc, leave.
    """
    if unit:
        options |= dict(unit=unit)
    else:
        options |= dict(smoothing=0)  # the parts differ: their mean says how long the rest takes
    if "desc" in options:
        options["desc"] += ": "
    if disable:  # named only then: an argument wins over the environment
        options |= dict(disable=True)
    if _can_redraw():
        shape = {} if unit else dict(bar_format=BAR)
        return tqdm(iterable, mininterval=1.0, **shape, **options)
    return _Lines(iterable, bar_format=COUNTED_LINE if unit else LINE, miniters=1, **options)


def leave_bars() -> None:
    """Leave what is on the terminal as it is, the cursor on a line of its own: no more is drawn."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.leave = bar.leave and not isinstance(bar, _Lines)
        bar.close()


def _can_redraw() -> bool:
    """Whether stderr is a terminal that goes back to the begin of a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _breaks_off() -> bool:
    """Whether an exception is on its way: what ended the work says more than how far it was."""
    return sys.exc_info()[0] is not None


class _Lines(tqdm):
    """Whole lines in the place of a bar: one every INTERVAL, and the last state at the end."""

    def __init__(self, *args, **kwargs):
        self._next = time.monotonic() + INTERVAL
        super().__init__(*args, **kwargs)

    def display(self, msg=None, pos=None):
        """Say it, if it is time: tqdm also asks when a description changes."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, nolock=False):
        """Lines stay."""

    def close(self):
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.leave and not _breaks_off():
            self._next = 0.0
            self.display()

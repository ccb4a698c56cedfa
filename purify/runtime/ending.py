"""How a command ends before it is done: by one line that says what ended it, what is safe, and
which command goes on.

Nothing of JAX is imported here: signals are waited for before it is.
"""

import contextlib
import errno
import logging
import os
import re
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Protocol

from purify.runtime.errors import FileError
from purify.runtime.messages import printable, shown

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 10.0  # seconds in which a signal is followed; then, as after a second signal, it is forced
# Seconds in which two signals are one: a terminal and what started the command both send it.
APART = 0.5
KEPT = "what was finished is kept"
WHOLE = "no file is left half-written"

# Errors of the system that are mistakes in what it was asked for; all others are its own.
_ASKED_WRONGLY = (
    None,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries in C++ quote such an error in a text of theirs, and the file. Their errors have
# Python's own types, but begin with a status; what this package raises begins with its own words,
# so that no name in a file is taken for a number of the system.
_QUOTED = re.compile(
    r"[A-Z_]+: .*(?:\bos_error_code='(\d{1,3})'|\bOS error (\d{1,3})\b)", re.DOTALL
)
_QUOTED_FILE = re.compile(r'"(/[^"]*)"')

# What libraries say where another process does not answer.
_TOGETHER = re.compile("coordination service|barrier|gloo|connection closed", re.IGNORECASE)


class Ended(KeyboardInterrupt):
    """A signal asks the process to end: raised in the main thread, past all that handles errors."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class Refused(SystemExit):
    """The command cannot be done as it was given; message: the line that says why."""

    def __init__(self, message: str):
        self.message = message
        super().__init__(2)


class Company(Protocol):
    """Other processes that share the work, see purify.runtime.processes."""

    def tell(self, what: str) -> None:
        """Tell the others that this process ended, and what ended it."""

    def wait_for_news(self) -> None:
        """Return once it is sure that no other process has ended, or never."""


company: Company | None = None
keeps = True  # whether the command keeps what it has finished, and goes on; else it begins anew

_guarded = False  # whether `run` is there to catch what a signal raises
_signal: int | None = None  # the first that came
_last_word = threading.Lock()  # of the thread that ends the process; never given back
_folders: list[tempfile.TemporaryDirectory] = []


def temporary_folder() -> str:
    """A new folder among the temporary files that goes with the process, however it ends but by a
    kill."""
    _folders.append(tempfile.TemporaryDirectory(prefix="purify-"))
    return _folders[-1].name


def command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["python", *sys.argv])


def _safe() -> tuple[str, str]:
    """(what is safe, how to go on) of this command."""
    if keeps:
        return KEPT, f"the same command goes on: {command()}"
    return WHOLE, f"the same command begins anew: {command()}"


def catch_signals() -> None:
    """From now on signals end the process by a line, but for those that are ignored on purpose, as
    under nohup."""
    for number in CAUGHT:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
    sys.unraisablehook = _unraisable
    # Where the main thread is in compiled code, no handler runs: a thread sees signals at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def hush_libraries() -> None:
    """What Orbax and TFDS raise is one line at the end; their threads do not tell it before, each
    with its traceback. JAX's warnings stay."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def run(
    function: Callable[[], Any],
    *,
    show_traceback: Callable[[], bool] = lambda: False,
    lower: Callable[[], str] = lambda: "lower the batch size",
) -> None:
    """Call the function; where it fails, end the process by one line, or by the traceback of what
    is a defect of the program.

    show_traceback: whether the user has asked for it. lower: what makes it need less memory.
    """
    global _guarded
    try:
        try:
            _guarded = True
            function()
        except SystemExit as error:
            if error.code:
                raise
        sys.stdout.flush()
    except BaseException as error:
        _guarded = False  # from here on a signal ends it at once
        if company and _of_company(error) and not _signal:
            company.wait_for_news()  # the end of another breaks off what it does with this one
        _end_by(error, show_traceback(), lower)
    finally:
        _guarded = False


def end(code: int, line: str | None, *, told: str = "", hushed: bool = True) -> NoReturn:
    """End the process here and now, from whatever thread: with the last line on stderr, after which
    nothing else is said, and after telling the others why.

    told: what they say, after 'process 1'; by default the line. hushed: libraries say no more.
    """
    _last_word.acquire()  # a thread that comes second waits for its end
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(Exception):  # libraries have bars, too, in whatever state
        _leave_bars()
    with contextlib.suppress(OSError, ValueError):
        if line:
            print(line, file=sys.stderr, flush=True)
    if hushed:
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in {2, _descriptor(sys.stderr, 2)}:
            os.dup2(null, descriptor)
    if company:
        said = (line or f"code {code}").removeprefix("error: ").partition(f"; {_safe()[0]}")[0]
        company.tell(told or (said if said.startswith("ended by") else f"ended: {said}"))
    for folder in _folders:
        with contextlib.suppress(OSError):
            folder.cleanup()
    os._exit(code)


def of_system(error: BaseException) -> OSError | None:
    """The error of the system that an error came from, such as a full disk, wherever a library has
    put it; None where there is none, or it is a mistake in a path that was given."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno not in _ASKED_WRONGLY:
            return cause
        if not isinstance(cause, FileError) and (number := _QUOTED.match(str(cause))):
            code = int(number[1] or number[2])
            file = _QUOTED_FILE.search(str(cause))
            if code not in _ASKED_WRONGLY:
                return OSError(code, os.strerror(code), file and file[1])
    return None


def explain(error: BaseException, lower: Callable[[], str]) -> tuple[int, str | None] | None:
    """(exit code, line) of what ended a command; None for a defect of the program.

    lower: what makes it need less memory.
    """
    if isinstance(error, KeyboardInterrupt) or _signal:
        return by_signal(_signal or getattr(error, "number", signal.SIGINT))
    broken = any(isinstance(cause, BrokenPipeError) for cause in _chain(error))
    if broken and (isinstance(error, SystemExit) or _reader_left()):  # Rich has closed it already
        return 128 + signal.SIGPIPE, None  # who reads has enough, as `head` has
    if isinstance(error, Refused):
        return 2, f"error: {error.message}"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, None
    if failed := of_system(error):
        what, (safe, goes_on) = failed.strerror or str(failed), _safe()
        where = f": '{shown(failed.filename)}'" if isinstance(failed.filename, str) else ""
        once = "there is room" if failed.errno in _FULL else "that is mended"
        return 2, f"error: {what}{where}; {safe}; once {once}, {goes_on}"
    if _is_out_of_memory(error):
        what = f"error: out of memory ({_line(error)}); {_safe()[0]}"
        return 2, f"{what}; {lower()}; the command was: {command()}"
    if isinstance(error, ValueError | OSError):
        return 2, f"error: {_line(error)}"
    return None


def by_signal(number: int) -> tuple[int, str]:
    """(exit code, line) of a process that a signal ended."""
    name = signal.Signals(number).name
    return 128 + number, f"ended by {name}; {'; '.join(_safe())}"


def _end_by(error: BaseException, show_traceback: bool, lower: Callable[[], str]) -> None:
    ended = explain(error, lower)
    is_error = isinstance(error, Exception)
    if ended is None or (show_traceback and is_error):
        _leave_bars()
        traceback.print_exception(error)
        told = f"ended by {type(error).__name__}: {_line(error)}"
        end(ended[0] if ended else 1, None, told=told, hushed=False)
    end(*ended)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    global _signal
    if _signal is not None or _last_word.locked():
        return  # `_watch` has seen it
    _signal = number
    if _guarded:
        raise Ended(number)
    end(*by_signal(number))


def _watch(signals: int) -> None:
    """End the process at a second signal, or where it does not follow the first in time: it may be
    in compiled code, which no exception breaks off."""
    first, since = None, 0.0
    while True:
        wait = None if first is None else max(0.0, since + GRACE - time.monotonic())
        if select.select([signals], [], [], wait)[0]:
            number = os.read(signals, 1)[0]
            if number not in CAUGHT:
                continue
            if first is None:
                first, since = number, time.monotonic()
                continue
            if time.monotonic() < since + APART:
                continue
        end(*by_signal(first))


def _unraisable(problem: Any) -> None:
    """An exception within a destructor is lost: the process ends without it. And TensorStore's
    threads report to the event loop of Orbax, also where a full disk has closed it."""
    if isinstance(problem.exc_value, Ended):
        end(*by_signal(problem.exc_value.number))
    if str(problem.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(problem)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        for part in getattr(error, "exceptions", ()):  # of a group
            yield from _chain(part)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _of_jax(error: BaseException) -> bool:
    """Whether it comes from a computation on devices."""
    return any(
        type(cause).__name__ in ("JaxRuntimeError", "XlaRuntimeError") for cause in _chain(error)
    )


def _of_company(error: BaseException) -> bool:
    """Whether it may come from the end of another process."""
    return _of_jax(error) or any(_TOGETHER.search(str(cause)) for cause in _chain(error))


def _is_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(cause, MemoryError) or (_of_jax(cause) and "RESOURCE_EXHAUSTED" in str(cause))
        for cause in _chain(error)
    )


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more; a pipe or socket of a library's may break,
    too, which is an error like others."""
    waiting = select.poll()
    for descriptor in {_descriptor(sys.stdout, 1), _descriptor(sys.stderr, 2)}:
        waiting.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))


def _line(error: BaseException) -> str:
    """Its message as one line, whatever a library or a file has put into it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return printable(" ".join(filter(None, lines)) or type(error).__name__, limit=2000)


def _descriptor(stream: Any, usual: int) -> int:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return usual


def _leave_bars() -> None:
    if "purify.runtime.progress" in sys.modules:
        sys.modules["purify.runtime.progress"].leave_bars()

"""The processes of a command that shares its work: they begin and end together, each with a line.

Each has a parent that does nothing but wait for it: JAX's runtime ends a process from within, by
SIGABRT and pages of text, where another is lost; the parent makes one line of it.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from purify.runtime import ending
from purify.runtime.ending import KEPT, command

HEARTBEAT = 15  # seconds without a sign after which a process is lost
LINGER = 5.0  # seconds that the first process, which carries the news, waits for the others
_POLL = 0.3

# Keys of JAX's coordination service.
_ENDED = "purify/ended"  # 'process what', of the first that ended
_SEEN, _DONE = "purify/seen", "purify/done"  # folders, a name per process

_LOST = re.compile(r"stopped sending heartbeats\):(.*?)The tasks have crashed", re.DOTALL)
_NO_SERVICE = re.compile(r"coordination service|distributed service", re.IGNORECASE)


def join(address: str | None, count: int | None, process: int | None) -> None:
    """Connect to the others; Refused where that is not possible.

    Returns in a child of this process, before JAX is imported there; the parent waits for it, and
    its exit code is the child's.
    """
    _fork()
    import jax
    from jax._src.distributed import global_state

    # It would take SIGTERM for itself, and say nothing.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(address, count, process, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise ending.Refused(
            f"--distributed: {error}\nwhere no cluster is found, all of --coordinator_address="
            "HOST:PORT, --num_processes=N and --process_id=I are needed"
        ) from None
    ending.company = _Company(global_state)


def leave() -> None:
    """Return when all processes have done their work; the connection to them ends."""
    if isinstance(ending.company, _Company):
        ending.company.leave()


class _Company:
    """The other processes, as a client of JAX's coordination service knows them."""

    def __init__(self, state: Any):
        self._client, self._process, self._count = (
            state.client,
            state.process_id,
            state.num_processes,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def tell(self, what: str) -> None:
        with contextlib.suppress(Exception):  # another was first, or nobody is there to be told
            self._client.key_value_set(_ENDED, f"{self._process} {what}")
        self._say_seen()
        if self._process == 0:  # the news goes with it
            self._wait_until(_SEEN, LINGER)

    def wait_for_news(self) -> None:
        time.sleep(2 * HEARTBEAT - LINGER)  # `_watch`, or JAX, ends the process meanwhile

    def leave(self) -> None:
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_DONE}/{self._process}", "")
        self._wait_until(_DONE)
        self._stopped.set()
        self._thread.join()
        ending.company = None
        import jax

        jax.distributed.shutdown()

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL):
            process, _, what = self._get(_ENDED).partition(" ")
            if process and int(process) != self._process:
                ending.end(
                    2,
                    f"error: process {process} {what}; here, too, {KEPT}; once that is mended, the "
                    f"same command in each process goes on: {command()}",
                )

    def _wait_until(self, folder: str, seconds: float = float("inf")) -> None:
        """Until all processes have a name there."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._number_in(folder) < self._count:
            time.sleep(0.05)

    def _number_in(self, folder: str) -> int:
        try:
            return len(self._client.key_value_dir_get(folder))
        except Exception:  # JAX has no finer class for a service that does not answer
            return 0

    def _get(self, key: str) -> str:
        try:
            return self._client.key_value_try_get(key)
        except Exception:  # there is no such key; or the service is lost, which JAX will say
            return ""

    def _say_seen(self) -> None:
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_SEEN}/{self._process}", "")


def _fork() -> None:
    """Go on in a child, whose libraries' own words on file 2 only the parent reads."""
    noise, noise_end = os.pipe()
    alive, alive_end = os.pipe()  # closed when the parent ends
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(noise_end)
        os.close(alive)
        _wait_for(child, noise)
    os.close(noise)
    os.close(alive_end)
    own = os.dup(2)
    encoding = sys.stderr.encoding
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=encoding, errors="backslashreplace")
    os.dup2(noise_end, 2)
    os.close(noise_end)
    ending.catch_signals()  # by a thread, which the fork did not take along
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    ending.end(128 + signal.SIGKILL, None, told="was killed")


def _wait_for(child: int, noise: int) -> NoReturn:
    """The parent: hands signals on, and ends as the child does."""
    signal.set_wakeup_fd(-1)
    for number in ending.CAUGHT:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    heard = bytearray()

    def listen() -> None:
        while chunk := os.read(noise, 65536):
            heard[:] = (heard + chunk)[-65536:]

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    listener.join(1.0)
    if code >= 0:
        os._exit(code)
    code, line = explain_death(-code, heard.decode(errors="replace"))
    print(line, file=sys.stderr, flush=True)
    os._exit(code)


def explain_death(number: int, heard: str) -> tuple[int, str]:
    """(exit code, what to say) of a process that a signal ended; heard: what JAX said before."""
    goes_on = f"{KEPT}; the same command in each process, of any number, goes on: {command()}"
    if number == signal.SIGABRT and (lost := _LOST.search(heard)):
        names = re.findall(r"(?:^|task:)(\d+)\b", lost[1], re.MULTILINE)
        return 2, f"error: lost process {', '.join(names)}, which does not answer; {goes_on}"
    if number == signal.SIGABRT and _NO_SERVICE.search(heard):
        return 2, f"error: lost process 0, which holds the others together; {goes_on}"
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        name += ", as the system does where memory runs out"
    return 128 + number, f"{heard}error: ended by {name}; {goes_on}"

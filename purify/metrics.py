"""Training metrics: one JSON line a report, and the same as TensorBoard events."""

import contextlib
import secrets
import socket
import sys
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from purify import parallel
from purify.files import subfolder
from purify.jsonl import append_lines, read_lines, write_lines


class MetricWriter:
    """Appends {'step': s, name: value, ...} to <folder>/metrics.jsonl and to event files beside it.

    first_step: where this run starts. Lines of later steps, left by a run that was cut off after
    its last checkpoint, are dropped: those steps are about to be run again. Of several processes,
    the first one writes.
    """

    def __init__(self, folder: Path, *, first_step: int):
        self._writes = parallel.is_first_process()
        if not self._writes:
            return
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self._path) if line["step"] <= first_step]
        write_lines(self._path, kept)
        self._events = _Events(subfolder(folder, "events"), first_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        append_lines(self._path, [{"step": step, **values}])
        self._events.write(step, values)

    def close(self) -> None:
        if self._writes:
            self._events.close()


class _Events:
    """An event file of TensorBoard. It is a copy: where it cannot be written, one warning says so,
    and training goes on without it.

    TensorBoard's own writers hand the events to a thread, which a full disk ends with a traceback,
    and with it the process's own end.
    """

    def __init__(self, folder: Path, *, first_step: int):
        self._folder = folder
        self._file: RecordWriter | None = None
        with self._or_without():
            # No name that somebody else could have put a link under.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._file = RecordWriter(str(folder / f"{name}.{secrets.token_hex(4)}"))
            self._add(file_version="brain.Event:2")
            # TensorBoard hides what earlier files hold of this step and of later ones.
            self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        with self._or_without():
            for name, value in values.items():
                self._add(step=step, summary=scalar(name, value))
            self._file.flush()  # so that a killed run has lost none

    def close(self) -> None:
        if self._file is not None:
            with self._or_without():
                self._file.close()

    def _add(self, **fields) -> None:
        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    @contextlib.contextmanager
    def _or_without(self):
        try:
            yield
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):  # of what it could not write either
                    self._file.close()
            self._file = None
            print(
                f"warning: no more events for TensorBoard in {self._folder} ({error.strerror}); "
                "metrics.jsonl has the same numbers",
                file=sys.stderr,
            )

"""Training metrics: one JSON line a report, and the same as TensorBoard events."""

import contextlib
import secrets
import sys
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from purify import parallel, schema
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
        lines = read_lines(self._path, schema.metrics, mend=True)
        kept = [line for line in lines if line["step"] <= first_step]
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
        self._writer: EventsWriter | None = None
        with self._or_without():
            # No name that somebody else could have put a link under.
            self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
            # TensorBoard hides what earlier files hold of this step and of later ones.
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=first_step + 1, session_log=start)
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        with self._or_without():
            if self._writer is None:
                return
            for name, value in values.items():
                event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                self._writer.write_event(event)
            self._writer.flush()  # so that a killed run has lost none

    def close(self) -> None:
        with self._or_without():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _or_without(self):
        try:
            yield
        except OSError as error:
            self._writer = None
            print(
                f"warning: no more events for TensorBoard in {self._folder} ({error.strerror}); "
                "metrics.jsonl has the same numbers",
                file=sys.stderr,
            )

"""Training metrics: one JSON line a report, and the same as TensorBoard events."""

import secrets
import socket
import struct
import sys
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from purify.runtime import parallel
from purify.saving import schema
from purify.saving.files import append, subfolder
from purify.saving.jsonl import append_lines, read_lines, write_lines


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


class _Events:
    """An event file of TensorBoard. It is a copy: where it cannot be written, one warning says so,
    and training goes on without it.

    TensorBoard's own writers hand the events to a thread, which a full disk ends with a traceback,
    and which the process's end then waits for.
    """

    def __init__(self, folder: Path, *, first_step: int):
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._path: Path | None = folder / f"{name}.{secrets.token_hex(4)}"
        # TensorBoard hides what earlier files hold of this step and of later ones.
        start = SessionLog(status=SessionLog.START)
        self._append(
            dict(file_version="brain.Event:2"), dict(step=first_step + 1, session_log=start)
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._append(*(dict(step=step, summary=scalar(k, v)) for k, v in values.items()))

    def _append(self, *events: dict) -> None:
        if self._path is None:
            return
        now = time.time()
        try:
            append(self._path, b"".join(_record(Event(wall_time=now, **event)) for event in events))
        except OSError as error:
            print(
                f"warning: no more events for TensorBoard in {self._path.parent} "
                f"({error.strerror}); metrics.jsonl has the same numbers",
                file=sys.stderr,
            )
            self._path = None


def _record(event: Event) -> bytes:
    """An event as its file has it: length, checksum, content, checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    first, last = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + first + content + last

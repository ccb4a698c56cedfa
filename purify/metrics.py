"""Training metrics: one JSON line a report, and the same as TensorBoard events."""

from pathlib import Path

import tensorboardX

from purify import parallel, schema
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
        # TensorBoard hides what earlier files hold of purge_step and of later steps.
        self._events = tensorboardX.SummaryWriter(str(folder / "events"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        append_lines(self._path, [{"step": step, **values}])
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()  # so that a killed run has lost none

    def close(self) -> None:
        if self._writes:
            self._events.close()

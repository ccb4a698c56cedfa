"""The folder of one evaluation: per-image records and arrays that survive a crash."""

import contextlib
import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

from purify.evals.core import sealed_arrays
from purify.evals.core.agreement import check_scored
from purify.runtime import ending, parallel
from purify.runtime.errors import FileError
from purify.runtime.messages import few
from purify.saving import schema
from purify.saving.files import inside, subfolder
from purify.saving.jsonl import Damaged, append_lines, numbered_lines, parse, read_lines
from purify.saving.settings import claim, differing_settings, read_settings, settings_name
from purify.saving.temporary import clear_partial

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


# In place of signatures that are not there any more.
LOST: dict = dict.fromkeys(("time", "commit", "python", "machine"), "unknown") | {"versions": {}}


def read_records(
    path: Path, *, mend: bool = False, strict: bool = True
) -> dict[str, dict[int, dict]]:
    """row -> dataset index -> record, of an images.jsonl.

    A line is damaged where it is no record (see schema.record), or has other values, but for
    seconds, than another of its row and image: which of them is right nobody knows, so that all of
    that image are. mend: damaged lines are told of and put into images.jsonl.damaged, and what is
    not whole is cut off, for the process that computes such images again. Else they are a FileError
    or, unless strict, told of and left out.
    """
    records: dict[str, dict[int, dict]] = {}
    damaged = Damaged(path)
    numbers: dict[tuple[str, int], list[int]] = {}  # of the lines of each image
    differing: set[tuple[str, int]] = set()
    for number, line in numbered_lines(path, cut=mend):
        try:
            record = schema.record(parse(line))
            if {"predictions", "correct", "label"} <= record.keys():
                check_scored(record)
        except ValueError as error:
            damaged[number] = str(error)
            continue
        row, index = record["row"], record["index"]
        earlier = records.setdefault(row, {}).setdefault(index, record)
        if _untimed(earlier) != _untimed(record):
            differing.add((row, index))
        numbers.setdefault((row, index), []).append(number)
    for row, index in differing:
        del records[row][index]
        for number in (own := numbers[row, index]):
            damaged[number] = f"lines {few(own)}, of the same row and image, have different values"
    if damaged and strict and not mend:
        number, why = min(damaged.items())
        raise FileError(
            f"{path}: line {number} is damaged ({why}); the command of its evaluation, given "
            "again, puts it aside and computes that image anew"
        )
    damaged.tell(aside=mend)
    return records


def _untimed(record: Mapping) -> dict:
    return {name: value for name, value in record.items() if not name.endswith("seconds")}


def folder_of(workdir: Path, mode: str, settings: Mapping) -> Path:
    """<workdir>/<mode>/<see settings_name>, made or not; or the folder of the same evaluation that
    is there already under another path of its data set, see differing_settings."""
    named = inside(workdir, mode, settings_name(settings))
    if not settings.get("data", {}).get("path") or named.exists():
        return named
    settings = json.loads(json.dumps(settings))
    for folder in sorted((workdir / mode).glob("*")):
        with contextlib.suppress(ValueError, OSError):  # another's: its own command says so
            inside(workdir, mode, folder.name)
            if not differing_settings(read_settings(folder), settings):
                return folder
    return named


class Store:
    """The folder of these settings (see folder_of), made on first use.

    Records (dicts with 'row' and 'index') live in images.jsonl, one line an image, and arrays in
    files of their own (see evals.sealed_arrays). An image is done when its line is there; its
    entries of arrays are on disk before that, and their seals in the line. What computed them is in
    provenance.jsonl, one line for every process that did. Where several processes share the work,
    all but the first keep their records in a copy that goes with them. One evaluation has the
    folder to itself (see claim) until it is closed: `with Store(...) as store`.

    stopped: what --max_images left for later, in words, see terminal.stopped_early; '' for nothing.
    """

    def __init__(self, workdir: Path, mode: str, settings: Mapping, *, stopped: str = ""):
        self.stopped = stopped
        self.folder = folder_of(workdir, mode, settings)
        self._lock = claim(workdir, settings, mode, self.folder.name)
        if parallel.is_first_process():
            for folder in (self.folder, *filter(Path.is_dir, self.folder.iterdir())):
                clear_partial(folder)
        parallel.wait_for_all("the folder is there")
        if not parallel.is_first_process():
            copy = Path(ending.temporary_folder())
            shutil.copytree(self.folder, copy, dirs_exist_ok=True, ignore=_irregular)
            self.folder = copy
        parallel.wait_for_all("the folder is copied")
        self._records = read_records(self._path, mend=True)
        self._known: dict[str, set[int]] = {}  # images whose entries of an array were looked at
        self._signed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lock.release()

    @property
    def _path(self) -> Path:
        return self.folder / "images.jsonl"

    def sign(self, **shape) -> None:
        """Note what is about to compute records, and in which shape; before the first of them.
        Once is enough: later calls do nothing."""
        if self._signed:
            return
        self._signed = True
        path = self.folder / "provenance.jsonl"
        read_lines(path, schema.signature, mend=True)
        append_lines(path, [provenance() | shape])

    def signatures(self) -> list[dict]:
        """`provenance` of every process that computed records, in order."""
        return read_lines(self.folder / "provenance.jsonl", schema.signature) or [LOST]

    def computed_by(self) -> dict:
        """What results.json says of it: the last of the signatures, field by field, and all; and
        whether there are more images to come."""
        signatures = self.signatures()
        return {**signatures[-1], "computed_by": signatures, "stopped": self.stopped}

    def records(self, row: str) -> dict[int, dict]:
        """dataset index -> record, of the images of that row that are done."""
        return self._records.get(row, {})

    def append(self, row: str, records: Sequence[dict]) -> None:
        """Those of images that are done already are left out: where a batch decides together it was
        computed whole again."""
        done = self._records.setdefault(row, {})
        new = [{"row": row, **record} for record in records if record["index"] not in done]
        append_lines(self._path, new)
        done.update((record["index"], record) for record in new)

    def forget(self, row: str, indices: Collection[int], why: str) -> None:
        """Put the records of these images aside, for them to be computed again."""
        lost = Damaged(self._path, most=math.inf)  # they are whole
        indices = set(indices) & self.records(row).keys()
        if not indices:
            return
        for number, line in numbered_lines(self._path):
            record = parse(line)
            if record["row"] == row and record["index"] in indices:
                lost[number] = f"{row}, index {record['index']}: {why}"
        lost.tell(aside=True)
        for index in indices:
            del self._records[row][index]

    def array(
        self, name: str, shape: tuple[int | None, ...], row: str = "", indices: Sequence[int] = ()
    ) -> np.ndarray:
        """The array of arrays/<name>.npy, float32, to be read only; NaN where nothing was written.
        shape: None for any length.

        row, indices: where given, entry i is of the image with dataset index indices[i], and must
        be what the records of that row have the seal of, or NaN: FileError otherwise.
        """
        path = inside(self.folder, "arrays", f"{name}.npy")
        array, known = sealed_arrays.read(path, shape), self._known.setdefault(name, set())
        for at, index in enumerate(map(int, indices)):
            expected = self.records(row).get(index, {}).get("arrays", {}).get(name)
            if index in known or expected is None or np.isnan(array[at]).all():
                continue
            if sealed_arrays.seal(array[at]) != expected:
                raise FileError(
                    f"{path} is damaged: its entry of index {index} is not the one that was "
                    f"written; {sealed_arrays.WAY_OUT}"
                )
            known.add(index)
        return array

    def write(
        self, name: str, shape: tuple[int, ...], at: Sequence[int], entries: np.ndarray
    ) -> list[str]:
        """Write entries of arrays/<name>.npy, which is made if it is not there; their seals, for
        the records that are appended then."""
        subfolder(self.folder, "arrays")
        return sealed_arrays.write(inside(self.folder, "arrays", f"{name}.npy"), shape, at, entries)


def _irregular(folder: str, names: list[str]) -> set[str]:
    """What is no folder of results, nor a file of one."""
    paths = {name: Path(folder) / name for name in names}
    return {
        n for n, path in paths.items() if path.is_symlink() or not (path.is_file() or path.is_dir())
    }


def provenance() -> dict:
    """UTC time, git commit (with '+' where the tree has changes), package versions, machine, and
    precision of products and convolutions: 'default' is float32 on CPUs, TF32 on NVIDIA's GPUs
    since Ampere."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        return result.stdout.strip() if result.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD") or "unknown"
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    except FileNotFoundError:  # git is not installed
        commit, changed = "unknown", ""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + changed,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": _processor(),
        "precision": precision or "default",
    }


def _processor() -> str:
    """What computed: the accelerators if there are any, else the CPU's model name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()

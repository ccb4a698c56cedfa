"""The folder of one evaluation: per-image records and arrays that survive a crash."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

from purify import ending, parallel
from purify.checkpoint import claim, differing_settings
from purify.files import writing
from purify.jsonl import append_lines, read_lines
from purify.locking import Lock

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


# In place of signatures that are not there any more.
LOST: dict = dict.fromkeys(("time", "commit", "python", "machine"), "unknown") | {"versions": {}}


class Record(dict):
    """A line of an images.jsonl; `where`: its place, which the error says where a field is
    missing."""

    def __init__(self, fields: Mapping, where: str):
        super().__init__(fields)
        self.where = where

    def __missing__(self, field: str):
        raise ValueError(
            f"{self.where} has no {field!r}: it is damaged; remove it, and the same command "
            "computes that image again"
        )


def read_records(path: Path, *, repair: bool = False) -> dict[str, dict[int, dict]]:
    """row -> dataset index -> record, of an images.jsonl; repair: as in read_lines.

    ValueError where a line is no record, or has other values, but for seconds, than an earlier one
    of its row and image: which of the two is right nobody knows. And where a field is asked for
    that its record lacks.
    """

    def untimed(record: dict) -> dict:
        return {name: value for name, value in record.items() if not name.endswith("seconds")}

    records: dict[str, dict[int, dict]] = {}
    for number, record in enumerate(read_lines(path, mend=repair), start=1):
        if not isinstance(record, dict) or not {"row", "index"} <= record.keys():
            raise ValueError(f"{path}: line {number} is no record of an image and row")
        record = Record(record, f"{path}: line {number}")
        first = records.setdefault(record["row"], {}).setdefault(record["index"], record)
        if first is not record and untimed(first) != untimed(record):
            raise ValueError(
                f"{path}: line {number} has other values than an earlier one of the same row and "
                "image; remove the wrong one"
            )
    return records


def folder_of(workdir: Path, mode: str, settings: Mapping) -> Path:
    """<workdir>/<mode>/<8 hex of the settings' SHA-256>, made or not; or the folder of the same
    evaluation that is there already under another path of its data set, see differing_settings."""
    text = json.dumps(settings, sort_keys=True)
    named = workdir / mode / hashlib.sha256(text.encode()).hexdigest()[:8]
    if not settings.get("data", {}).get("path") or named.exists():
        return named
    for path in sorted((workdir / mode).glob("*/settings.json")):
        with contextlib.suppress(ValueError, OSError):  # another's: its own command says so
            there = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(there, dict) and not differing_settings(there, json.loads(text)):
                return path.parent
    return named


class Store:
    """The folder of these settings (see folder_of), made on first use.

    Records (dicts with 'row' and 'index') live in images.jsonl, one line an image, and arrays in
    files of their own, [n, ...] float32, written in place. An image is done when its line is there;
    its arrays are on disk before that. What computed them is in provenance.jsonl, one line for
    every process that did. Where several processes share the work, all but the first keep their
    records in a copy that goes with them. One evaluation has the folder to itself (see Lock) until
    it is closed: `with Store(...) as store`.

    stopped: what --max_images left for later, in words, see terminal.stopped_early; '' for nothing.
    """

    def __init__(self, workdir: Path, mode: str, settings: Mapping, *, stopped: str = ""):
        self.stopped = stopped
        self.folder = folder_of(workdir, mode, settings)
        claim(self.folder, settings)
        self._lock = Lock(self.folder)
        parallel.wait_for_all("the folder is there")
        if not parallel.is_first_process():
            copy = ending.temporary_folder()
            self.folder = Path(shutil.copytree(self.folder, copy, dirs_exist_ok=True))
        parallel.wait_for_all("the folder is copied")
        self._records = read_records(self._path, repair=True)
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
        read_lines(path, mend=True)
        append_lines(path, [provenance() | shape])

    def signatures(self) -> list[dict]:
        """`provenance` of every process that computed records, in order."""
        return read_lines(self.folder / "provenance.jsonl") or [LOST]

    def computed_by(self) -> dict:
        """What results.json says of it: the last of the signatures, field by field, and all; and
        whether there are more images to come."""
        signatures = self.signatures()
        return {**signatures[-1], "computed_by": signatures, "stopped": self.stopped}

    def records(self, row: str) -> dict[int, dict]:
        """dataset index -> record, of the images of that row that are done."""
        return self._records.get(row, {})

    def append(self, row: str, records: list[dict]) -> None:
        """Those of images that are done already are left out: where a batch decides together it was
        computed whole again."""
        done = self._records.setdefault(row, {})
        new = [{"row": row, **record} for record in records if record["index"] not in done]
        append_lines(self._path, new)
        done.update((record["index"], record) for record in new)

    def array(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        """The float32 array arrays/<name>.npy, NaN where nothing was written yet."""
        path = self.folder / "arrays" / f"{name}.npy"
        if path.exists():
            try:
                array = np.lib.format.open_memmap(path, mode="r+")
            except ValueError as error:
                raise ValueError(
                    f"{path} is damaged ({error}); bring it back, or move it away"
                ) from None
            if array.shape != shape:
                raise ValueError(f"{path} has shape {array.shape}, expected {shape}; move it away")
            return array
        path.parent.mkdir(exist_ok=True)
        with writing(path) as file:  # a file that exists is whole, and has its place on disk
            np.save(file, np.full(shape, np.nan, np.float32))
        return np.lib.format.open_memmap(path, mode="r+")

    def check_there(
        self, images: np.ndarray, positions: Sequence[int], name: str, row: str
    ) -> None:
        """ValueError unless the images of arrays/<name>.npy are there at these positions, which
        lines of that row say are done."""
        if not np.isfinite(images[positions]).all():
            raise ValueError(
                f"{self.folder}/arrays/{name}.npy lacks images that images.jsonl has lines of; "
                f"bring the file back, or remove the lines whose row is {row!r}"
            )


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

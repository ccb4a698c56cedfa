"""Checkpoints: Orbax in <workdir>/<role>/checkpoints, and the settings that made them beside it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from purify import models, parallel, purifiers, schema
from purify.defense import Defense
from purify.files import FileError, inside
from purify.jsonl import read_json, write_json
from purify.locking import Lock
from purify.networks import Classifier, Score
from purify.paths import as_given, is_of_system, plain_spelling, same_path
from purify.types import PyTree

# role -> the mode of main.py that makes its checkpoint
ROLES = {"classifier": "train_classifier", "score": "train"}

HASHES = "sha256.json"  # in each checkpoint, of its files
# What settings have not always had: a run of an earlier version is the same run without it.
LATER = ("class_names", "images")


class NeedsMode(FileNotFoundError):
    """Something is not there that `mode` of main.py makes, in `workdir`."""

    def __init__(self, message: str, *, mode: str, workdir: Path):
        self.mode, self.workdir = mode, workdir
        super().__init__(message)


class MissingCheckpoint(NeedsMode):
    """There is no checkpoint of a role."""

    def __init__(self, folder: Path, role: str):
        mode = ROLES[role]
        message = f"no {role} checkpoint in {folder}: make it with --mode={mode}"
        super().__init__(message, mode=mode, workdir=folder.parent)


class Checkpoints:
    """The checkpoints of one training run, newest two kept; a save is whole or absent.

    training: this process is the one that writes them, alone (see Lock), and may clear away what a
    killed one left half-written; a reader leaves alone what may be a save in progress.
    """

    def __init__(self, folder: Path, *, training: bool = False):
        self._lock = Lock(folder) if training else None
        self._folder = folder.absolute()
        self._root = self._folder / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            Path(plain_spelling(str(self._folder))) / "checkpoints",
            preservation_policy=ocp.training.preservation_policies.LatestN(2),
            cleanup_tmp_directories=training,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()
        if self._lock:
            self._lock.release()

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def latest_path(self) -> Path | None:
        return None if self.latest_step is None else self._root / str(self.latest_step)

    def save(self, step: int, state: PyTree) -> None:
        """Save the state and read it back once, into the host's memory; ValueError unless what is
        read is what was given, bit for bit."""
        self._checkpointer.save(step, state)
        path = self._root / str(step)
        try:
            same = _same_bits(self._checkpointer.load(step, _on_host(state)), state)
        except Exception as error:
            self._refuse(path, error, "it was just written: choose another --workdir")
        if not same:
            raise ValueError(
                f"checkpoint {path} reads otherwise than it was written: the disk or file system "
                "there is not to be relied on; choose another --workdir"
            )
        if parallel.is_first_process():
            write_json(path / HASHES, _file_hashes(path))

    def restore(self, abstract_state: PyTree | None = None) -> PyTree:
        """The newest state, placed as abstract_state says, by default NumPy arrays on the host
        (whatever devices saved it); ValueError if its files are damaged."""
        path = self.latest_path
        advice = self._how_to_go_on()
        try:
            if _check_files(path):
                advice = "its files are those that were saved: keep them"
            if abstract_state is None:
                abstract_state = _on_host(self._checkpointer.metadata(self.latest_step).metadata)
            return self._checkpointer.load(self.latest_step, abstract_state)
        except Exception as error:
            self._refuse(path, error, advice)

    def _how_to_go_on(self) -> str:
        """After damage to the newest checkpoint."""
        if len(self._checkpointer.checkpoints) > 1:
            return "bring it back, or move it elsewhere to go on from the one before it"
        return f"bring it back, or move {self._folder} elsewhere and make it anew"

    def _refuse(self, path: Path, error: Exception, advice: str) -> NoReturn:
        """Orbax raises many kinds for what it cannot read, all of which become one line; but what
        memory and system lack is no fault of the files, and stays as it is."""
        cause: BaseException = error
        while cause.__cause__:  # the first in a chain is the one that says what is wrong
            cause = cause.__cause__
        if is_of_system(cause):
            raise cause
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)
        reason = as_given(reason)[:200]
        raise ValueError(f"checkpoint {path} cannot be read ({reason}); {advice}") from error


def _on_host(state: PyTree) -> PyTree:
    """What makes Orbax load such a state as NumPy arrays; nothing is filled in."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)


def _same_bits(a: PyTree, b: PyTree) -> bool:
    """Leaf by leaf, so that one leaf at a time is copied from its device."""
    return all(
        np.array_equal(*(np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in pair))
        for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in `folder` has come to a checkpoint; one that has only begun has none."""
    steps = (path.name for path in (folder / "checkpoints").glob("*"))
    return (folder / "settings.json").exists() and any(map(str.isdecimal, steps))


def _file_hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != HASHES:
            with open(path, "rb") as file:
                name = path.relative_to(folder).as_posix()
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _check_files(folder: Path) -> bool:
    """Whether the files of a checkpoint are known to be those that were saved; ValueError where
    they are known not to be.

    Orbax reads a changed weight without complaint, and trips over a missing one in many lines. A
    run killed right after a save has no hashes of it: then Orbax's own checks must do.
    """
    if not (folder / HASHES).exists():
        return False
    try:
        recorded = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"damaged: {HASHES}") from None
    found = _file_hashes(folder)
    if damaged := [name for name, value in recorded.items() if found.get(name) != value]:
        raise ValueError(f"damaged: {', '.join(damaged)}")
    return True


def claim(folder: Path, settings: Mapping) -> None:
    """Write settings.json, or check that the run in `folder` was made with the same settings, see
    `differing_settings`.

    Raises ValueError that lists the fields that differ: resuming would mix two runs.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        if differing := differing_settings(read_settings(folder), settings):
            raise ValueError(
                f"{folder} was made with other settings: {'; '.join(differing)}; choose another "
                "--workdir, or move that folder elsewhere"
            )
        return
    if parallel.is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def read_settings(folder: Path) -> dict:
    path = inside(folder, "settings.json")
    try:
        return schema.settings(read_json(path))
    except ValueError as error:
        raise FileError(
            f"{path} is damaged; bring it back, or move {folder} elsewhere and make it anew "
            f"({error})"
        ) from None


def differing_settings(old: Mapping, new: Mapping) -> list[str]:
    """`differing_fields` of the settings of two runs, less what makes them no other runs: fields
    that earlier versions did not record, and another path to the same images."""
    same = {field: new[field] for field in LATER if field in new and field not in old}
    if old.get("data") and new.get("data") and _same_place(old, new):
        same["data"] = {**old["data"], "path": new["data"].get("path")}
    return differing_fields({**old, **same}, dict(new))


def _same_place(a: Mapping, b: Mapping) -> bool:
    """Whether config.data.path of two runs' settings leads to the same images: to one file or
    folder, or by the hash of the images, which a run of an earlier version may lack."""
    known = "images" in a and "images" in b
    same = known and a["images"] == b["images"]
    return same or same_path(a["data"].get("path", ""), b["data"].get("path", ""))


def differing_fields(old, new, prefix: str = "") -> list[str]:
    """'a.b: 1 -> 2' for every leaf of two nested dicts that is not equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            line
            for key in keys
            for line in differing_fields(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [f"{prefix[:-1]}: {old!r} -> {new!r}"]


def load_classifier(workdir: Path | str) -> Classifier:
    """The classifier trained in `workdir`, averaged (EMA) weights."""
    variables, settings = load_variables(Path(workdir), "classifier")
    shape = tuple(settings["image_shape"])
    return Classifier(variables, models.build(**settings["network"]), image_shape=shape)


def load_score(workdir: Path | str) -> Score:
    """The score model trained in `workdir`, averaged (EMA) weights."""
    variables, settings = load_variables(Path(workdir), "score")
    network, shape = models.build(**settings["network"]), tuple(settings["image_shape"])
    return Score(variables, network, settings["head"], image_shape=shape)


def load_defense(
    workdir: Path | str,
    purifier: str = "adp",
    *,
    num_runs: int = 10,
    average: str = "logits",
    **options,
) -> Defense:
    """The classifier trained in `workdir` behind a purifier with the score model trained there.

    purifier, options: a name of purify.purifiers.PURIFIERS and its fields, such as sigma=0.25.
    num_runs, average: see Defense. Raises MissingCheckpoint, and ValueError for unknown names.
    """
    score = load_score(workdir) if purifiers.needs_score(purifier) else None
    built = purifiers.build(purifier, score, **options)
    return Defense(built, load_classifier(workdir), num_runs=num_runs, average=average)


def load_variables(workdir: Path, role: str) -> tuple[PyTree, dict]:
    """(averaged variables, settings) of the role's newest checkpoint in `workdir`."""
    if role not in ROLES:
        raise ValueError(
            f"'{workdir / role}' is no run: its last part must be {' or '.join(ROLES)}"
        )
    folder = workdir / role
    if not (folder / "settings.json").exists():
        raise MissingCheckpoint(folder, role)
    with Checkpoints(folder) as checkpoints:
        if checkpoints.latest_step is None:
            raise MissingCheckpoint(folder, role)
        state = checkpoints.restore()
    return jax.tree.map(jax.numpy.asarray, state["ema"]), read_settings(folder)


def image_hash(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of what a network is trained on: images [n, H, W, C] and labels [n]."""
    return weight_hash({"images": images, "labels": labels})


def weight_hash(variables: PyTree) -> str:
    """SHA-256 over the sorted (path, dtype, shape, bytes) of all leaves, in hex."""
    digest = hashlib.sha256()
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

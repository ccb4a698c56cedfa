"""Checkpoints: Orbax in <workdir>/<role>/checkpoints, and the settings that made them beside it."""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from purify import models, purifiers
from purify.defense import Defense
from purify.models.networks import Classifier, Score
from purify.runtime import parallel
from purify.runtime.errors import FileError
from purify.runtime.messages import shown
from purify.saving import states
from purify.saving.files import inside, moved_aside, subfolder, sync_folder, sync_tree
from purify.saving.locking import Lock
from purify.saving.settings import SETTINGS, read_settings, settings_hash
from purify.saving.temporary import PARTIAL, clear_partial, remove
from purify.saving.vouching import HASHES, check_files, size_of, vouch
from purify.types import PyTree

# role -> the mode of main.py that makes its checkpoint
ROLES = {"classifier": "train_classifier", "score": "train"}

KEPT = 2  # checkpoints


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
    lock: that of the folder, for a process that has it already (see claim).
    """

    def __init__(self, folder: Path, *, training: bool = False, lock: Lock | None = None):
        training = training or lock is not None
        self._lock = lock or (Lock(folder) if training else None)
        self.folder = folder.absolute()
        self._root = self.folder / "checkpoints"
        if training and parallel.is_first_process():
            subfolder(self.folder, "checkpoints")
            self._clear()
        if training:
            parallel.wait_for_all("the checkpoints are cleared")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lock:
            self._lock.release()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        return sorted(int(path.name) for path in _saved(self.folder))

    @property
    def latest_step(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def latest_path(self) -> Path | None:
        return None if self.latest_step is None else self._root / str(self.latest_step)

    def save(self, step: int, state: PyTree) -> None:
        """Save the state, read it back once, into the host's memory, and give it its name with the
        hashes of its files inside; ValueError unless what is read is what was given, bit for bit.
        """
        path = self._root / str(step)
        temporary = path.with_name(f".{step}.{parallel.shared_token()}{PARTIAL}")
        try:
            states.save(temporary, state)
            same = states.same_bits(states.load(temporary, states.on_host(state)), state)
        except Exception as error:
            self._refuse(path, error, "it was just written: choose another --workdir")
        if not same:
            raise ValueError(
                f"checkpoint {path} reads otherwise than it was written: the disk or file system "
                "there is not to be relied on; choose another --workdir"
            )
        if parallel.is_first_process():
            vouch(temporary, self._settings())
            sync_tree(temporary)
            temporary.rename(path)
            sync_folder(self._root)
            self._remove_old()
        parallel.wait_for_all(f"checkpoint {step} has its name")

    def restore(self, abstract_state: PyTree | None = None) -> PyTree:
        """The newest state, see `restore_latest`."""
        return self.restore_latest(abstract_state)[1]

    def restore_latest(self, abstract_state: PyTree | None = None) -> tuple[int, PyTree]:
        """(step, state) of the newest checkpoint, placed as abstract_state says, by default NumPy
        arrays on the host (whatever devices saved it); FileError if its files are damaged."""
        path = self.latest_path
        while True:
            try:
                return int(path.name), self._restore(path, abstract_state)
            except Exception:
                # A trainer saves newer ones meanwhile, and removes those that this one reads.
                newer = self.latest_path
                if newer in (path, None):
                    raise
                path = newer

    def _restore(self, path: Path, abstract_state: PyTree | None) -> PyTree:
        try:
            made_with = check_files(path)
        except Exception as error:
            self._refuse(path, error, self._how_to_go_on())
        self._check_settings(path, made_with)
        try:
            if abstract_state is None:
                abstract_state = states.declared(path, size_of(path))
            return states.load(path, abstract_state)
        except Exception as error:
            self._refuse(path, error, "its files are those that were saved: keep them")

    def _settings(self) -> dict | None:
        """Of the run, if it has any."""
        try:
            return read_settings(self.folder)
        except FileNotFoundError:
            return None

    def _check_settings(self, path: Path, made_with: str | None) -> None:
        """FileError unless settings.json is that of the checkpoint: its mean, its names of classes
        and much else fit the same weights with other values, too."""
        if made_with is None:
            return
        settings = self._settings()
        if settings is None or settings_hash(settings) != made_with:
            raise FileError(
                f"{self.folder / SETTINGS} is not what checkpoint {path} was saved with: bring it "
                f"back, or move {self.folder} elsewhere and make it anew"
            )

    def _clear(self) -> None:
        """Remove what killed processes have left half-written, or have not come to remove, and move
        aside what no list of hashes vouches for: training goes on from the checkpoint before
        it."""
        clear_partial(self._root)
        for path in self._root.glob("*.orbax-checkpoint-tmp*"):  # as earlier versions named them
            remove(path)
        for path in _saved(self.folder):
            if not (path / HASHES).is_file():
                print(
                    f"warning: checkpoint {path} has no {HASHES}, so that nobody knows whether its "
                    f"files are those that were saved; it is now {moved_aside(path, 'unchecked')}",
                    file=sys.stderr,
                )
        self._remove_old()

    def _remove_old(self) -> None:
        for old in self.steps[:-KEPT]:
            remove(self._root / str(old))

    def _how_to_go_on(self) -> str:
        """After damage to the newest checkpoint."""
        if len(self.steps) > 1:
            return "bring it back, or move it elsewhere to go on from the one before it"
        return f"bring it back, or move {self.folder} elsewhere and make it anew"

    def _refuse(self, path: Path, error: Exception, advice: str) -> NoReturn:
        reason = states.reason_of(error)
        raise FileError(f"checkpoint {path} cannot be read ({reason}); {advice}") from error


def _saved(folder: Path) -> list[Path]:
    """The checkpoints of the run in `folder`; FileError where a link leads to them."""
    found = inside(folder, "checkpoints").glob("*")
    named = (path for path in found if re.fullmatch("0|[1-9][0-9]*", path.name))
    return [path for path in named if inside(path.parent, path.name).is_dir()]


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in `folder` has come to a checkpoint; one that has only begun has none."""
    return (folder / SETTINGS).exists() and bool(_saved(folder))


class Loaded(NamedTuple):
    """The newest checkpoint of a run: averaged variables, settings, and the step it is of."""

    variables: PyTree
    settings: dict
    step: int


def load_classifier(workdir: Path | str) -> Classifier:
    """The classifier trained in `workdir`, averaged (EMA) weights."""
    return build_network("classifier", load_run(Path(workdir), "classifier"))


def load_score(workdir: Path | str) -> Score:
    """The score model trained in `workdir`, averaged (EMA) weights."""
    return build_network("score", load_run(Path(workdir), "score"))


def build_network(role: str, loaded: Loaded) -> Any:
    """The Classifier or Score of a loaded run."""
    variables, settings, _ = loaded
    network, shape = models.build(**settings["network"]), tuple(settings["image_shape"])
    if role == "classifier":
        return Classifier(variables, network, image_shape=shape)
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


def load_run(workdir: Path, role: str) -> Loaded:
    """The newest checkpoint of a role in `workdir`; MissingCheckpoint where there is none."""
    if role not in ROLES:
        raise ValueError(
            f"'{workdir / role}' is no run: its last part must be {' or '.join(ROLES)}"
        )
    folder = run_folder(workdir, role)
    if not has_checkpoint(folder):
        raise MissingCheckpoint(folder, role)
    settings = _network_settings(folder, role)
    with Checkpoints(folder) as checkpoints:
        step, state = checkpoints.restore_latest()
    if not isinstance(state, dict) or "ema" not in state:
        raise FileError(f"checkpoint {folder}/checkpoints/{step} has no averaged weights")
    variables = jax.tree.map(jax.numpy.asarray, state["ema"])
    return Loaded(variables, settings, step)


def run_folder(workdir: Path, role: str) -> Path:
    """<workdir>/<role>; FileError where that is a link: what it leads to is another workdir's."""
    folder = workdir / role
    if folder.is_symlink():
        raise FileError(
            f"'{shown(folder)}' is a link; name the workdir that it leads into as --workdir, or as "
            f"config.variants.<name>.{role} of a defence that is to have its network"
        )
    return folder


def _network_settings(folder: Path, role: str) -> dict:
    """The settings of the run of a network; FileError where they describe none of its role."""
    settings = read_settings(folder)
    try:
        known, _ = models.described(settings)
        if (role == "score") != ("head" in known):
            raise ValueError("a score model has a head, a classifier has none")
    except ValueError as error:
        raise FileError(
            f"{folder / SETTINGS} describes no {role} ({error}); bring it back, or move {folder} "
            "elsewhere and make it anew"
        ) from None
    return settings


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

"""The commands that are ended, small enough for seconds, and what of a folder must be the same."""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.command import TINY as TRAINING
from tests.test_modes import TINY as MODES

BUDGET = {
    **TRAINING,
    **MODES,
    "classifier.network.widths": (4,),
    "score.network.widths": (4,),
    "classifier.train.num_steps": 3,
    "classifier.train.warmup_steps": 1,
    "classifier.train.log_every": 1,
    "classifier.train.checkpoint_every": 1,
    "score.train.num_steps": 3,
    "score.train.warmup_steps": 1,
    "score.train.log_every": 1,
    "score.train.checkpoint_every": 1,
    "score.num_levels": 4,
    "eval.num_images": 3,
    "eval.batch_size": 2,
    "corruptions.num_images": 3,
    "detect.num_images": 3,
    "ablate.num_images": 3,
    "sample.positions": (1, 2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, in a folder of its own that is its workdir.

    arguments: beside --config and --workdir; '{here}' stands for the folder. needs: the cases that
    were run there before it. once: whether the command, given again when it is through, refuses.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    once: bool = False

    def command(self, here: Path) -> list[str]:
        budget = [f"--config.{field}={value}" for field, value in BUDGET.items()]
        own = [argument.format(here=here) for argument in self.arguments]
        return ["main.py", "--config=configs/digits.py", *budget, f"--workdir={here}/run", *own]


NETWORKS = ("train_classifier", "train")
CASES = {
    case.name: case
    for case in (
        *(Case(mode, (f"--mode={mode}",)) for mode in NETWORKS),
        *(
            Case(mode, (f"--mode={mode}",), NETWORKS)
            for mode in ("eval_robust", "certify", "eval_corruptions", "check_gradients")
        ),
        *(Case(mode, (f"--mode={mode}",), NETWORKS) for mode in ("detect", "sample", "ablate")),
        Case(
            "purify",
            ("--mode=purify", "--input={here}/three.npy", "--output={here}/run/pure.npy"),
            NETWORKS,
            once=True,
        ),
        Case(
            "export_weights",
            (
                *("--mode=export_weights", "--input={here}/run/score"),
                "--output={here}/run/score.safetensors",
            ),
            NETWORKS,
            once=True,
        ),
        Case(
            "import_weights",
            (
                *("--mode=import_weights", "--input={here}/run/score.safetensors"),
                "--output={here}/run/imported/score",
            ),
            (*NETWORKS, "export_weights"),
            once=True,
        ),
        Case("report", ("--mode=report",), (*NETWORKS, "eval_robust")),
        Case(
            "compare",
            (
                *("--mode=compare", "--input={here}/run,{here}/run"),
                "--output={here}/run/compared.json",
            ),
            (*NETWORKS, "eval_robust"),
            once=True,
        ),
    )
}


def prepare(here: Path) -> None:
    np.save(here / "three.npy", np.full((3, 8, 8, 1), 0.5, np.float32))


# What depends on when and where something was computed, by the parts of names of fields.
_OF_TIME = ("seconds", "time", "computed_by", "commit")


def content(here: Path) -> dict[str, str]:
    """Path of a file, or of a checkpoint -> a hash of what must be the same in it.

    AssertionError where something is there that a finished command leaves nowhere.
    """
    found = {}
    for path in sorted((here / "run").rglob("*")):
        name = path.relative_to(here).as_posix()
        assert ".partial" not in name and "orbax-checkpoint-tmp" not in name, f"left over: {name}"
        assert ".damaged" not in name and ".unchecked" not in name, f"put aside: {name}"
        if path.parent.name == "checkpoints":
            found[name] = _checkpoint(path)
        elif path.is_file() and "checkpoints" not in path.parts and "events" not in path.parts:
            kind = path.name if path.name in KINDS else path.suffix
            found[name] = KINDS.get(kind, _bytes)(path)
    return found


def _checkpoint(path: Path) -> str:
    from purify.saving.checkpoint import Checkpoints, weight_hash

    checkpoints = Checkpoints(path.parent.parent)
    if path.name != str(checkpoints.latest_step):
        return "an older one"
    return weight_hash(checkpoints.restore())


def _bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _records(path: Path) -> str:
    """In any order, each once."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(record["row"], record["index"]) for record in records]
    assert len(set(keys)) == len(keys), f"{path}: an image is there twice"
    return _hash(sorted((_untimed(record) for record in records), key=json.dumps))


def _json(path: Path) -> str:
    return _hash(_untimed(json.loads(path.read_text())))


def _csv(path: Path) -> str:
    with path.open(newline="") as file:
        return _hash([_untimed(line) for line in csv.DictReader(file)])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _untimed(value):
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(part in k for part in _OF_TIME)}
        return {name: _untimed(each) for name, each in kept.items()}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def _there(path: Path) -> str:
    return "there"


KINDS: dict[str, Callable[[Path], str]] = {
    "images.jsonl": _records,
    "provenance.jsonl": _there,
    "lock": _there,
    ".json": _json,
    ".csv": _csv,
    ".html": _there,
    ".png": _there,
}

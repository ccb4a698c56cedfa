"""Two processes on CPU devices, joined over gloo, against one process with two devices."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from purify.saving.checkpoint import Checkpoints
from purify.saving.locking import Lock
from tests.command import TINY, main, main_in_processes, start_processes

BUDGET = TINY | {"classifier.train.num_steps": 20, "score.train.num_steps": 20}
ARGUMENTS = ["--config=configs/digits.py", *(f"--config.{k}={v}" for k, v in BUDGET.items())]


def results(workdir):
    (path,) = workdir.glob("eval_robust/*/results.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path, trained):
    """Training, resuming and evaluating; the second process writes and says nothing."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    half = "--config.score.train.checkpoint_every=10"
    few = ('--config.eval.defenses=("identity","adp")', '--config.eval.attacks=("blind","exact")')
    for mode, *more in (["train_classifier"], ["train", half], ["eval_robust", *few]):
        arguments = [*ARGUMENTS, f"--mode={mode}", *more]
        both = main_in_processes(*arguments, f"--workdir={together}", tfds=trained.tfds)
        for process in both:
            assert process.returncode == 0, process.stderr[-3000:]
        assert str(together) in both[0].stdout and str(together) not in both[1].stdout
        one = main(*arguments, f"--workdir={alone}", tfds=trained.tfds, devices=2)
        assert one.returncode == 0, one.stderr[-3000:]

    for role in ("classifier", "score"):
        states = []
        for workdir in (together, alone):
            with Checkpoints(workdir / role) as checkpoints:
                states.append(checkpoints.restore())
        # A mean of gradients over two devices, whoever adds them; 20 steps of Adam.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states)
        metrics = (together / role / "metrics.jsonl").read_text().splitlines()
        assert len(metrics) == len((alone / role / "metrics.jsonl").read_text().splitlines())

    (folder, found), (_, expected) = results(together), results(alone)
    assert [row["num_images"] for row in found["rows"]] == [
        row["num_images"] for row in expected["rows"]
    ]
    # Ten images, three draws each: rounding may flip few of them.
    for ours, theirs in zip(found["rows"], expected["rows"], strict=True):
        assert abs(ours["accuracy"] - theirs["accuracy"]) <= 0.1, ours
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert len({(line["row"], line["index"]) for line in lines}) == len(lines)
    assert len((folder / "provenance.jsonl").read_text().splitlines()) == 1

    # Killed half-way: the last checkpoint is gone, and both go on from the one before.
    with Checkpoints(together / "score") as checkpoints:
        last = checkpoints.latest_path
        expected_state = checkpoints.restore()
    for file in sorted(last.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    last.rmdir()
    for process in main_in_processes(
        *ARGUMENTS, "--mode=train", half, f"--workdir={together}", tfds=trained.tfds
    ):
        assert process.returncode == 0, process.stderr[-3000:]
    with Checkpoints(together / "score") as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(), expected_state)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mode=purify", "--distributed"), "has no meaning for --mode=purify"),
        (("--mode=train", "--distributed"), "all of --coordinator_address"),
        (("--mode=train", "--num_processes=2"), "belong to --distributed"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    result = main("--config=configs/digits.py", *flags)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def ends(processes, within: float = 30) -> list[tuple[int, list[str]]]:
    """(exit code, lines on stderr but for those of progress) of each, all there in time."""
    until = time.monotonic() + within
    said = [process.communicate(timeout=until - time.monotonic())[1] for process in processes]
    lines = [[t for t in text.splitlines() if " gone, " not in t] for text in said]
    return [(p.returncode, own) for p, own in zip(processes, lines, strict=True)]


def when_there(path: Path, pattern: str, processes) -> None:
    """Return once the processes have written it."""
    while not [*path.glob(pattern)]:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.05)


def child_of(process) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def test_where_the_first_is_refused_all_end_with_a_line(tmp_path):
    """What it is refused for, a lock, the others do not look at."""
    lock = Lock(tmp_path / "classifier")
    arguments = [*ARGUMENTS, "--mode=train_classifier", f"--workdir={tmp_path}"]
    processes = start_processes(*arguments, tfds=tmp_path / "tfds")
    ended = ends(processes, within=300)
    lock.release()
    assert [(code, len(lines)) for code, lines in ended] == [(2, 1), (2, 1)], ended
    (_, (own,)), (_, (told,)) = ended
    refusal = f"{tmp_path}/classifier is being written by another process (process {os.getpid()}"
    assert own.startswith(f"error: {refusal}")
    assert told.startswith(f"error: process 0 ended: {refusal}") and "kept" in told
    assert "the same command in each process goes on: python main.py --config=" in told
    assert told.endswith("--process_id=1")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "killed without its parent", "first killed", "asked"])
def test_where_one_is_lost_the_others_end_and_any_number_goes_on(tmp_path, trained, how):
    """In the middle of an evaluation; what was finished stays, and one process does the rest."""
    trained.copied_into(tmp_path)
    few = ['--config.eval.defenses=("identity","adp")', '--config.eval.attacks=("blind","exact")']
    arguments = [*ARGUMENTS, "--mode=eval_robust", *few, f"--workdir={tmp_path}"]
    processes = start_processes(*arguments, tfds=trained.tfds)
    when_there(tmp_path, "eval_robust/*/images.jsonl", processes)
    lost, other = processes[::-1] if how != "first killed" else processes
    number = signal.SIGTERM if how == "asked" else signal.SIGKILL
    os.kill(child_of(lost) if "parent" in how or how == "first killed" else lost.pid, number)
    ended = (code, lines), (lost_code, _) = ends([other, lost])
    assert len(lines) == 1, ended
    (line,) = lines
    k = processes.index(lost)
    expected = {
        "killed": f"error: process {k} was killed; ",
        "killed without its parent": f"error: lost process {k}, ",
        "first killed": f"error: lost process {k}, ",
        "asked": f"error: process {k} ended by SIGTERM; ",
    }[how]
    assert code == 2 and line.startswith(expected) and "what was finished is kept" in line
    assert lost_code in (-signal.SIGKILL, 137, 143)

    (path,) = tmp_path.glob("eval_robust/*/images.jsonl")
    before = path.read_text()
    result = main(*arguments, tfds=trained.tfds)
    assert result.returncode == 0, result.stderr
    whole = path.read_text()
    assert before and whole.startswith(before[: before.rindex("\n") + 1])
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len({(line["row"], line["index"]) for line in lines}) == len(lines)
    assert all(row["num_images"] for row in results(tmp_path)[1]["rows"])

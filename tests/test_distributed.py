"""Two processes on CPU devices, joined over gloo, against one process with two devices."""

import json

import jax
import numpy as np
import pytest

from purify.checkpoint import Checkpoints
from tests.command import TINY, main, main_in_processes

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

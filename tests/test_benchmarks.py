"""The benchmarks are run by hand; here: that they still fit the code that they measure."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import purifiers, timing

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_imports(name):
    if name in ("apgd", "pytorch"):
        pytest.importorskip("torch", reason="needs requirements-torch.txt")
    if name == "apgd":
        pytest.importorskip("pyautoattack", reason="needs requirements-peers.txt")
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.slow
def test_both_sides_of_the_comparison_with_pytorch_compute_the_same(monkeypatch):
    """Without noise, which the two draw differently."""
    pytest.importorskip("torch", reason="needs requirements-torch.txt")
    pytorch = importlib.import_module("benchmarks.pytorch")
    small = dict(SIGMA=0.0, STEPS=2, RUNS=2, TRAIN_BATCH=2, ACCUMULATE=2)
    for name, value in small.items():
        monkeypatch.setattr(pytorch, name, value)
    sides = pytorch.Sides(2)
    assert sides.difference_of_h() < 1e-4  # of numbers near 1, float32 over twenty layers
    ours, theirs = sides.prediction()
    for function in theirs.values():
        np.testing.assert_allclose(ours(), function().numpy(), rtol=1e-3, atol=1e-3)
    for gradient in ("bpda", "exact"):
        ours, theirs = sides.attack_step(gradient, 2)
        for function in theirs.values():
            attacked = function().numpy().transpose(0, 2, 3, 1)
            assert np.mean(np.abs(ours() - attacked) > 1e-6) < 0.01  # signs of tiny gradients
    ours, theirs = sides.training_step()
    assert ours().step == 1 and all(step() is None for step in theirs.values())


def test_times_alternate_after_a_round_that_warms_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    best = timing.best_times(functions, 2)
    assert "".join(calls) == 3 * "ab"
    assert list(best) == ["a", "b"] and 0 < min(best.values()) < 1


def comparison(high, num_images=100):
    """Of the headline with another defence: it is better by `high` at the most."""
    return {"high": high, "num_images": num_images}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "replacement"),
        ({"blind": comparison(0.11)}, "replacement"),
        ({"bpda": comparison(0.11)}, "not shown"),
        ({"exact": comparison(0.05, num_images=99)}, "not shown"),
        ({"bpda_20": comparison(0.11)}, "not shown"),
        ({"exact": None}, "not shown"),
    ],
)
def test_a_replacement_is_shown_clean_through_bpda_and_exactly(changes, expected):
    gradients = {"bpda_20": "bpda", "bpda": "bpda", "exact": "exact"}
    entries = {attack: comparison(0.09) for attack in ("clean", "bpda", "exact")} | changes
    entries = {attack: entry for attack, entry in entries.items() if entry}
    assert purifiers.verdict(entries, gradients) == expected

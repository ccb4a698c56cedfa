"""The benchmarks are run by hand; here: that they still fit the code that they measure."""

import importlib
from pathlib import Path

import pytest

from benchmarks import purifiers, timing

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_imports(name):
    if name == "pytorch":
        pytest.importorskip("torch", reason="needs requirements-torch.txt")
    importlib.import_module(f"benchmarks.{name}")


def test_times_alternate_after_a_round_that_warms_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    best = timing.best_times(functions, 2, before=lambda name: calls.append(name.upper()))
    assert "".join(calls) == 3 * "AaBb"
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

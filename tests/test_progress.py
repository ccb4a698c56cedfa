"""Progress: a bar on a terminal, whole lines in a log, nothing where it is disabled."""

import os
import re
import subprocess
import sys
import time

import pytest

from purify.runtime import progress as module
from purify.runtime.progress import progress
from tests.command import ROOT


def work():
    """Both kinds of progress: over an iterable, and updated by hand while something is said."""
    for _ in progress(range(2), total=4, initial=2, desc="train score", unit="step"):
        pass
    with progress(total=100) as bar:
        for part in range(4):
            bar.set_description(f"row {part}: attacking")
            bar.update(25)
            bar.write("an estimate")
        bar.set_description("all rows done")


def test_a_log_has_whole_lines_with_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    work()
    out, err = capsys.readouterr()
    assert out == 4 * "an estimate\n"
    assert not re.search(r"[\r\x1b]", err) and err.endswith("\n")
    lines = err.splitlines()
    assert "train score: 100 %, 4 of 4 steps, 00:00 gone, 00:00 left" in lines
    assert lines[-1] == "all rows done: 100 %, 00:00 gone, 00:00 left"
    assert any(re.match(r"row 1: attacking: 50 %, \S+ gone, \S+ left", line) for line in lines)


def test_a_log_has_a_line_at_intervals_only_and_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(total=1000) as bar:
        for _ in range(1000):
            now[0] += 0.1
            bar.set_description("at it")
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(re.search(r"(\d+) %", line)[1]) for line in lines]
    assert 9 <= len(lines) <= 11 and shares == sorted(shares) and shares[-1] == 100


def test_what_does_not_stay_leaves_no_last_line(capsys):
    for _ in progress(range(3), leave=False):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_is_drawn_where_a_terminal_can_redraw_it(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    work()
    err = capsys.readouterr().err
    assert "\r" in err and re.search(r"all rows done: +100%\|", err)
    monkeypatch.setenv("TERM", "dumb")
    work()
    assert "\r" not in capsys.readouterr().err


@pytest.mark.parametrize("disable", ["False", "True"])
def test_the_environment_silences_it_whatever_the_caller_says(disable):
    """Processes that share the work are silent: TQDM_DISABLE is set before tqdm is imported."""
    code = (
        "from purify.runtime.progress import progress\n"
        f"with progress(total=9, disable={disable}) as bar: bar.update(9)\n"
        "for _ in progress(range(9), unit='step'): pass"
    )
    for silenced, said in (("1", False), ("", disable == "False")):
        environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
        environment |= {"TQDM_DISABLE": silenced} if silenced else {}
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout == "" and ("100 %, 00:00 gone" in result.stderr) == said
        assert ("9 of 9 steps" in result.stderr) == (not silenced)


def test_all_progress_has_one_home():
    """So that what holds for one mode's holds for all of them."""
    users = [p for p in (ROOT / "purify").rglob("*.py") if "tqdm" in p.read_text()]
    assert [path.name for path in users] == ["progress.py"]

"""Tables where the terminal is narrow, and what a terminal is told besides letters."""

import json

import pytest
from rich.cells import cell_len
from rich.text import Text

from purify.evals import ablation_report, certify, corruption_report, detect_report, robust_report
from purify.evals.terminal import empty_table, print_wide
from tests.command import ROOT

CELLS = ("one_step_s10", "53.5 [ 46,  61]*", "a sentence about what decides", "0.123456789")
STORED = {
    "digits/results.json": robust_report.results_table,
    "cifar10/resnet20/results.json": robust_report.results_table,
    "digits/ablation.json": ablation_report.results_table,
    "digits/certify.json": certify.results_table,
    "digits/certify.json differences": certify.differences_table,
    "digits/detect.json": detect_report.results_table,
    "digits/corruptions/results.json": corruption_report.results_table,
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """(table, width) -> what a terminal of that width is sent."""

    def printed(table, width: int) -> str:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        print_wide(table)
        return capsys.readouterr().out

    return printed


def small_table():
    table = empty_table("title", "caption")
    for header in ("defence", "mean", "what", "seconds"):
        table.add_column(header, no_wrap=True)
    for _ in range(3):
        table.add_row(*CELLS)
    return table


@pytest.mark.parametrize("width", [100, 70, 40, 24])
def test_no_cell_loses_its_end_however_narrow_the_terminal(printed, width):
    shown = Text.from_ansi(printed(small_table(), width)).plain
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for cell in CELLS:
        assert all(shown.count(c) >= 3 * cell.count(c) for c in set(cell) - {" "})
        assert shown.count(cell) >= 3 or width < 45


@pytest.mark.parametrize("width", [60, 80, 100, 132])
@pytest.mark.parametrize("stored", STORED)
def test_tables_of_every_mode_fit_without_a_broken_word(printed, stored, width):
    """Numbers with their intervals stay whole, too, and each part names its lines."""
    path = ROOT / "docs" / stored.removesuffix(" differences")
    table = STORED[stored](json.loads(path.read_text()))
    shown = Text.from_ansi(printed(table, width)).plain
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= width
    words = shown.split()
    for text in (table.title, table.caption):
        assert set(text.split()) <= set(words)
    for column in table.columns:
        for cell in (column.header, *column.cells):
            assert str(cell) in shown
    heads = [
        lines[at - 1] for at, line in enumerate(lines) if line.strip("─ ") == "" and "─" in line
    ]
    assert all(head.strip().startswith(f"{table.columns[0].header} ") for head in heads)
    assert width == 132 or len(heads) > 1


def test_long_texts_take_more_lines_beside_numbers(printed):
    table = empty_table("title", "caption")
    table.add_column("check", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("what decides")
    table.add_row("blind", "0.0312", ", ".join(f"statistic_{i} 0.{i}" for i in range(30)))
    shown = printed(table, 60)
    assert shown.count("check") == 1 and all(f"statistic_{i} " in shown for i in range(30))


def test_what_hangs_on_a_line_goes_on_with_it(printed):
    text = "one: " + "word " * 13 + "\n  and more\ntwo: second"
    table = empty_table(text, "")
    table.add_column("name")
    shown = Text.from_ansi(printed(table, 40)).plain.splitlines()
    assert "  word word word word word word and more" in shown
    assert Text.from_ansi(printed(table, 100)).plain.splitlines()[1] == "  and more"


@pytest.mark.parametrize(
    ("changes", "coded"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_no_escape_code_is_sent_to_who_wants_none(printed, monkeypatch, changes, coded):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | changes).items():
        monkeypatch.setenv(name, value)
    assert ("\x1b" in printed(small_table(), 100)) == coded


def test_a_pipe_has_as_much_room_as_a_table_needs_and_no_escape_codes(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    table = empty_table("title", "caption")
    table.add_column("long", no_wrap=True)
    table.add_row("x" * 150)
    print_wide(table)
    shown = capsys.readouterr().out
    assert "x" * 150 in shown and "\x1b" not in shown

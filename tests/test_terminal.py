"""Tables where the terminal is narrow, escape codes, and the sentences beside tables."""

import json

import pytest
from rich.cells import cell_len
from rich.text import Text

from configs import digits
from purify.evals import ablate, certify, corruptions, detect, robust
from purify.evals.core.tables import Column, Interval, Table
from purify.evals.core.terminal import print_table, shared_options, stopped_early, tell_work
from purify.runtime.messages import counted
from tests.command import ROOT

CELLS = ("one_step_s10", "53.5 [ 46,  61]*", "a sentence about what decides", "0.123456789")
STORED = {
    "digits/results.json": robust.show.results_table,
    "cifar10/resnet20/results.json": robust.show.results_table,
    "digits/ablation.json": ablate.show.results_table,
    "digits/certify.json": certify.show.results_table,
    "digits/certify.json differences": certify.show.differences_table,
    "digits/detect.json": detect.show.results_table,
    "digits/corruptions/results.json": corruptions.show.results_table,
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """(table, width) -> what a terminal of that width is sent."""

    def printed(table, width: int) -> str:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(table)
        return capsys.readouterr().out

    return printed


def small_table():
    columns = [Column(name) for name in ("defence", "mean", "what", "seconds")]
    return Table("title", columns, [[CELLS] * 3], "caption")


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
        assert column.name in shown
    for cell in (cell for line in table.lines for cell in line):
        assert (cell.padded() if isinstance(cell, Interval) else cell) in shown
    heads = [
        lines[at - 1] for at, line in enumerate(lines) if line.strip("─ ") == "" and "─" in line
    ]
    assert all(head.strip().startswith(f"{table.columns[0].name} ") for head in heads)
    assert width == 132 or len(heads) > 1


def test_long_texts_take_more_lines_beside_numbers(printed):
    columns = [Column("check"), Column("p", numeric=True), Column("what decides", wraps=True)]
    cells = "blind", "0.0312", ", ".join(f"statistic_{i} 0.{i}" for i in range(30))
    table = Table("title", columns, [[cells]], "caption")
    shown = printed(table, 60)
    assert shown.count("check") == 1 and all(f"statistic_{i} " in shown for i in range(30))


def test_what_hangs_on_a_line_goes_on_with_it(printed):
    text = "one: " + "word " * 13 + "\n  and more\ntwo: second"
    table = Table(text, [Column("name", wraps=True)], [])
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
    print_table(Table("title", [Column("long")], [[("x" * 150,)]], "caption"))
    shown = capsys.readouterr().out
    assert "x" * 150 in shown and "\x1b" not in shown


# Sentences


def test_counts_agree_with_their_nouns():
    assert [counted(n, "row") for n in (0, 1, 2, 1200)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,200 rows",
    ]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert "stopped after 1 of 200 images (--max_images=1)" in stopped_early(1, 200, 1)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((0.342, 0.399, 0.455), "a beats b: +39.9 points [+34.2, +45.5], n 100"),
        ((-0.532, -0.448, -0.362), "a is beaten by b: -44.8 points [-53.2, -36.2], n 100"),
        ((-0.02, 0.008, 0.032), "a is not told apart from b: +0.8 points [-2.0, +3.2], n 100"),
        ((0.0, 0.01, 0.02), "a is not told apart from b: +1.0 points [+0.0, +2.0], n 100"),
    ],
)
def test_a_comparison_says_which_of_the_two_is_better(ends, said):
    low, difference, high = ends
    entry = {"a": "a", "b": "b", "mean_difference": difference, "low": low, "high": high}
    entry |= {"num_images": 100, "beats": low > 0}
    assert robust.show.comparison_lines({"comparisons": [entry]}) == [said]


@pytest.mark.parametrize("share", [0.94, 1.12])
def test_a_share_of_what_an_attack_leaves_may_be_more_than_all_of_it(share):
    entry = {"a": "adp-bpda", "b": "adp-exact", "mean_difference": 0.0, "low": -0.1, "high": 0.1}
    entry |= {"num_images": 9, "beats": False, "share": dict(low=0.5, value=share, high=1.5)}
    (line,) = robust.show.comparison_lines({"comparisons": [entry]})
    words = f"; the latter leaves {100 * share:.0f} % [50, 150] of what the former leaves"
    assert line.endswith(words)


@pytest.mark.parametrize(
    ("defenses", "said"),
    [
        ("identity pgd_at", ""),
        ("identity noise_only", ", sigma 0.25, S 5, N 4"),
        ("one_step schedule", ", sigma 0.25, S 5, N 4"),
        ("identity adp", ", sigma 0.25, S 5, N 4, ADP T 10, jvp"),
        ("adp_s0", ", S 5, N 4, ADP T 10, jvp"),
        ("own", ", sigma 0.25, S 5, N 4"),
        ("detect_then_purify", ", sigma 0.25, S 5, N 4, ADP T 10, jvp"),
        ("adp_reference", ", sigma 0.25, S 5, N 4, adp_reference T 10"),
    ],
)
def test_a_title_names_what_a_defence_of_its_table_has(defenses, said):
    config = digits.get_config()
    config.variants.own = dict(purifier="adp", num_steps=3, curvature="secant")
    assert shared_options(config, defenses.split(), 4) == said


def test_what_is_asked_for_is_said_with_what_is_left_of_it(capsys, tmp_path):
    for left in ("9 runs", "4 runs", ""):
        tell_work("2 rows on 1 image", "9 runs", left, tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"2 rows on 1 image: at most 9 runs; into {tmp_path}",
        f"2 rows on 1 image: at most 9 runs; into {tmp_path}",
        "  a part of it was done before; left: at most 4 runs",
        f"2 rows on 1 image: all of it was done before, nothing is computed; in {tmp_path}",
    ]

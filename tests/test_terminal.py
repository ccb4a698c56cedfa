"""Tables where the terminal is narrow."""

import pytest
from rich.text import Text

from purify.evals.terminal import empty_table, print_wide

CELLS = ("one_step_s10", "53.5 [ 46,  61]*", "a sentence about what decides", "0.123456789")


@pytest.mark.parametrize("width", [100, 70, 40, 24])
def test_no_cell_loses_its_end_however_narrow_the_terminal(monkeypatch, capsys, width):
    table = empty_table("title", "caption")
    for header in ("defence", "mean", "what", "seconds"):
        table.add_column(header, no_wrap=True)
    for _ in range(3):
        table.add_row(*CELLS)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    print_wide(table)
    shown = Text.from_ansi(capsys.readouterr().out).plain
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for cell in CELLS:
        assert all(shown.count(c) >= 3 * cell.count(c) for c in set(cell) - {" "})
        assert shown.count(cell) == 3 or width < 100


def test_a_pipe_has_as_much_room_as_a_table_needs(capsys):
    table = empty_table("title", "caption")
    table.add_column("long", no_wrap=True)
    table.add_row("x" * 150)
    print_wide(table)
    assert "x" * 150 in capsys.readouterr().out

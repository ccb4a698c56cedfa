"""Names in messages: one line that a terminal shows and does not obey, of bounded length."""

import pytest

from purify.runtime.messages import as_text, few, printable, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 漢字 😀", "plain é 漢字 😀"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("two\nlines\r\u2028", "two\\nlines\\r\\u2028"),
        ("gnp.\u202etxt", "gnp.\\u202etxt"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, expected):
    assert printable(text) == expected == printable(printable(text))
    assert few([text, "b"]) == f"{expected}, b"
    assert shown(text) == expected
    expected.encode()


def test_a_long_text_loses_its_middle_and_a_long_list_its_end():
    text = printable("a" * 1000 + "b" * 1000, limit=90)
    assert text == "a" * 60 + "..." + "b" * 30
    assert len(few(["x" * 10**6] * 10**6)) < 1000
    assert shown("x" * 1000) == "x" * 1000


def test_names_of_files_that_are_no_text_are_text_all_the_same():
    assert shown("caf\udce9") == as_text("caf\udce9") == "caf\\xe9"
    assert as_text("a\nb") == "a\nb"  # as the name of a class, which it stays

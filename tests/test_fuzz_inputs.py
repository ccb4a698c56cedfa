"""Every reader of what comes from outside: damaged files are read or refused by name, whatever the
damage. tests/fuzzing.py tries many more of them."""

import pytest

from tests import fuzzing


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_valid_files_are_read(name, tmp_path):
    target = fuzzing.TARGETS[name]
    for number, content in enumerate(target.make()):
        path = tmp_path / str(number) / target.name
        path.parent.mkdir(parents=True)
        path.write_bytes(target.wrap(content))
        try:
            target.read(path)
        except ValueError as error:  # of a few arrays that make no network
            assert name.startswith("weights") and "not the weights of resnet20" in str(error)


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_damaged_files_are_read_or_refused_by_name(name):
    assert fuzzing.try_many(name, 30) is None


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(*each, id="/".join(each[1].parts[-2:])) for each in fuzzing.corpus()],
)
def test_what_once_failed_does_not_fail_again(name, path):
    fuzzing.check(name, path.read_bytes())


def test_a_reader_that_fails_otherwise_is_noticed(monkeypatch):
    """The check itself: another exception, and an error without the file's name."""
    for error in (KeyError("x"), ValueError("no name"), UserWarning("w")):

        def read(path, error=error):
            raise error

        monkeypatch.setitem(fuzzing.TARGETS, "idx", fuzzing.TARGETS["idx"]._replace(read=read))
        with pytest.raises(AssertionError):
            fuzzing.check("idx", b"")

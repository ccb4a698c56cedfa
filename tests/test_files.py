"""Files of results: regular ones in their folder, whole or absent, whatever lies there before."""

import errno
import os
import re
import time
from pathlib import Path

import pytest

from purify import files
from purify.files import (
    FileError,
    append,
    clear_partial,
    inside,
    making,
    open_file,
    read_bytes,
    subfolder,
    write_bytes,
    writing,
)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "theirs")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder, and somebody's file beside it."""
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize("make", [pipe, link, device, folder])
@pytest.mark.parametrize(
    "use", [read_bytes, lambda path: append(path, b"x")], ids=["read", "append"]
)
def test_what_is_no_regular_file_is_neither_read_nor_written(here, make, use):
    """At once: opening a pipe without a reader or writer would wait for one."""
    make(here / "file")
    start = time.monotonic()
    with pytest.raises((FileError, IsADirectoryError, OSError), match=re.escape(f"{here}/file")):
        use(here / "file")
    assert time.monotonic() - start < 5
    assert (here.parent / "theirs").read_bytes() == b"theirs"


def test_what_a_user_names_may_be_a_link_but_no_device(here):
    link(here / "a")
    assert read_bytes(here / "a", follow=True) == b"theirs"
    device(here / "b")
    with pytest.raises(FileError, match="no regular file"):
        open_file(here / "b", follow=True)


def test_a_link_is_replaced_by_what_is_written_and_never_followed(here):
    link(here / "file")
    write_bytes(here / "file", b"ours")
    assert (here / "file").read_bytes() == b"ours" and not (here / "file").is_symlink()
    assert (here.parent / "theirs").read_bytes() == b"theirs"


def test_no_name_and_no_link_leads_out_of_a_folder(here):
    for name in ("", ".", "..", "/etc/passwd", "a/../../theirs", "a\0b"):
        with pytest.raises(FileError, match="no plain name"):
            inside(here, name)
    (here / "figures").symlink_to(here.parent)
    for use in (lambda: inside(here, "figures", "theirs"), lambda: subfolder(here, "figures")):
        with pytest.raises(FileError, match=f"'{here}/figures' is a link; files of '{here}' must"):
            use()
    assert inside(here, "a", "b.png") == here / "a" / "b.png"
    assert subfolder(here, "a").is_dir() and subfolder(here, "a").is_dir()


def test_a_file_larger_than_the_limit_is_not_read(here):
    with open(here / "file", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match=f"'{here}/file' has more than 1,000 bytes"):
        read_bytes(here / "file", limit=1000)


def test_what_fails_leaves_the_old_file_and_nothing_else(here):
    write_bytes(here / "file", b"old")
    with pytest.raises(KeyError), writing(here / "file") as file:
        file.write(b"new")
        raise KeyError
    assert (here / "file").read_bytes() == b"old"
    with pytest.raises(KeyError), making(here / "folder") as temporary:
        (temporary / "part").write_bytes(b"new")
        raise KeyError
    assert os.listdir(here) == ["file"]


def test_a_full_disk_is_told_with_the_path(here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for use in (write_bytes, append):
        with pytest.raises(OSError, match=re.escape(f"No space left on device: '{here}/file'")):
            use(here / "file", b"x")


def test_what_is_whole_is_on_disk_before_it_has_its_name(here, monkeypatch):
    told = []

    def noted(name):
        of_system = getattr(os, name)

        def call(*arguments):
            told.append(name)
            return of_system(*arguments)

        monkeypatch.setattr(files.os, name, call)

    for name in ("fsync", "replace", "rename"):
        noted(name)
    write_bytes(here / "file", b"x")
    assert told == ["fsync", "replace", "fsync"]
    told.clear()
    with making(here / "folder") as temporary:
        (temporary / "file").write_bytes(b"x")
    assert told == ["fsync", "fsync", "rename", "fsync"]  # file and folder; then the name


def test_two_writers_of_one_name_do_not_meet(here):
    """The temporary name is nobody else's, and a folder that appears meanwhile is not replaced."""
    with writing(here / "file") as one, writing(here / "file") as other:
        one.write(b"one")
        other.write(b"other")
    assert (here / "file").read_bytes() == b"one"  # the outer block ended last
    with pytest.raises(FileError, match=f"'{here}/folder' exists already"):
        with making(here / "folder") as first:
            with making(here / "folder") as second:
                assert first != second
    assert sorted(os.listdir(here)) == ["file", "folder"]


def test_what_killed_processes_left_is_cleared_away(here):
    for name in (".a.0123.partial", ".b.4567.partial", "a.partial", ".hidden"):
        (here / name).write_bytes(b"")
    (here / ".folder.89.partial" / "x").mkdir(parents=True)
    link(here / ".link.0.partial")
    clear_partial(here)
    assert sorted(os.listdir(here)) == [".hidden", "a.partial"]
    assert (here.parent / "theirs").read_bytes() == b"theirs"


def test_what_a_killed_writer_left_is_removed_by_the_next_of_that_name(here):
    """But not what a living one has."""
    dead = [here / ".file.0123.partial", here / ".folder.0123.partial"]
    dead[0].write_bytes(b"half")
    (dead[1] / "part").mkdir(parents=True)
    link(here / ".file.4567.partial")
    with writing(here / "file") as living, making(here / "folder"):
        living.write(b"living")
        with writing(here / "file"), making(here / "other"):
            assert not any(path.exists() for path in dead)
    assert {"file", "folder", "other"} <= set(os.listdir(here))
    assert (here / "file").read_bytes() == b"living"
    assert (here.parent / "theirs").read_bytes() == b"theirs"

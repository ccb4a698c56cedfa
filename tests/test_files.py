"""Files of results: regular ones in their folder, whole or absent, whatever lies there before."""

import errno
import fcntl
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from purify.runtime.errors import FileError
from purify.saving import files, temporary
from purify.saving.files import (
    append,
    inside,
    make_folders,
    making,
    open_file,
    read_bytes,
    scratch,
    subfolder,
    write_bytes,
    writing,
)
from purify.saving.temporary import clear_partial, temporary_name


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

    def noted(module, name):
        real = getattr(module, name)

        def call(*arguments):
            told.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    noted(files.os, "fsync")
    noted(files.os, "replace")
    noted(files, "rename_new")
    write_bytes(here / "file", b"x")
    assert told == ["fsync", "replace", "fsync"]
    told.clear()
    with making(here / "folder") as partial:
        (partial / "file").write_bytes(b"x")
    assert told == ["fsync", "fsync", "rename_new", "fsync"]  # file and folder; then the name


def test_the_name_of_a_new_folder_is_on_disk_before_anything_is_in_it(here, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folders(here / "a" / "b")
    assert synced == [here, here / "a"] and (here / "a" / "b").is_dir()
    make_folders(here / "a" / "b")
    subfolder(here, "a")
    assert len(synced) == 2
    subfolder(here, "c")
    assert synced[2:] == [here]


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


@pytest.mark.parametrize("exclusive", [True, False], ids=["renameat2", "without"])
@pytest.mark.parametrize(
    "use", [lambda path: writing(path, new=True), making], ids=["file", "folder"]
)
def test_what_appears_while_something_new_is_written_stays(here, monkeypatch, use, exclusive):
    if not exclusive:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: None)
    with pytest.raises(FileError, match=f"'{here}/it' exists already"), use(here / "it"):
        (here / "it").mkdir()  # an empty folder, which a rename of a folder would replace
    assert os.listdir(here) == ["it"] and os.listdir(here / "it") == []


def test_a_new_file_replaces_none_that_appears_at_the_last_moment(here, monkeypatch):
    """After any look at the name: the rename itself refuses."""
    monkeypatch.setattr(files.os.path, "lexists", lambda path: ".partial" in str(path))
    with pytest.raises(FileError, match="exists already"), writing(here / "it", new=True) as file:
        file.write(b"ours")
        (here / "it").write_bytes(b"theirs")
    assert (here / "it").read_bytes() == b"theirs" and os.listdir(here) == ["it"]


TOKEN = "0123456789abcdef"
OTHERS = (
    "a.partial",
    ".hidden",
    ".model.backup.partial",
    f".x.{TOKEN}0.partial",
    f".{TOKEN}.partial",
)


def test_what_killed_processes_left_is_cleared_away_and_no_other_name(here):
    for name in (f".a.{TOKEN}.partial", temporary_name(here / "b").name, *OTHERS):
        (here / name).write_bytes(b"")
    (here / f".folder.{TOKEN}.partial" / "x").mkdir(parents=True)
    link(here / f".link.{TOKEN}.partial")
    clear_partial(here)
    assert sorted(os.listdir(here)) == sorted(OTHERS)
    assert (here.parent / "theirs").read_bytes() == b"theirs"


def test_nothing_is_cleared_away_where_a_link_leads(here):
    (here / f".a.{TOKEN}.partial").write_bytes(b"theirs")
    (here.parent / "link").symlink_to(here)
    clear_partial(here.parent / "link")
    assert os.listdir(here) == [f".a.{TOKEN}.partial"]


def test_a_writer_removes_no_name_that_a_user_may_have_given(here):
    for name in (".file.mine.partial", ".model.backup.partial/precious", f".files.{TOKEN}.partial"):
        (here / name).mkdir(parents=True)
    before = sorted(os.listdir(here))
    with writing(here / "file"), making(here / "model"):
        pass
    assert sorted(os.listdir(here)) == sorted([*before, "file", "model"])


@pytest.mark.parametrize("name", ["é" * 120 + ".npz", "a" + "é" * 125, "x" * 255, "\udce9" * 250])
def test_names_as_long_as_a_file_system_takes_are_written_and_cleared(here, name):
    """It counts bytes, not letters."""
    dead = temporary_name(here / name)
    dead.write_bytes(b"half")
    write_bytes(here / name, b"x")
    assert os.listdir(here) == [name] and len(os.fsencode(dead.name)) <= 255


def test_what_a_killed_writer_left_is_removed_by_the_next_of_that_name(here):
    """But not what a living one has."""
    dead = [here / f".{name}.{TOKEN}.partial" for name in ("file", "folder")]
    dead[0].write_bytes(b"half")
    (dead[1] / "part").mkdir(parents=True)
    link(here / ".file.fedcba9876543210.partial")
    with writing(here / "file") as living, making(here / "folder"):
        living.write(b"living")
        with writing(here / "file"), making(here / "other"):
            assert not any(path.exists() for path in dead)
    assert {"file", "folder", "other"} <= set(os.listdir(here))
    assert (here / "file").read_bytes() == b"living"
    assert (here.parent / "theirs").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("locks", [True, False], ids=["removed", "held"])
def test_what_another_clears_before_its_lock_is_made_anew(here, monkeypatch, kind, locks):
    """A second writer of that name, between the making and the lock of the first."""
    flock, struck = fcntl.flock, []

    def strike(descriptor, operation):
        if not struck:
            struck.extend(path for path in here.iterdir())
            remove = shutil.rmtree if kind == "folder" else os.unlink
            remove(struck[0])
            if not locks:
                raise BlockingIOError
        flock(descriptor, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", strike)
    with (making if kind == "folder" else writing)(here / "it") as made:
        del made
    assert struck and os.listdir(here) == ["it"]


def test_a_scratch_folder_goes_with_its_block_or_with_the_next(here):
    (here / f".work.{TOKEN}.partial" / "x").mkdir(parents=True)
    with scratch(here / "work") as folder:
        (folder / "x").write_bytes(b"")
        with scratch(here / "work") as other:
            assert sorted(os.listdir(here)) == sorted([folder.name, other.name])
    assert os.listdir(here) == []

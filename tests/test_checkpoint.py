"""Checkpoints come back bit for bit or not at all, and say what to do where they cannot."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from purify import models
from purify.evals.core.store import Store, folder_of
from purify.runtime import parallel
from purify.runtime.errors import FileError
from purify.saving import checkpoint, settings, states, vouching
from purify.saving.checkpoint import (
    HASHES,
    ROLES,
    Checkpoints,
    MissingCheckpoint,
    load_classifier,
    load_defense,
    load_score,
    weight_hash,
)
from purify.saving.jsonl import write_json
from purify.saving.settings import claim, differing_fields, read_settings, settings_name
from purify.training.loop import init_state
from purify.training.options import TrainOptions
from tests.command import ROOT
from tests.written import rewrite_settings

SCORE_SETTINGS = {
    "network": {"arch": "unet", "widths": [4], "blocks": 0},
    "image_shape": [4, 4, 1],
    "head": "energy",
}

WIDE = {"arch": "cifar_resnet", "depth": 8, "num_classes": 3}


def state_of(variables):
    """A training state in which every leaf is random, and the average differs from the weights."""
    state = init_state(variables, TrainOptions(10, 1, 1e-3).optimizer())
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    return tree.unflatten(
        [
            jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else jnp.asarray(7, leaf.dtype)
            for leaf in leaves
        ]
    )


def save(folder, state, *steps: int) -> None:
    with Checkpoints(folder, training=True) as checkpoints:
        for step in steps:
            checkpoints.save(step, state)


def restore(folder, abstract=None):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(abstract)


# Large enough that Orbax keeps its bytes apart from the index, which has checksums.
STATE = state_of(
    {
        "params": {"dense": {"kernel": jnp.zeros((70, 70)), "bias": jnp.zeros(3)}},
        "batch_stats": {"mean": jnp.zeros(2)},
    }
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, STATE, 10, 20)
    return folder


@pytest.fixture(scope="module")
def score_workdir(tmp_path_factory):
    """A workdir with a tiny score model of random weights, and its state."""
    workdir = tmp_path_factory.mktemp("score")
    network = models.build(**SCORE_SETTINGS["network"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    state = state_of(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    claim(workdir, SCORE_SETTINGS, "score")
    save(workdir / "score", state, 1)
    return workdir, state


# What comes back


def test_a_state_comes_back_bit_for_bit(saved):
    restored = restore(saved, STATE)
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    assert jax.tree.map(jnp.dtype, restored) == jax.tree.map(jnp.dtype, STATE)
    assert weight_hash(restore(saved)) == weight_hash(STATE)  # without knowing its structure


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    with Checkpoints(tmp_path, training=True) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.latest_path is None
        for step in (3, 6, 9):
            checkpoints.save(step, STATE.replace(step=jnp.asarray(step)))
        assert checkpoints.latest_path == tmp_path / "checkpoints/9"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 9 and checkpoints.restore()["step"] == 9
    assert {item.name for item in (tmp_path / "checkpoints").iterdir()} == {"6", "9"}


def test_loading_gives_the_averaged_weights_behind_their_network(score_workdir):
    workdir, state = score_workdir
    score = load_score(workdir)
    assert weight_hash(score.variables) == weight_hash(state.ema)
    assert weight_hash(state.ema["params"]) != weight_hash(state.params)
    assert score.head == "energy" and score.network == models.build("unet", widths=(4,), blocks=0)


def test_one_training_has_a_folder_to_itself_and_readers_may_look(tmp_path):
    with Checkpoints(tmp_path, training=True) as checkpoints:
        checkpoints.save(1, STATE)
        with pytest.raises(ValueError, match=f"by another process .process {os.getpid()} on"):
            Checkpoints(tmp_path, training=True)
        with Checkpoints(tmp_path) as reader:
            assert reader.latest_step == 1
    save(tmp_path, STATE, 2)  # it was released


UNFINISHED = "30.orbax-checkpoint-tmp"  # as earlier versions left it


def test_a_reader_leaves_a_save_in_progress_alone_and_the_next_training_clears_it(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    unfinished = [
        tmp_path / "checkpoints" / name for name in (".30.0123456789abcdef.partial", UNFINISHED)
    ]
    for folder in unfinished:
        folder.mkdir()
        (folder / "part").write_bytes(b"half")
    restore(tmp_path)
    assert all((folder / "part").exists() for folder in unfinished)
    save(tmp_path, STATE, 40)
    assert not any(folder.exists() for folder in unfinished)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 40


# Damage


def damage(path, fault: str, rng) -> None:
    content = bytearray(path.read_bytes())
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[rng.integers(len(content))] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize(("fault", "times"), [("missing", 1), ("cut", 1), ("changed", 3)])
def test_damage_to_any_file_of_a_checkpoint_is_one_clear_line(saved, tmp_path, capfd, fault, times):
    rng = np.random.default_rng(0)
    found = [path for path in saved.rglob("checkpoints/20/**/*") if path.is_file()]
    # Orbax marks what is whole by empty files.
    files = [p.relative_to(saved) for p in found if fault == "missing" or p.stat().st_size]
    assert len(files) > 5
    for number, file in enumerate(files * times):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        damage(folder / file, fault, rng)
        with pytest.raises(ValueError) as caught:
            restore(folder)
        message = str(caught.value)
        assert message.startswith(f"checkpoint {folder}/checkpoints/20 cannot be read (")
        assert message.endswith(
            "bring it back, or move it elsewhere to go on from the one before it"
        )
        assert "\n" not in message and len(message) < 500
        assert file.name == HASHES or str(file.relative_to("checkpoints/20")) in message
        (folder / "checkpoints/20").rename(folder / "20")
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.latest_step == 10
            assert weight_hash(checkpoints.restore()) == weight_hash(STATE)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"state/_METADATA": 5}', "[" * 10_000])
def test_a_checkpoint_that_no_list_of_hashes_vouches_for_is_not_believed(saved, tmp_path, content):
    """Orbax reads flipped bits as other weights. Training goes on from the one before it."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    hashes = tmp_path / "checkpoints/20" / HASHES
    hashes.unlink() if content is None else hashes.write_text(content)
    with pytest.raises(FileError, match=f"^checkpoint .*/20 .*{HASHES}.*the one before it$"):
        restore(tmp_path)


def test_training_moves_a_checkpoint_without_hashes_aside_and_goes_on_before_it(
    saved, tmp_path, capsys
):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for _ in range(2):
        (tmp_path / "checkpoints/20" / HASHES).unlink()
        with Checkpoints(tmp_path, training=True) as checkpoints:
            assert checkpoints.steps == [10]
            checkpoints.save(20, STATE)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"10", "20", "20.unchecked", "20.unchecked-2"}
    assert f"20 has no {HASHES}, so that nobody knows" in capsys.readouterr().err
    assert weight_hash(restore(tmp_path)) == weight_hash(STATE)


def test_a_checkpoint_has_its_hashes_before_it_has_its_name(tmp_path, monkeypatch):
    """Whenever the process ends, what has the name of a checkpoint is known to be whole."""
    seen = []
    rename = Path.rename

    def look(path, target):
        seen.append((path.name, target.name, (path / HASHES).exists()))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look)
    save(tmp_path, STATE, 1)
    ((temporary, name, whole),) = [each for each in seen if each[1] == "1"]
    assert temporary.startswith(".1.") and temporary.endswith(".partial") and whole


def test_a_reader_looks_again_where_a_trainer_has_removed_what_it_reads(tmp_path, monkeypatch):
    save(tmp_path, STATE, 1)
    reader = Checkpoints(tmp_path)
    check, newer = checkpoint.check_files, iter([2, 3])

    def slow(path):
        for step in newer:
            save(tmp_path, STATE.replace(step=jnp.asarray(step)), step)
        check(path)

    monkeypatch.setattr(checkpoint, "check_files", slow)
    assert reader.latest_step == 1
    assert reader.restore()["step"] == 3


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/20", "checkpoints/20/state"])
def test_no_link_leads_out_of_a_run(saved, tmp_path, part):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / part).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=f"{tmp_path}/run/{part}"):
        restore(tmp_path / "run")


def test_what_desktops_and_network_file_systems_leave_is_no_damage(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for name in (".DS_Store", "state/.nfs000000000123", "state/d/._x"):
        (tmp_path / "checkpoints/20" / name).write_bytes(b"x")
    assert weight_hash(restore(tmp_path)) == weight_hash(STATE)
    (tmp_path / "checkpoints/20/.hidden").mkdir()  # Orbax takes folders for a part of a checkpoint
    (tmp_path / "checkpoints/20/.hidden/x").write_bytes(b"x")
    with pytest.raises(FileError, match="damaged: .hidden/x"):
        restore(tmp_path)


def test_names_and_sizes_are_compared_before_contents_are_read(saved, tmp_path, monkeypatch):
    """A file without content may be as large as it likes."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    read = []
    monkeypatch.setattr(vouching, "open_file", lambda path: read.append(path))
    path = tmp_path / "checkpoints/20/state"
    for name in ("extra", "_METADATA"):
        with open(path / name, "ab") as file:
            file.truncate(2**40)
        with pytest.raises(FileError, match=f"damaged: state/{name}"):
            restore(tmp_path)
        (path / name).unlink()
    assert not read


def test_checkpoints_whose_lists_have_no_sizes_are_read(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    rewrite_settings(tmp_path, {})
    assert "bytes" not in (tmp_path / "checkpoints/20" / HASHES).read_text()
    assert weight_hash(restore(tmp_path)) == weight_hash(STATE)


def test_arrays_that_the_files_cannot_hold_are_not_made_room_for(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    metadata = ocp.checkpointables_metadata(tmp_path / "checkpoints/20").metadata
    big = SimpleNamespace(shape=(2**21, 2**21), dtype=np.float32)
    metadata = SimpleNamespace(metadata=metadata | {"state": [big]})
    monkeypatch.setattr(states.ocp, "checkpointables_metadata", lambda _: metadata)
    with pytest.raises(FileError, match="/20 cannot be read .it declares arrays of 17,592,186,"):
        restore(tmp_path)


def test_a_checkpoint_that_declares_nothing_is_not_loaded_as_it_is(saved, monkeypatch):
    nothing = SimpleNamespace(metadata={"state": None})
    monkeypatch.setattr(states.ocp, "checkpointables_metadata", lambda _: nothing)
    monkeypatch.setattr(states.ocp, "load_checkpointables", lambda *_: pytest.fail("loaded"))
    with pytest.raises(FileError, match="/20 cannot be read .what it declares is no state"):
        restore(saved)


def test_a_state_without_averaged_weights_is_named(tmp_path):
    claim(tmp_path, SCORE_SETTINGS, "score")
    save(tmp_path / "score", {"params": np.zeros(3)}, 1)
    with pytest.raises(FileError, match="score/checkpoints/1 has no averaged weights"):
        load_score(tmp_path)


@pytest.mark.parametrize("name", ["0000000099", "\u0669\u0669", "99", "+99", "9_9"])
def test_only_folders_named_by_a_step_are_checkpoints(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / name
    path.write_text("") if name == "99" else shutil.copytree(tmp_path / "checkpoints/10", path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [10, 20]
    assert weight_hash(restore(tmp_path)) == weight_hash(STATE)
    save(tmp_path, STATE, 30)
    assert path.exists()


def test_the_next_training_removes_old_checkpoints_that_a_killed_one_left(tmp_path):
    """Also where nothing is left to train."""
    save(tmp_path, STATE, 1, 2)
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/3")
    with Checkpoints(tmp_path) as reader:
        assert reader.steps == [1, 2, 3]
    with Checkpoints(tmp_path, training=True) as checkpoints:
        assert checkpoints.steps == [2, 3]


def test_the_only_checkpoint_is_never_said_to_have_one_before_it(tmp_path):
    save(tmp_path, STATE, 1)
    (tmp_path / "checkpoints/1/state/_METADATA").write_text("{")
    with pytest.raises(ValueError, match=f"bring it back, or move {tmp_path} elsewhere and make"):
        restore(tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files", "x"), MemoryError("no room")], ids=type
)
def test_what_the_system_lacks_is_not_taken_for_damage(saved, monkeypatch, error):
    def load(*_):
        raise KeyError("as Orbax wraps it") from error

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(states.ocp, "load_checkpointables", load)
        with pytest.raises(type(error)) as caught:
            checkpoints.restore()
    assert caught.value is error


def test_whole_files_that_cannot_be_loaded_are_to_be_kept(saved, monkeypatch):
    def load(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory")

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(states.ocp, "load_checkpointables", load)
        with pytest.raises(ValueError, match="Out of memory.; its files are those that were saved"):
            checkpoints.restore()


def test_a_save_is_read_back_before_it_counts_as_whole(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, training=True) as checkpoints:
        load = states.load
        changed = lambda *a: jax.tree.map(lambda leaf: leaf + 1, load(*a))  # noqa: E731
        monkeypatch.setattr(states, "load", changed)
        with pytest.raises(ValueError, match="/1 reads otherwise than it was written"):
            checkpoints.save(1, STATE)
        assert not checkpoints.steps


# Folders of any name


NAMES = ["a b", "a#b", "[", "x[1]", "x[!1]", "{a}", "a*", "**", "a?", "100%", "a&b", "é", "e\u0301"]
NAMES += [
    "a,b",
    "a'b",
    'a"b',
    "~",
    "a\\b",
    "gs:",
    "a:b",
    "$HOME",
    "-a",
    "a\nb",
    os.fsdecode(b"\xe9"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, name):
    for other in ("ab", "x1", "a"):  # what the name matches as a pattern, or leads to as an address
        save(tmp_path / other, {"a": np.zeros(3)}, 1)
    folder, state = tmp_path / name / "score", {"a": np.arange(5000.0), "b": np.ones(3, np.int32)}
    save(folder, state, 1)
    jax.tree.map(np.testing.assert_array_equal, restore(folder), state)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "lock"]
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"ab", "x1", "a", name}  # and nowhere else
    (folder / "checkpoints/1/state/_METADATA").unlink()
    with pytest.raises(ValueError) as caught:
        restore(folder)
    assert str(caught.value).startswith(f"checkpoint {folder}/checkpoints/1 cannot be read (")


def test_links_to_folders_end_with_the_process_and_need_a_plain_place(tmp_path):
    (tmp_path / "x[1]").mkdir()
    script = """
import os, runpy, sys
folder, spelling = sys.argv[1], runpy.run_path("purify/runtime/paths.py")["plain_spelling"]
print(spelling(folder))
assert os.path.samefile(spelling(folder), folder) and spelling(folder) == spelling(folder) != folder
assert all(spelling(plain) == plain for plain in ("runs/digits", "gs://bucket/tfds"))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "x[1]")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout and not os.path.lexists(result.stdout.strip())
    environment = os.environ | {"TMPDIR": str(tmp_path / "x[1]")}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "set TMPDIR to another one" in result.stderr


# Locks


def fails_with(number: int):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_work_goes_on(
    tmp_path, monkeypatch, capsys, number
):
    monkeypatch.setattr("fcntl.flock", fails_with(number))
    save(tmp_path, STATE, 1)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the file system of {tmp_path} has no locks (")
    assert os.strerror(number) in said
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1


def test_only_a_lock_that_is_taken_means_busy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.flock", fails_with(errno.EIO))
    with pytest.raises(OSError, match=f"{tmp_path}/lock") as caught:
        Checkpoints(tmp_path, training=True)
    assert caught.value.errno == errno.EIO
    monkeypatch.setattr("fcntl.flock", fails_with(errno.EWOULDBLOCK))
    with pytest.raises(ValueError, match="is being written by another process"):
        Checkpoints(tmp_path, training=True)
    assert not capsys.readouterr().err


# What is missing


def test_a_missing_checkpoint_names_the_mode_that_makes_it(tmp_path):
    for role, load in (("classifier", load_classifier), ("score", load_score)):
        for _ in range(2):  # with no folder at all, and with settings but no checkpoint yet
            with pytest.raises(MissingCheckpoint, match=f"--mode={ROLES[role]}$") as caught:
                load(tmp_path)
            assert caught.value.mode == ROLES[role]
            assert f"no {role} checkpoint in {tmp_path / role}" in str(caught.value)
            (tmp_path / role).mkdir(exist_ok=True)
            write_json(tmp_path / role / "settings.json", {"network": {}})
    with pytest.raises(MissingCheckpoint):
        load_defense(tmp_path)


# Settings


def test_a_run_is_claimed_by_its_settings_and_refused_to_others_by_field(tmp_path):
    settings = {"train": {"learning_rate": 0.1, "widths": (8, 16)}, "seed": 0}
    claim(tmp_path / "new/run", settings)
    claim(tmp_path / "new/run", settings)  # tuples and lists are the same
    assert read_settings(tmp_path / "new/run")["train"]["widths"] == [8, 16]
    other = {"train": {"learning_rate": 0.2, "widths": (8,), "extra": 1}, "seed": 0}
    with pytest.raises(ValueError, match="made with other settings: ") as caught:
        claim(tmp_path / "new/run", other)
    fields = str(caught.value).split("settings: ")[1].split("; choose another --workdir")[0]
    assert fields == (
        "train.extra: None -> 1; train.learning_rate: 0.1 -> 0.2; train.widths: [8, 16] -> [8]"
    )
    assert read_settings(tmp_path / "new/run") == json.loads(json.dumps(settings))


def test_what_is_refused_changes_nothing(tmp_path):
    """The lock comes first: of two commands, one does not write its settings over the other's."""
    held = claim(tmp_path, {"seed": 0})
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(ValueError, match="is being written by another process"):
        claim(tmp_path, {"seed": 1})
    held.release()
    with pytest.raises(ValueError, match="made with other settings: seed: 0 -> 1"):
        claim(tmp_path, {"seed": 1})
    assert (tmp_path / "settings.json").read_bytes() == before
    claim(tmp_path, {"seed": 0})  # and whoever was refused has left the lock


@pytest.mark.parametrize("left", ["checkpoints", "images.jsonl", "arrays", "results.json"])
def test_results_without_their_settings_are_no_other_commands(tmp_path, left):
    (tmp_path / left).mkdir()
    with pytest.raises(FileError, match=f"{tmp_path} has {left}, but no settings.json"):
        claim(tmp_path, {"seed": 1})
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize("content", [None, "{"])
def test_the_folder_of_an_evaluation_says_its_settings_by_its_name(tmp_path, content):
    folder = tmp_path / settings_name({"seed": 1})
    folder.mkdir()
    (folder / "images.jsonl").write_text("")
    if content:
        (folder / "settings.json").write_text(content)
    claim(folder, {"seed": 1})
    assert read_settings(folder) == {"seed": 1}
    assert (folder / "settings.json.damaged").exists() == bool(content)


def test_nothing_is_written_through_a_link_below_a_workdir_which_may_be_one_itself(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/link").symlink_to(tmp_path / "elsewhere")
    for below in (("link",), ("link", "0123abcd")):
        with pytest.raises(FileError, match=f"'{tmp_path}/run/link' is a link"):
            claim(tmp_path / "run", {"seed": 1}, *below)
    for use in (Store, folder_of):
        with pytest.raises(FileError, match=f"'{tmp_path}/run/link' is a link"):
            use(tmp_path / "run", "link", {"seed": 1})
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "named").symlink_to(tmp_path / "elsewhere")
    claim(tmp_path / "named", {"seed": 1}, "score")
    assert read_settings(tmp_path / "elsewhere/score") == {"seed": 1}


def test_nothing_is_removed_through_a_link_in_the_folder_of_an_evaluation(tmp_path):
    with Store(tmp_path / "run", "detect", {}) as store:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/.x.partial").write_text("")
        (store.folder / "figures").symlink_to(tmp_path / "elsewhere")
    with Store(tmp_path / "run", "detect", {}):
        assert (tmp_path / "elsewhere/.x.partial").exists()


def test_a_network_is_not_read_through_a_link_to_another_workdirs(score_workdir, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/score").symlink_to(score_workdir[0] / "score")
    with pytest.raises(FileError, match=f"'{tmp_path}/run/score' is a link; .*<name>.score"):
        load_score(tmp_path / "run")
    (tmp_path / "link").symlink_to(score_workdir[0])
    load_score(tmp_path / "link")


@pytest.mark.parametrize("content", [None, "{"])
def test_of_several_processes_only_the_one_with_the_lock_moves_settings_away(
    tmp_path, monkeypatch, content
):
    """Another one, which has looked a moment earlier, would move away the good ones."""
    folder = tmp_path / settings_name({"seed": 1})
    folder.mkdir()
    if content:
        (folder / "settings.json").write_text(content)
    waited = []

    def first_process_writes(reason):
        waited.append(reason)
        write_json(folder / "settings.json", {"seed": 1})

    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    monkeypatch.setattr(settings.parallel, "wait_for_all", first_process_writes)
    claim(folder, {"seed": 1})
    assert waited and [path.name for path in folder.iterdir()] == ["settings.json"]
    with pytest.raises(ValueError, match="other settings: seed: 1 -> 2"):
        claim(folder, {"seed": 2})


def test_differing_fields_lists_every_leaf_once():
    assert differing_fields({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differing_fields({"a": {"b": 1}}, {"a": 5}) == ["a: {'b': 1} -> 5"]
    assert differing_fields({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]


@pytest.mark.parametrize("content", ["", '{"network": {"arch"'])
def test_damaged_settings_are_named(score_workdir, tmp_path, content):
    shutil.copytree(score_workdir[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "score/settings.json").write_text(content)
    for fails in (
        lambda: load_score(tmp_path),
        lambda: claim(tmp_path / "score", SCORE_SETTINGS),
    ):
        with pytest.raises(
            ValueError, match="settings.json is damaged .*; bring it back, or move "
        ):
            fails()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"arch": "unet", "widths": "abc", "blocks": 0}}, "widths='abc'"),
        ({"network": {"arch": "unet", "widths": [4], "blocks": 10**9}}, "blocks=1000000000"),
        ({"network": {"arch": "tree"}}, "'tree'"),
        ({"network": {}}, "arch None is u"),
        ({"network": WIDE | {"std": [0.0]}}, "std=[0.0]"),
        ({"network": WIDE | {"mean": [float("inf")]}}, "mean=[inf]"),
        ({"network": {"arch": "resnet", "widths": [4], "blocks": 0, "num_classes": 3}}, "classif"),
        ({"image_shape": [10**6, 10**6, 3]}, "image_shape"),
        ({"head": "<script>"}, "head"),
        ({"head": None}, "head"),
    ],
    ids=str,
)
def test_settings_that_describe_no_network_are_named(score_workdir, tmp_path, change, said):
    shutil.copytree(score_workdir[0], tmp_path, dirs_exist_ok=True)
    settings = {k: v for k, v in (SCORE_SETTINGS | change).items() if v is not None}
    rewrite_settings(tmp_path / "score", settings)
    with pytest.raises(FileError, match=f"{tmp_path}/score/settings.json describes no score") as e:
        load_score(tmp_path)
    assert said in str(e.value)


def test_other_settings_than_a_checkpoint_was_saved_with_are_named(score_workdir, tmp_path):
    """They fit the same weights: another head or another mean gives other answers."""
    shutil.copytree(score_workdir[0], tmp_path, dirs_exist_ok=True)
    path, spelled = tmp_path / "score/settings.json", json.dumps(SCORE_SETTINGS)
    path.write_text(spelled)  # only the spelling differs
    load_score(tmp_path)
    write_json(path, SCORE_SETTINGS | {"head": "score"})
    said = f"^{path} is not what checkpoint {path.parent}/checkpoints/1 was saved with: bring it"
    with pytest.raises(FileError, match=said):
        load_score(tmp_path)
    rewrite_settings(tmp_path / "score", SCORE_SETTINGS | {"head": "score"})
    assert load_score(tmp_path).head == "score"


def test_weights_of_another_width_than_the_settings_say_are_told(score_workdir, tmp_path):
    shutil.copytree(score_workdir[0], tmp_path, dirs_exist_ok=True)
    network = SCORE_SETTINGS["network"] | {"widths": [8]}
    rewrite_settings(tmp_path / "score", SCORE_SETTINGS | {"network": network})
    with pytest.raises(ValueError, match="does not fit the network"):
        load_score(tmp_path)(jnp.zeros((4, 4, 1)))


# The hash of weights


def test_the_hash_depends_on_path_dtype_shape_and_bytes_and_on_nothing_else():
    a, b = np.arange(6, dtype=np.float32), np.ones(2, np.float32)
    tree = {"dense": {"kernel": a, "bias": b}, "scale": b}
    different = {
        "renamed": {"dense": {"kernel": a, "offset": b}, "scale": b},
        "swapped": {"dense": {"kernel": b, "bias": a}, "scale": b},
        "nested": {"dense": {"kernel": a, "bias": b, "scale": b}},
        "shape": {"dense": {"kernel": a.reshape(2, 3), "bias": b}, "scale": b},
        "dtype": {"dense": {"kernel": a.view(np.int32), "bias": b}, "scale": b},
        "last bit": {"dense": {"kernel": np.nextafter(a, 9, dtype=a.dtype), "bias": b}, "scale": b},
        "sign of zero": {"dense": {"kernel": a * [-1] + 0 * a, "bias": b}, "scale": b},
        "missing": {"dense": {"kernel": a, "bias": b}},
    }
    hashes = {name: weight_hash(other) for name, other in different.items()}
    assert len({weight_hash(tree), *hashes.values()}) == len(different) + 1
    same = [
        {"scale": b, "dense": {"bias": b, "kernel": a}},  # another order
        jax.tree.map(jnp.asarray, tree),  # on a device
        {"dense": {"kernel": np.repeat(a, 2)[::2], "bias": b}, "scale": b},  # not contiguous
    ]
    assert {weight_hash(other) for other in same} == {weight_hash(tree)}
    # Pinned: the hash of a published result must stay what it was.
    assert weight_hash(tree).startswith("a62d8cce3631ccea")

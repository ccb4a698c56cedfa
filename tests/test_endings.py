"""How a command ends before it is done: one line that says what, what is safe and how to go on."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from purify.evals.core.figures import drawn
from purify.runtime import ending
from purify.runtime.errors import FileError
from purify.runtime.processes import explain_death
from purify.training import metrics
from purify.training.metrics import MetricWriter
from tests.command import ROOT, main, on_devices
from tests.faults import __main__ as faults

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def script(body: str, *, name: str = "work.py", grace: float = 10.0) -> list[str]:
    """The command of a process whose work is the body of a function; it says 'here' first."""
    lines = "\n    ".join(["print('here', flush=True)", *body.strip().splitlines()])
    code = f"""
import os, signal, sys, threading
from purify.runtime import ending
ending.GRACE = {grace}
ending.catch_signals()
sys.argv[0] = {name!r}
def work():
    {lines}
ending.run(work)
print("done")
"""
    return [sys.executable, "-c", code]


def started(*arguments, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        script(*arguments, **options),
        env=on_devices(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    return process


def said_by(process: subprocess.Popen, timeout: float = 30) -> str:
    return process.communicate(timeout=timeout)[1]


WAITING = {
    "main thread": "threading.Event().wait()",
    "child thread": "t = threading.Thread(target=threading.Event().wait, daemon=True)\n"
    "t.start()\nt.join()",
    "handler of errors": "while True:\n    try:\n        threading.Event().wait()\n"
    "    except Exception:\n        pass",
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", WAITING)
def test_a_signal_ends_it_with_one_line_and_the_exit_code_of_shells(number, where):
    process = started(WAITING[where], name="my work.py")
    process.send_signal(number)
    assert said_by(process) == (
        f"ended by {number.name}; what was finished is kept; the same command goes on: "
        "python 'my work.py'\n"
    )
    assert process.returncode == SIGNALS[number]


# Without Python's lock, for years, and no signal interrupts it.
COMPILED = (
    "import hashlib\nprint('there', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
)


def test_in_compiled_code_a_second_signal_ends_it_at_once():
    process = started(COMPILED, grace=1e9)
    assert process.stdout.readline() == "there\n"
    for _ in range(200):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
            break
    assert process.returncode == 130 and said_by(process).count("\n") == 1


def test_compiled_code_that_does_not_end_is_ended_after_a_while():
    process = started(COMPILED, grace=0.2)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGTERM)
    assert said_by(process).startswith("ended by SIGTERM; ") and process.returncode == 143


def test_a_signal_that_a_destructor_swallows_ends_it_too():
    process = started(
        "class Thing:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        list(range(10))\nThing()\nthreading.Event().wait()"
    )
    assert said_by(process).count("\n") == 1 and process.returncode == 143


def test_a_signal_that_is_ignored_on_purpose_stays_ignored():
    """As under nohup."""
    code = script("os.kill(os.getpid(), signal.SIGHUP)")
    code[2] = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code[2]}"
    result = subprocess.run(code, env=on_devices(1), capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "here\ndone\n", "")


def test_what_is_half_written_goes_when_a_signal_comes(tmp_path):
    process = started(
        "from pathlib import Path\nfrom purify.saving.files import writing\n"
        f"with writing(Path({str(tmp_path)!r}) / 'x') as file:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert said_by(process).count("\n") == 1 and process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_libraries_are_imported_is_one_line(tmp_path):
    (tmp_path / "ml_collections.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = on_devices(1) | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "main.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 143
    assert result.stderr.startswith("ended by SIGTERM; ") and result.stderr.count("\n") == 1
    assert result.stderr.endswith(": python main.py --help\n")


@pytest.mark.parametrize("draws", [True, False], ids=["terminal", "log"])
def test_a_progress_bar_is_left_before_the_line(draws):
    body = (
        f"from purify.runtime import progress as p\np._can_redraw = lambda: {draws}\n"
        "for i in p.progress(range(3), desc='train', unit='step'):\n"
        "    if i == 1: os.kill(os.getpid(), signal.SIGINT)"
    )
    result = subprocess.run(script(body), env=on_devices(1), capture_output=True)
    *bar, line = result.stderr.decode().strip("\n").split("\n")
    assert line.startswith("ended by SIGINT; ") and result.returncode == 130
    assert len(bar) == draws and all(part.startswith("\rtrain: ") for part in bar)


PRINTING = {
    "text": "while True: print('text')",
    "table": "from rich.console import Console\nwhile True: Console().print('text')",
    "the last words": "threading.Event().wait(0.2)\nprint('text')",
}


@pytest.mark.parametrize("what", PRINTING)
def test_a_reader_that_has_enough_ends_it_silently(what):
    process = started(PRINTING[what])
    process.stdout.close()
    process.stdout = None
    assert said_by(process) == "" and process.returncode == 141


def test_help_into_head_ends_silently():
    process = subprocess.Popen(
        [sys.executable, "main.py", "--help"],
        cwd=ROOT,
        env=on_devices(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # before the first line
    process.stdout = None
    assert said_by(process) == "" and process.returncode == 141


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/images.jsonl")
ORBAX = ValueError(
    'RESOURCE_EXHAUSTED: Failed writing: "/run/10/d/ae25": Failed to write 204267 bytes to file '
    "12: No space left on device [os_error_code='28']"
)


# How TensorStore tells of it (its own spec follows), and how names in a file may look.
TENSORSTORE = ValueError(
    'PERMISSION_DENIED: Error opening "zarr" driver: Failed to open: "/run/10/d": Permission '
    "denied [os_error_code='13' tensorstore_spec='{}']"
)
NAMES = ("OS error 28", "os_error_code='28'", f"OS error {'9' * 20}", "os_error_code='999'")


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, ["No space left on device: '/run/images.jsonl'", "once there is room, the same"]),
        (ORBAX, ["No space left on device: '/run/10/d/ae25'", "once there is room, the same"]),
        (TENSORSTORE, ["Permission denied: '/run/10/d'", "once that is mended, the same"]),
        (raised_from(RuntimeError("save failed"), FULL), ["device: '/run/images.jsonl'"]),
        (ExceptionGroup("threads", [FULL]), ["device: '/run/images.jsonl'"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), ["denied: '/x'", "is mended"]),
        (OSError(errno.EIO, "Input/output error", "/a\x1b]"), ["error: '/a\\x1b]'", "is mended"]),
        (
            MemoryError("Unable to allocate 3 GiB"),
            ["out of memory (Unable to", "lower --x", "kept"],
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ["lower --x"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), ["No such file", "'/x'"]),
        (ValueError("shapes:\n  (3,)\n\n  (4,)\x1b[0m"), ["error: shapes: (3,) (4,)\\x1b[0m"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_no_defect_is_one_line(error, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workdir=a b"])
    code, line = ending.explain(error, lambda: "lower --x")
    assert code == 2 and line.startswith("error: ") and line.isprintable()
    assert all(part in line for part in said), line
    if ending.KEPT in line:
        assert line.endswith(": python main.py '--workdir=a b'")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [FileError, ValueError])
def test_a_name_in_a_file_is_no_error_of_the_system(name, kind, tmp_path):
    error = raised_from(kind(f"'w.npz' has values in {name}.weight"), KeyError(name))
    assert ending.of_system(error) is None
    assert ending.explain(error, str) == (2, f"error: 'w.npz' has values in {name}.weight")
    assert ending.of_system(FileError(f"NOT_FOUND: {name}")) is None
    assert drawn(tmp_path / "cost.png", lambda path: {}[name]) == []


def test_a_pipe_of_a_library_that_breaks_is_told():
    """Only that of what is printed means that its reader has enough."""
    process = started("raise BrokenPipeError(32, 'Broken pipe')")
    said = said_by(process)
    assert process.returncode == 2 and said.startswith("error: Broken pipe; ")


def test_a_command_that_keeps_nothing_does_not_say_so(monkeypatch):
    monkeypatch.setattr(ending, "keeps", False)
    lines = [ending.explain(error, str)[1] for error in (FULL, MemoryError("3 GiB"))]
    for line in [*lines, ending.by_signal(signal.SIGINT)[1]]:
        assert ending.KEPT not in line and "goes on" not in line
        assert "; no file is left half-written; " in line
    assert "once there is room, the same command begins anew: python " in lines[0]


def test_a_defect_keeps_its_traceback():
    assert ending.explain(RuntimeError("a defect"), str) is None
    process = started("raise KeyError('loss')")
    said = said_by(process)
    assert said.startswith("Traceback ") and said.endswith("KeyError: 'loss'\n")
    assert process.returncode == 1


def test_how_jax_ends_a_process_is_one_line_that_names_the_lost_one():
    """Texts of jax 0.10.2 and of an earlier form."""
    told = (
        "following tasks are unhealthy (stopped sending heartbeats):\n{}\nThe tasks have crashed."
    )
    for names, shown in {
        "1": "1",
        "1\n12": "1, 12",
        "/job:jax_worker/replica:0/task:3": "3",
    }.items():
        code, line = explain_death(signal.SIGABRT, told.format(names))
        assert code == 2 and line.startswith(f"error: lost process {shown}, ") and "\n" not in line
    code, line = explain_death(signal.SIGABRT, "Failed to send RPC to coordination service. UNAV")
    assert code == 2 and line.startswith("error: lost process 0, ")
    code, line = explain_death(signal.SIGABRT, "free(): invalid pointer\n")
    assert code == 134 and line.startswith("free(): invalid pointer\nerror: ended by SIGABRT")


def test_a_figure_that_a_full_disk_refuses_is_not_left_out(tmp_path, capsys):
    """Any other fault of a drawing costs no more than the drawing."""

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(OSError, match="No space left"):
        drawn(tmp_path / "cost.png", full)
    assert drawn(tmp_path / "cost.png", lambda path: 1 // 0) == []
    assert "left out: " in capsys.readouterr().out


def test_metrics_go_on_where_events_cannot_be_written(tmp_path, capsys, monkeypatch):
    writer = MetricWriter(tmp_path, first_step=0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "append", full)
    for step in (1, 2):
        writer.write(step, {"loss": 0.5})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said and "events" in said
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


@pytest.fixture
def small_disk():
    """(folder, bytes) -> None: puts a disk of that size there; skips where only root may."""
    mounted = []

    def mount(folder, size: int) -> None:
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(["mount", *options]).returncode:
            pytest.skip("no disk may be mounted here")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(disk) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)


def check_full(result, place: str) -> None:
    assert result.returncode == 2, result.stderr[-3000:]
    *progress, line = result.stderr.splitlines()
    assert not any("error" in line.lower() or "Traceback" in line for line in progress)
    assert line.startswith(f"error: No space left on device: '{place}") and ending.KEPT in line
    assert "once there is room, the same command goes on: python main.py --config=" in line


def test_a_disk_that_a_checkpoint_fills_is_one_line(small_disk, trained, tmp_path):
    """The first one has room; what the second one left half-written goes with the next command."""
    small_disk(tmp_path, 600 * 1024)
    steps = ("--config.score.train.num_steps=4", "--config.score.train.checkpoint_every=1")
    wide = "--config.score.network.widths=(24,)"
    result = trained.main("--mode=train", *steps, wide, f"--workdir={tmp_path}")
    check_full(result, f"{tmp_path}/score/checkpoints/")
    assert (tmp_path / "score" / "checkpoints" / "1").is_dir()
    enlarge(tmp_path)
    result = trained.main("--mode=train", *steps, wide, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    left = [path.name for path in (tmp_path / "score" / "checkpoints").iterdir()]
    assert sorted(left) == ["3", "4"]


@pytest.mark.slow
def test_a_disk_that_records_or_figures_fill_is_one_line(small_disk, trained, tmp_path):
    """An evaluation goes on to the end once there is room."""
    trained.copied_into(tmp_path)
    (results := tmp_path / "eval_robust").mkdir()
    small_disk(results, 10 * 4096)
    command = (
        "--mode=eval_robust",
        f"--workdir={tmp_path}",
        "--config.eval.defenses=('identity',)",
    )
    check_full(trained.main(*command), f"{results}/")
    enlarge(results)
    assert trained.main(*command).returncode == 0
    (figures,) = tmp_path.glob("eval_robust/*/figures")
    small_disk(figures, 4096)
    check_full(trained.main(*command), f"{figures}/")
    enlarge(figures)
    assert trained.main(*command).returncode == 0 and any(figures.iterdir())


def test_help_says_that_a_config_is_run_as_python():
    text = " ".join(main("--help").stdout.split())
    assert "A --config FILE.py is run as Python" in text
    readme = (ROOT / "README.md").read_text()
    assert "`--config=FILE.py` runs it" in readme and "weights_only=True" in readme


def test_what_threads_report_to_a_closed_loop_is_not_told(capsys):
    """TensorStore's, where a full disk has ended a save: a dozen tracebacks beside the line."""
    problem = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    ending._unraisable(problem)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("tried", "code"), [([], 1), ([(("report", "kill", 1), "")], 0)])
def test_a_sample_of_faults_that_tries_none_shows_nothing(tried, code, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "make_before", lambda *_: None)
    monkeypatch.setattr(faults, "reference", lambda *_: ("w", {}))
    monkeypatch.setattr(faults, "in_workers", lambda *_: iter(tried))
    options = SimpleNamespace(minutes=1, points=1, seed=0, modes="report", workers=1, log=None)
    options.faults = "kill"
    assert faults.run(options, tmp_path) == code

"""`python -m tests.faults`: end each command at each of its changes to the disk, give it again, and
look whether all is as if nothing had happened.

At point K of a command, just before its K-th write, rename, new name or removal below its folder:
'kill' ends it; 'torn' ends it when half of that write is done; 'full' lets it and all later ones
find a full disk, of which the command must say so in one line that names a path. Then the same
command must lead to the same bits, each record once, and leave nothing over.
"""

import argparse
import ctypes
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Fault(NamedTuple):
    """number, and at: the kinds of changes that it strikes, both as in interpose.c."""

    number: int
    at: str


FAULTS = {"kill": Fault(1, "wrn"), "full": Fault(2, "wr"), "torn": Fault(3, "w")}
NEVER = 2**40
LIMIT = 300  # seconds for one command


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, help="as many of the points, drawn by --seed, as it has time for"
    )
    parser.add_argument("--points", type=int, help="so many of the points, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", help="A,B of the modes; all by default")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--log", type=Path, help="a line a point; those in it are not tried again")
    options = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        restart_with_interposer()
    preload_modules()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        sys.exit(run(options, Path(folder)))


def restart_with_interposer() -> None:
    """In a process whose calls of libc are counted."""
    folder = tempfile.mkdtemp(prefix="interposer-")
    library = f"{folder}/interpose.so"
    source = Path(__file__).with_name("interpose.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    environment = {
        "LD_PRELOAD": library,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TFDS_DATA_DIR": f"{folder}/tfds",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
    os.chdir(ROOT)
    os.execve(sys.executable, arguments, os.environ | environment)


def preload_modules() -> None:
    """What every command imports, once; none of it may start JAX, which forbids to fork."""
    import importlib

    import jax

    for name in ("training.train_score", "training.train_classifier"):
        importlib.import_module(f"purify.{name}")
    for name in ("saving.import_weights", "saving.export_weights"):
        importlib.import_module(f"purify.{name}")
    for name in ("robust", "certify", "corruptions", "gradients", "detect", "sample", "ablate"):
        importlib.import_module(f"purify.evals.{name}")
    for name in ("purify_files", "compare", "report.page"):
        importlib.import_module(f"purify.evals.{name}")
    assert not jax._src.xla_bridge._backends, "an import has started JAX"


def run(options: argparse.Namespace, folder: Path) -> int:
    from tests.faults.cases import CASES

    deadline = time.monotonic() + 60 * (options.minutes or 1e9)
    names = options.modes.split(",") if options.modes else list(CASES)
    for name in names:
        make_before(CASES[name].needs, folder)
    references = {name: reference(name, folder) for name in names}
    points = [
        (name, fault, at)
        for name in names
        for fault in options.faults.split(",")
        for at, change in enumerate(references[name][0], start=1)
        if change in FAULTS[fault].at
    ]
    counts = ", ".join(f"{name} {len(references[name][0])}" for name in names)
    print(f"{len(points)} points; changes to the disk by command: {counts}", flush=True)
    known = options.log.read_text().splitlines() if options.log and options.log.exists() else []
    done = {tuple(json.loads(line)[:3]) for line in known}
    points = [point for point in points if point not in done]
    if options.minutes or options.points:
        random.Random(options.seed).shuffle(points)
    points = points[: options.points]
    tried, failures = 0, []
    for point, why in in_workers(points, references, folder, options.workers, deadline):
        tried += 1
        if options.log:
            with options.log.open("a") as log:
                log.write(json.dumps([*point, why]) + "\n")
        if why:
            failures.append(point)
            print(f"{point[0]}, {point[1]} at {point[2]}: {why}", flush=True)
        elif tried % 50 == 0:
            print(f"{tried} of {len(points)} tried, {len(failures)} failed", flush=True)
    print(f"{tried} of {len(points)} points tried, {len(failures)} failed")
    return 1 if failures or (points and not tried) else 0  # what tries nothing shows nothing


def reference(name: str, folder: Path) -> tuple[str, dict]:
    """The changes that a command makes, and what it leaves in <folder>/<name>."""
    from tests.faults.cases import CASES, prepare

    case, here = CASES[name], folder / name
    if case.needs:  # its own networks would be the same
        shutil.copytree(folder / f"after {'+'.join(case.needs)}", here)
    else:
        here.mkdir()
        prepare(here)
    shutil.copytree(here, folder / f"{name}.before")
    returned, changes, said = in_child(case.command(here), here / "run")
    assert returned == 0, said
    content = content_or_why_after(here)
    assert isinstance(content, dict), content
    return changes, content


def make_before(needs: tuple[str, ...], folder: Path) -> None:
    """The folder after these cases."""
    from tests.faults.cases import CASES, prepare

    here = folder / f"after {'+'.join(needs)}"
    if not needs or here.exists():
        return
    if len(needs) > 1:
        make_before(needs[:-1], folder)
        shutil.copytree(folder / f"after {'+'.join(needs[:-1])}", here)
    else:
        here.mkdir()
        prepare(here)
    returned, _, said = in_child(CASES[needs[-1]].command(here), here / "run")
    assert returned == 0, said


def in_workers(points, references, folder, workers, deadline) -> Iterator[tuple]:
    """(point, '' or what went wrong) of each, as they come."""
    reader, writer = os.pipe()
    children = []
    for number in range(workers):
        if not (child := os.fork()):
            for point in points[number::workers]:
                if time.monotonic() > deadline:
                    break
                here = folder / f"worker{number}"
                try:
                    why = tried(point, references[point[0]], folder, here)
                except Exception:
                    why = traceback.format_exc()[-2000:]
                os.write(writer, (json.dumps([point, why[:2500]]) + "\n").encode())
            os._exit(0)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for line in lines:
            point, why = json.loads(line)
            yield tuple(point), why
    for child in children:
        os.waitpid(child, 0)


def tried(point, expected, folder: Path, here: Path) -> str:
    """What goes wrong at a point, '' for nothing."""
    from tests.faults.cases import CASES

    name, fault, at = point
    case = CASES[name]
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(folder / f"{name}.before", here, symlinks=True)
    command = case.command(here)
    returned, _, said = in_child(command, here / "run", at, FAULTS[fault].number)
    if fault == "full":
        if returned not in (0, 2):
            return f"ended with {returned} on a full disk: {said}"
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if "Traceback" in said or (returned == 2 and (len(lines) != 1 or "space" not in lines[0])):
            return f"a full disk is not told in one line: {said}"
    elif returned not in (-9, 0):
        return f"ended with {returned} where it was to be killed: {said}"
    returned, found, said = in_child(command, here / "run", look=here)
    if returned and not (case.once and returned == 2 and "exists already" in said):
        return f"does not go on, ends with {returned}: {said}"
    found = found or content_or_why_after(here)
    if isinstance(found, str):
        return found
    names = found.keys() | expected[1].keys()
    differing = sorted(name for name in names if found.get(name) != expected[1].get(name))
    return f"other content: {', '.join(differing)}" if differing else ""


def in_child(
    command: list[str], below: Path, at: int = NEVER, kind: int = 0, *, look: Path | None = None
) -> tuple[int, Any, str]:
    """(exit status, changes below that folder, see interpose.c, output) of `python COMMAND` in a
    child process; look: a folder, whose content stands in the place of the changes."""

    def work() -> int:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.faults_kinds.restype = ctypes.c_char_p
        library.faults_arm(str(below).encode(), ctypes.c_long(at), kind)
        sys.argv = command
        try:
            runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
            returned = 0
        except SystemExit as end:
            returned = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            returned = 1
        sys.stdout.flush()
        found = content_or_why(look) if look else library.faults_kinds().decode()
        os.write(2, f"\nfound {json.dumps(found)}\n".encode())
        return returned

    return found_in(*forked(work))


def content_or_why(here: Path) -> dict | str:
    """What the folder holds, or what is wrong with it."""
    from tests.faults.cases import content

    try:
        return content(here)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def content_or_why_after(here: Path) -> dict | str:
    """The same, read in a child, as reading starts JAX."""

    def work() -> int:
        os.write(2, f"\nfound {json.dumps(content_or_why(here))}\n".encode())
        return 0

    return found_in(*forked(work))[1]


def found_in(returned: int, said: str) -> tuple[int, Any, str]:
    before, found, value = said.rpartition("\nfound ")
    return (returned, json.loads(value), before) if found else (returned, "", said)


def forked(work: Callable[[], int]) -> tuple[int, str]:
    """(exit status, minus the signal that ended it, output) of a function in a child process."""
    with tempfile.TemporaryFile() as output:
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(work())
        deadline = time.monotonic() + LIMIT
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                status = 256
                break
            time.sleep(0.02)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), said


if __name__ == "__main__":
    main()

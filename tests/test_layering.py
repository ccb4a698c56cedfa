"""Imports go one way: configs and attacks know nothing of purify, purify nothing of configs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = {"collections", "dataclasses", "functools", "itertools", "math", "typing"}


def imports(file: Path) -> set[str]:
    """Dotted names of every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("file", files("attacks"), ids=lambda file: file.name)
def test_attacks_import_jax_optax_and_chex_only(file):
    assert top(imports(file)) <= {"attacks", "jax", "optax", "chex"} | STANDARD


@pytest.mark.parametrize("file", files("configs"), ids=lambda file: file.name)
def test_configs_import_ml_collections_only(file):
    assert top(imports(file)) <= {"configs", "ml_collections"}


def test_only_evaluation_and_adversarial_training_import_more_of_attacks_than_gradients():
    """Adversarial training shares the balls of attacks.norms; the attack is its own."""
    allowed = {"attacks", "attacks.gradients"}
    for file in files("purify"):
        if "evals" in file.parts:
            continue
        own = ("attacks.norms",) if file.name == "adversarial.py" else ()
        used = {name for name in imports(file) if name.split(".")[0] == "attacks"}
        assert {n for n in used if not n.startswith(("attacks.gradients", *own))} <= allowed, file


def test_only_evaluation_is_evaluation():
    for file in files("purify"):
        if "evals" not in file.parts:
            assert not any(name.startswith("purify.evals") for name in imports(file)), file


def test_library_code_takes_no_config_and_no_flags():
    """Configs stop at run(): below it, options are plain arguments."""
    for folder in ("purify", "attacks"):
        for file in files(folder):
            assert not top(imports(file)) & {"ml_collections", "absl", "configs"}, file


# The rooms of evaluation, one a mode; those below, which all rooms may enter.
ROOMS = ("ablate", "certify", "corruptions", "detect", "gradients", "robust", "sample")
BELOW = ("core", "attacked", "plots")


def room_of(name: str) -> str:
    """The folder below purify.evals that a module or file is in, '' for none."""
    parts = name.removesuffix(".py").replace("/", ".").split("purify.evals.")
    return parts[1].split(".")[0] if len(parts) == 2 else ""


@pytest.mark.parametrize("room", [*ROOMS, *BELOW])
def test_no_room_enters_another(room):
    """But the ablation the evaluation under attack, which it repeats; below, core enters none."""
    allowed = {room, *BELOW, *(["robust"] if room == "ablate" else [])}
    allowed -= {"attacked"} if room == "core" else set()
    for file in files(f"purify/evals/{room}"):
        entered = {room_of(name) for name in imports(file)} & {*ROOMS, *BELOW}
        assert entered <= allowed, file


# Folders of the library, and what each may import of the others.
FLOORS = ("types", "runtime", "random", "options", "models", "purifiers", "defense", "detectors")
FLOORS += ("saving", "data", "training", "langevin", "evals")
# Types of what is on disk are of use below, too; what is built of a checkpoint is a defence.
ASIDE = {"models": {"saving"}}


@pytest.mark.parametrize("floor", FLOORS)
def test_arrows_run_down(floor):
    folder = ROOT / "purify" / floor
    below = {*FLOORS[: FLOORS.index(floor) + 1], *ASIDE.get(floor, ())}
    for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
        names = {n.split(".")[1] for n in imports(file) if n.startswith("purify.")}
        assert names & {*FLOORS} <= below, (file, names & {*FLOORS} - below)


@pytest.mark.parametrize("folder", ["purify", "attacks"])
def test_no_import_is_hidden(folder):
    """One that is for types alone hides a circle."""
    for file in files(folder):
        assert "TYPE_CHECKING" not in file.read_text(), file


def encoding_is_left_to_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text and does not say in which encoding."""
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, "id", "")
    words = {word.arg: word.value for word in call.keywords}
    modes = [*call.args[0 if is_method else 1 :], words.get("mode"), ast.Constant("r")]
    mode = next(mode for mode in modes if mode)
    of_text = {  # the one argument of Image.open is no mode
        "open": isinstance(mode, ast.Constant) and "b" not in str(mode.value),
        "read_text": is_method,
        "write_text": is_method,
    }
    return (of_text.get(name, False) or "text" in words) and "encoding" not in words


@pytest.mark.parametrize("folder", ["purify", "attacks", "configs", "main.py"])
def test_texts_have_an_encoding_that_no_locale_decides(folder):
    for file in files(folder) if (ROOT / folder).is_dir() else [ROOT / folder]:
        calls = (
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        )
        lines = [call.lineno for call in calls if encoding_is_left_to_the_locale(call)]
        assert not lines, f"{file}: give encoding= in line {lines}"


# What opens a file where it is given a path, by the last part of its name; np.load is the linter's.
OPENING = {
    *("open", "fopen", "open_code", "read_text", "read_bytes", "FileIO", "memmap", "open_memmap"),
    *("fromfile", "loadtxt", "genfromtxt", "ZipFile", "TarFile", "GzipFile", "BZ2File", "LZMAFile"),
}
# The places that may: those of purify.saving.files; what is given a file that was opened there; and
# what is no file from outside, but the kernel's, or this package's own.
OPENERS = {
    "main.py": ["open"],  # /dev/null
    "purify/saving/arrays.py": ["np.memmap", "self._zip.open", "zipfile.ZipFile"],
    "purify/data/builders/fashion_mnist_idx.py": ["gzip.GzipFile"],
    "purify/runtime/compilation.py": [
        "Path('/proc/self/maps').read_bytes",
        "Path('/proc/sys/vm/max_map_count').read_text",
    ],
    "purify/data/corruptions/digital.py": ["Image.open"],  # of memory
    "purify/runtime/ending.py": ["os.open"],  # /dev/null
    "purify/evals/report/page.py": ["(HERE / name).read_text"],
    "purify/evals/core/sealed_arrays.py": ["np.memmap"],
    "purify/evals/core/store.py": ["Path('/proc/cpuinfo').read_text"],
    "purify/saving/files.py": ["open", "os.open", "os.open"],
    "purify/data/image_io.py": ["archive.open", "zipfile.ZipFile"],
    "purify/data/png_jpeg.py": ["Image.open"],
    "purify/saving/temporary.py": ["os.open", "os.open", "os.open"],
}


def openings(source: str) -> list[str]:
    """What a file calls that opens a file, sorted; functions of saving.files are imported alone."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [ast.unparse(call) for call in calls]
    return sorted(n for n in names if n.rpartition(".")[2] in OPENING and n != "read_bytes")


def test_files_are_opened_where_their_kind_and_size_are_looked_at():
    """Nowhere else: a pipe would block for ever, a device or a bomb fill the memory."""
    every = [*files("purify"), *files("attacks"), ROOT / "main.py"]
    found = {str(file.relative_to(ROOT)): openings(file.read_text()) for file in every}
    assert {name: calls for name, calls in found.items() if calls} == OPENERS


@pytest.mark.parametrize(
    "line",
    [
        *("open(p)", "p.open()", "os.open(p, 0)", "gzip.open(p)", "Image.open(p)", "io.open(p)"),
        *(
            "p.read_bytes()",
            "Path(p).read_text()",
            "np.memmap(p)",
            "ZipFile(p)",
            "tarfile.TarFile(p)",
        ),
        *("np.fromfile(p)", "np.lib.format.open_memmap(p)"),
    ],
)
def test_no_way_to_open_a_file_is_overlooked(line):
    assert len(openings(f"x = {line}")) == 1
    assert not openings("read_bytes(p); open_file(p); open_npz(p); os.fdopen(3)")


def test_networks_live_behind_their_wrappers():
    """Flax Linen is confined to the networks, the two wrappers and training."""
    allowed = {"loop.py", "train_classifier.py", "train_score.py"}
    for file in files("purify"):
        if "models" not in file.parts and file.name not in allowed:
            assert "flax.linen" not in imports(file), file

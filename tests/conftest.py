"""Settings for the whole suite, and fixtures that more than one file uses."""

import fcntl
import os
import shutil
import signal
import tempfile

# Where the suite is started in the background of a script, or under nohup, these are ignored, in
# all that it starts, too; tests of what they do to a command would wait for it in vain.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# Programs that several tests compile, in this process or in one they start, are compiled once.
_CACHE = tempfile.TemporaryDirectory(prefix="jax-cache-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402

from purify.runtime.compilation import trace_without_pauses  # noqa: E402
from tests.command import Trained  # noqa: E402
from tests.oracles import QUICK, double_precision  # noqa: E402

# Most programs run once: here, and in the processes that tests start, all are compiled quickly
# rather than well, before the first of them starts XLA.
_QUICKLY = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
if _QUICKLY not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{_QUICKLY} {os.environ.get('XLA_FLAGS', '')}"

trace_without_pauses()
# Shapes must match by intent, and only typed keys exist here.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def pytest_collection_modifyitems(items):
    """The longest files come first: of several processes, none is left alone with one."""
    longest = """robust attack_contracts ascent objective ablate detect adp train gradient_health
        certify main demo peers strong cifar10""".split()
    place = {f"test_{name}": i for i, name in enumerate(longest)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """A file's compiled programs go with it.

    On CPU each holds hundreds of memory maps, of which Linux grants a process 65,530
    (vm.max_map_count); beyond them the compiler ends the process.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_as_for_users():
    """What the file's tests start in a process of its own is compiled as users have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(_QUICKLY, ""))
        yield


@pytest.fixture
def x64():
    """Double precision inside the test, so that rounding does not hide (or fake) an error."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """Both networks of the digits config, trained by main.py on the TINY budget.

    One of pytest-xdist's processes trains them, and each has a copy of its own.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    original, done = shared / "trained", shared / "trained.done"
    first = Trained(original / "run", original / "tfds")
    with open(shared / "trained.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait here
        for mode in () if done.exists() else ("train_classifier", "train"):
            result = first.main(f"--mode={mode}")
            assert result.returncode == 0, result.stderr
        done.touch()
    folder = tmp_path_factory.mktemp("copied") / "trained"
    shutil.copytree(original, folder)
    return Trained(folder / "run", folder / "tfds")


@pytest.fixture
def workdir(trained, tmp_path):
    """A workdir of its own with the trained networks in it."""
    return trained.copied_into(tmp_path)

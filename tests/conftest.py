"""Settings for the whole suite, and fixtures that more than one file uses."""

import os
import tempfile

# Programs that several tests compile, in this process or in one they start, are compiled once.
_CACHE = tempfile.TemporaryDirectory(prefix="jax-cache-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.command import Trained  # noqa: E402
from tests.oracles import QUICK, double_precision  # noqa: E402

# Shapes must match by intent, and only typed keys exist here.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")


def pytest_configure(config):
    """Most programs of `make test` run once: there, and in the processes that its tests start, all
    are compiled quickly rather than well. Slow tests run what users run."""
    if config.option.markexpr == "not slow":
        quick = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
        os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}"


def pytest_collection_modifyitems(items):
    """The longest file comes first: of two processes, neither is left alone with it."""
    items.sort(key=lambda item: item.path.stem != "test_robust")


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """A file's compiled programs go with it.

    On CPU each holds hundreds of memory maps, of which Linux grants a process 65,530
    (vm.max_map_count); beyond them the compiler ends the process.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision inside the test, so that rounding does not hide (or fake) an error."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """Both networks of the digits config, trained by main.py on the TINY budget."""
    folder = tmp_path_factory.mktemp("trained")
    trained = Trained(folder / "run", folder / "tfds")
    for mode in ("train_classifier", "train"):
        result = trained.main(f"--mode={mode}")
        assert result.returncode == 0, result.stderr
    return trained


@pytest.fixture
def workdir(trained, tmp_path):
    """A workdir of its own with the trained networks in it."""
    return trained.linked_into(tmp_path)

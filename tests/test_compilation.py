"""CPU options: those that this jaxlib knows and the user did not set, and no others."""

from pathlib import Path

import jax
import pytest

from purify.runtime import compilation


@pytest.fixture
def options(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    compilation.compiler_options.cache_clear()
    yield compilation.compiler_options
    compilation.compiler_options.cache_clear()


def test_a_jaxlib_that_does_not_know_an_option_does_without(options, monkeypatch):
    known = compilation.CPU_OPTIONS
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_flight": "true"} | known)
    assert options() == known


def test_what_the_user_set_is_not_touched(options, monkeypatch):
    (name,) = compilation.CPU_OPTIONS
    assert name in options()
    options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=LIBRARY_FUSION_TYPE_REDUCE")
    assert options() == {}


def test_jit_passes_the_options_on_and_compiles_once(monkeypatch):
    traces = []

    @compilation.jit
    def double(x):
        """Twice x."""
        traces.append(x)
        return 2 * x

    assert double.__doc__ == "Twice x." and not traces
    assert float(double(1.0)) == 2.0 and float(double(3.0)) == 6.0 and len(traces) == 1
    assert float(double(x=4.0)) == 8.0
    monkeypatch.setattr(compilation, "compiler_options", lambda: {"xla_cpu_flight": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_flight"):
        compilation.jit(lambda x: x)(1.0)


def test_other_devices_get_none(options, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert options() == {}


def test_programs_that_nobody_holds_are_forgotten_before_there_are_too_many(monkeypatch):
    double = jax.jit(lambda x: 2 * x)
    held = compilation.compile_lowered(jax.jit(lambda x: 3 * x).lower(1.0))
    for share, there in ((0.4, 1), (0.6, 0)):
        double(1.0)
        monkeypatch.setattr(compilation, "_share_of_maps", lambda share=share: share)
        program = compilation.compile_lowered(jax.jit(lambda x: x + 1).lower(1.0))
        assert double._cache_size() == there
        assert float(program(1.0)) == 2.0 and float(held(1.0)) == 3.0
    assert float(double(2.0)) == 4.0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone has these files")
def test_memory_maps_are_counted():
    with open("/proc/self/maps") as file:
        maps = sum(1 for _ in file)
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert compilation._share_of_maps() == pytest.approx(maps / limit, rel=0.5)

"""How programs are traced and compiled, in one place."""

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.stages import Compiled, Lowered

from purify.types import PyTree

# XLA's YNN library takes single convolutions and leaves matrix products, alone or fused, to Eigen:
# purifiers are 1.8 (digits) and 2.1 times (CIFAR-10) as fast, their exact gradients 2.2 and 2.5
# times (two cores of an AMD EPYC; benchmarks/compiler_options.py).
CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """CPU_OPTIONS, for `jax.jit(..., compiler_options=...)` or `.compile(...)`; else none.

    Those that the user has set in XLA_FLAGS and those that the installed jaxlib does not know are
    left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {k: v for k, v in CPU_OPTIONS.items() if k not in flags and _is_known(k, v)}


def compile_lowered(lowered: Lowered) -> Compiled:
    """`lowered.compile` with compiler_options(), after making room for one more program.

    On CPUs each program holds hundreds of memory maps, of which Linux grants a process 65,530; past
    that the compiler ends the process. At half of them JAX forgets all programs that nobody holds,
    and compiles again what is called again.
    """
    if _share_of_maps() > 0.5:
        jax.clear_caches()
    return lowered.compile(compiler_options())


def trace_without_pauses() -> None:
    """Tracing makes objects by the million, next to none of them in cycles; looking for those after
    every 700 new ones took a sixth of the time that tracing takes."""
    gc.set_threshold(50_000)


def jit(function: Callable) -> Callable:
    """jax.jit with compiler_options(), which are asked for at the first call: that starts the
    backends, too early where a module is imported. Within another program, as jax.jit, jax.grad or
    jax.vmap trace one, it is jax.jit without: options are of whole programs."""
    jitted = functools.cache(lambda: jax.jit(function, compiler_options=compiler_options()))
    within = jax.jit(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return (within if is_traced(args, kwargs) else jitted())(*args, **kwargs)

    return call


def is_traced(*values: PyTree) -> bool:
    """Whether a program is being traced: with any of these values, or right here."""
    leaves = (*jax.tree.leaves(values), jnp.zeros(()))  # a compiled program traces constants, too
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _share_of_maps() -> float:
    """Memory maps of this process over those that it may have; 0 where that is not Linux's."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="utf-8"))
        return Path("/proc/self/maps").read_bytes().count(b"\n") / limit
    except OSError:
        return 0.0


def _is_known(name: str, value: str | bool) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True

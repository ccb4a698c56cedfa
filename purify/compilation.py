"""Options for XLA's CPU backend, in one place."""

import functools
import os

import jax

# Convolutions by XLA's YNN library: the digits' purifier is 1.2 times as fast, its exact gradient
# 1.3 times (two cores of an AMD EPYC; benchmarks/compiler_options.py).
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


def _is_known(name: str, value: str | bool) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True

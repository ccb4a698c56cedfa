"""Traces of purifiers that take all their steps."""

import jax
import jax.numpy as jnp

from purify.types import Array, Trace


def full_trace(step_sizes: Array, score_norms: Array, nfe: int) -> Trace:
    """A trace in which every step was taken."""
    sizes = jnp.asarray(step_sizes)
    return Trace(jnp.array(sizes.size), sizes, jnp.asarray(score_norms), jnp.array(nfe))


def rms(values: Array) -> Array:
    """The root-mean-square, for a trace: no gradient flows through it."""
    return jax.lax.stop_gradient(jnp.sqrt(jnp.mean(values**2)))

"""Losses that an attack maximises: (logits [K], label) -> scalar."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

# With fewer classes the DLR loss, and its targeted form, are undefined.
DLR_CLASSES, TARGETED_DLR_CLASSES = 3, 4


def cross_entropy(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def margin(logits: Array, label: Array) -> Array:
    """Largest other logit minus the label's: positive exactly where the label is not the answer
    (Carlini and Wagner 2017)."""
    return jnp.max(others(logits, label)) - logits[label]


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio (Croce and Hein 2020): the margin over the spread between the
    largest and the third largest logit, so that rescaling the logits changes nothing.

    Raises ValueError for fewer than three classes, where it is undefined.
    """
    if logits.shape[-1] < DLR_CLASSES:
        raise ValueError(
            f"the DLR loss needs at least {DLR_CLASSES} classes, got {logits.shape[-1]}"
        )
    largest = jax.lax.top_k(logits, 3)[0]
    return margin(logits, label) / (largest[0] - largest[2] + 1e-12)


def targeted_cross_entropy(logits: Array, label: Array, target: Array) -> Array:
    """log softmax(logits)[target]."""
    return -cross_entropy(logits, target)


def targeted_margin(logits: Array, label: Array, target: Array) -> Array:
    """The target's logit minus the label's: positive only where the label is not the answer."""
    return logits[target] - logits[label]


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """The targeted margin over the largest logit minus the mean of the third and the fourth (Croce
    and Hein 2020).

    Raises ValueError for fewer than four classes, where it is undefined.
    """
    if logits.shape[-1] < TARGETED_DLR_CLASSES:
        raise ValueError(
            f"the targeted DLR loss needs at least {TARGETED_DLR_CLASSES} classes, got "
            f"{logits.shape[-1]}"
        )
    largest = jax.lax.top_k(logits, 4)[0]
    spread = largest[0] - 0.5 * (largest[2] + largest[3])
    return targeted_margin(logits, label, target) / (spread + 1e-12)


def others(logits: Array, label: Array) -> Array:
    """The logits [K] of the other classes, -inf in the place of the label's."""
    return jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)


def likeliest_wrong(logits: Array, label: Array, count: int) -> Array:
    """The `count` classes of largest logit but for the label; ValueError where there are fewer."""
    if count >= logits.size:
        raise ValueError(f"targets={count} must be less than the {logits.size} classes there are")
    return jax.lax.top_k(others(logits, label), count)[1]


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
# The same towards one class: (logits [K], label, target) -> scalar.
TARGETED = {
    "cross_entropy": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}

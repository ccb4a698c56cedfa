"""What an ascent goes along: the gradients of several runs, or an estimate, made into one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from attacks.gradients import draws, estimated_gradient
from attacks.objective import single_run
from attacks.selective import selected
from attacks.types import Array, LogitsFn, PenaltyFn


def step_gradient(
    ascent: Any,
    logits_fn: LogitsFn,
    penalty_fn: PenaltyFn | None,
    image: Array,
    label: Array,
    target: Array | None,
) -> Callable:
    """(key, x) -> (direction [H, W, C], by the ascent's eot or estimate over its eot_samples runs;
    whether one of them was wrong, which of an estimate, that sees values only, is never known).

    ascent: an Ascent, which is made of this: no type of it can be named here.
    image: the centre of the ball [H, W, C]; target: the class aimed at, None for none.
    """

    def of(runs_fn):
        def value(key, x):
            runs = runs_fn(key, x)
            return ascent.value(runs, label, target), runs.any_wrong(label)

        return value

    value = of(ascent.runs(logits_fn, penalty_fn))
    if ascent.estimate:
        at_once = ascent.chunk and max(ascent.chunk // (2 * ascent.eot_samples), 1)
        options = (ascent.estimate, ascent.directions, ascent.delta, at_once)
        estimate = estimated_gradient(lambda key, x: value(key, x)[0], *options)
        return lambda key, x: (estimate(key, x), jnp.array(False))
    if ascent.eot == "loss_of_mean":
        return jax.grad(value, argnums=1, has_aux=True)
    # By single runs, for the mean of losses too: a chunk of runs then gives its gradients at once,
    # where the gradient of the mean, as that of loss_of_mean, computes every chunk a second time.
    run = single_run(logits_fn, penalty_fn)
    alone = of(lambda key, x: jax.tree.map(lambda a: a[None], run(key, x)))
    singles = draws(both(alone), ascent.eot_samples, ascent.chunk)

    def combined(key, x):
        (values, wrong), gradients = singles(key, x)
        if ascent.eot == "mean_of_loss":
            return gradients.mean(0), wrong.any()
        if ascent.eot == "sign_vote":
            return jnp.sign(gradients).mean(0), wrong.any()
        options = dict(lam=ascent.selectivity, num_steps=ascent.selection_steps)
        ball = dict(norm=ascent.norm, eps=ascent.eps)
        return selected(values, gradients, x, image, **ball, **options), wrong.any()

    return combined


def both(value: Callable) -> Callable:
    """Of (key, x) -> (value, more): (key, x) -> ((value, more), gradient by x)."""
    return jax.value_and_grad(value, argnums=1, has_aux=True)

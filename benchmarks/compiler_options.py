"""The purifier with and without purify.runtime.compilation's options for XLA's CPU backend.

    python -m benchmarks.compiler_options

ADP (jvp, T 10) through the U-Nets of the digits and of a CIFAR-sized model with random weights:
purified images, and their exact gradient. Both sides alternate in one run; ratios of best times.
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.timing import best_times
from purify import models
from purify.models.networks import Score
from purify.purifiers.adp import ADP
from purify.runtime.compilation import compiler_options

ROUNDS = 5
SIZES = {"8 x 8 x 1": (200, (8, 8, 1), (16, 32)), "32 x 32 x 3": (16, (32, 32, 3), (32, 64, 64))}


def purify(adp, keys, images):
    return jax.vmap(adp)(keys, images)


def gradient(adp, keys, images):
    return jax.grad(lambda x: purify(adp, keys, x).sum())(images)


def main():
    print(f"options: {compiler_options()}")
    for size, (batch, shape, widths) in SIZES.items():
        network = models.build("unet", widths=widths)
        variables = network.init(jax.random.key(0), jnp.zeros((1, *shape)))
        adp = ADP(Score(variables, network), tau=-1.0, loop="scan")  # never stops
        arguments = adp, jax.random.split(jax.random.key(1), batch), jnp.full((batch, *shape), 0.5)
        for name, function in (("purify", purify), ("gradient", gradient)):
            lowered = jax.jit(function).lower(*arguments)
            programs = {
                side: functools.partial(lowered.compile(options), *arguments)
                for side, options in (("without", {}), ("with", compiler_options()))
            }
            best = best_times(programs, ROUNDS)
            plain, chosen = (1e3 * seconds / batch for seconds in best.values())
            print(
                f"{size}, {name:8}: {plain:7.2f} ms an image without, {chosen:7.2f} with: "
                f"{plain / chosen:.2f} times as fast"
            )


if __name__ == "__main__":
    main()

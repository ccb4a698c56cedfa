"""The purifier with and without purify.compilation's options for XLA's CPU backend.

    python benchmarks/compiler_options.py

ADP (jvp, T 10) through the U-Nets of the digits and of a CIFAR-sized model with random weights:
purified images, and their exact gradient. Both sides alternate in one run; ratios of best times.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))

from purify import models  # noqa: E402
from purify.adp import ADP  # noqa: E402
from purify.compilation import compiler_options  # noqa: E402
from purify.networks import Score  # noqa: E402

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
            programs = [lowered.compile(options) for options in ({}, compiler_options())]
            best = [float("inf")] * 2
            for _ in range(ROUNDS + 1):  # the first round warms up
                for i, program in enumerate(programs):
                    start = time.perf_counter()
                    jax.block_until_ready(program(*arguments))
                    best[i] = min(best[i], time.perf_counter() - start)
            plain, chosen = (1e3 * seconds / batch for seconds in best)
            print(
                f"{size}, {name:8}: {plain:7.2f} ms an image without, {chosen:7.2f} with: "
                f"{plain / chosen:.2f} times as fast"
            )


if __name__ == "__main__":
    main()

"""Input gradient of a stack of convolutions inside a scan: XLA's own against conv2d's.

    python -m benchmarks.conv_gradient

conv2d's gradient is a forward convolution; here both sides are XLA's convolutions, none a matrix
product, so that this alone is compared. Both alternate in one run; the ratio of their best times is
printed, together with what the same gradient costs outside a loop.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import best_times
from purify.models import convolution
from purify.models.convolution import conv2d, xla_convolve
from purify.runtime.compilation import jit

STEPS, LAYERS, ROUNDS = 4, 6, 7


def gradient(conv, steps: int):
    """Compiled input gradient of `steps` applications of the stack, in a scan if more than one."""

    def stack(kernels, x):
        for kernel in kernels:
            x = jax.nn.silu(conv(x, kernel))
        return x

    def value(x, kernels):
        if steps == 1:
            return stack(kernels, x).sum()
        return lax.scan(lambda x, _: (stack(kernels, x), None), x, None, length=steps)[0].sum()

    return jit(jax.grad(value))


def main():
    convolution.MANY_CHANNELS = 1_000_000
    for batch, side, channels in ((256, 8, 32), (64, 32, 32)):
        keys = jax.random.split(jax.random.key(0), LAYERS + 1)
        scale = (2 / (9 * channels)) ** 0.5
        kernels = [scale * jax.random.normal(key, (3, 3, channels, channels)) for key in keys[1:]]
        x = jax.random.normal(keys[0], (batch, side, side, channels), jnp.float32)
        programs = {
            (name, steps): functools.partial(gradient(conv, steps), x, kernels)
            for name, conv in (("xla", xla_convolve), ("conv2d", conv2d))
            for steps in (1, STEPS)
        }
        best = {key: time / key[1] for key, time in best_times(programs, ROUNDS).items()}
        for name in ("xla", "conv2d"):
            inside, outside = 1e3 * best[name, STEPS], 1e3 * best[name, 1]
            print(
                f"{batch} x {side} x {side} x {channels}, {name:6}: {inside:7.1f} ms a step "
                f"in a scan, {outside:6.1f} ms unrolled, scan / unrolled {inside / outside:.2f}"
            )
        print(f"  in a scan, xla / conv2d: {best['xla', STEPS] / best['conv2d', STEPS]:.2f}")


if __name__ == "__main__":
    main()

"""The forms of purify.models.convolution against XLA's own convolution, on CPUs.

    python -m benchmarks.convolution

Value, gradient with respect to the input and to the kernel, each alone, of a 3 x 3 convolution in
the sizes of the small networks. Both sides alternate in one run; ratios of best times: over 1 the
form is faster. GFLOP/s count the operations of the plain convolution.
"""

import functools

import jax

from benchmarks.timing import best_times
from purify.models.convolution import conv2d, xla_convolve
from purify.runtime.compilation import compiler_options

ROUNDS = 9
# batch, side, channels, features
SHAPES = ((64, 32, 3, 32), (64, 32, 32, 3), (64, 32, 32, 32), (64, 16, 64, 64), (256, 8, 32, 32))


def programs(conv, x, kernel, cotangent):
    def gradient(argument):
        return lambda x, kernel: jax.vjp(conv, x, kernel)[1](cotangent)[argument]

    functions = {"value": conv, "input gradient": gradient(0), "kernel gradient": gradient(1)}
    return {
        name: functools.partial(
            jax.jit(function).lower(x, kernel).compile(compiler_options()), x, kernel
        )
        for name, function in functions.items()
    }


def main():
    for batch, side, channels, features in SHAPES:
        keys = jax.random.split(jax.random.key(0), 3)
        x, kernel, cotangent = (
            jax.random.normal(key, shape)
            for key, shape in zip(
                keys,
                (
                    (batch, side, side, channels),
                    (3, 3, channels, features),
                    (batch, side, side, features),
                ),
                strict=True,
            )
        )
        work = 2 * 9 * batch * side**2 * channels * features / 1e9
        sides = {
            conv.__name__: programs(conv, x, kernel, cotangent) for conv in (conv2d, xla_convolve)
        }
        for name in sides["conv2d"]:
            best = best_times({side: forms[name] for side, forms in sides.items()}, ROUNDS)
            ours, theirs = best.values()
            print(
                f"{batch} x {side} x {side}, {channels} -> {features}, {name:15}: "
                f"{work / ours:4.0f} GFLOP/s, XLA {work / theirs:4.0f}: {theirs / ours:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

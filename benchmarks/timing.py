"""How all benchmarks take time: the contenders alternate, and the best time of each counts."""

import time
from collections.abc import Callable, Hashable, Mapping

import jax


def best_times(functions: Mapping[Hashable, Callable], rounds: int) -> dict[Hashable, float]:
    """name -> the best of `rounds` times, in seconds, of a call without arguments.

    A round calls every contender once, so that what else the machine does meets them all alike; one
    more round at first warms up. What a call returns is waited for.
    """
    best = dict.fromkeys(functions, float("inf"))
    for warm in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if warm:
                best[name] = min(best[name], time.perf_counter() - start)
    return best

"""RayS (Chen and Gu, KDD 2020): the nearest decision boundary along a ray, by answers alone."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attacks.norms import NORMS
from attacks.objective import NearestWrong, one_search
from attacks.types import Array, LogitsFn, Nearest


@dataclasses.dataclass(frozen=True)
class RayS(NearestWrong):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1], under Linf.

    Sees which class is the answer, and nothing else. It searches a direction of signs along which
    the answer changes soon: from a random one along which it does, blocks of pixels, halved level
    by level, change sign; where the image at the shortest known radius is still wrong, bisection
    finds the new radius. See Expected for the ball and the choice at the end, for which alone
    there is a loss (the margin).

    num_steps: questions, each answered by the majority of eot_samples fresh runs.
    tolerance: of a radius.
    """

    loss: str = "margin"
    num_steps: int = 1000
    tolerance: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "linf":
            raise ValueError(f"norm={self.norm!r} is not defined for rays; use linf")
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance={self.tolerance} must be positive and finite")

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps")

    @property
    def budget(self) -> str:
        """For people: what is asked, and how often."""
        return f"{self.num_steps} questions, each the majority of {self.eot_samples}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return 0

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""
        return self.num_steps * self.eot_samples + self.choice_queries(self.num_candidates)

    def search(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image found, in any ball; its distance is the radius along its ray."""
        runs_fn = self.runs(logits_fn)
        last_level = math.ceil(math.log2(image.size))
        number = jnp.arange(image.size).reshape(image.shape)

        def at(direction, radius):
            return jnp.clip(image + radius * direction, 0.0, 1.0)

        def step(state: _Search, t):
            block = number // -(-image.size // 2**state.level)
            signs_key, runs_key = jax.random.split(jax.random.fold_in(key, t))
            signs = jax.random.rademacher(signs_key, image.shape, image.dtype)
            flipped = jnp.where(block == state.block, -state.direction, state.direction)
            # Where no direction is known to lead to another answer, any may.
            fresh = jnp.where(jnp.isinf(state.radius), signs, flipped)
            candidate = jnp.where(state.searching, state.candidate, fresh)
            # No image is further than 1.
            shortest = jnp.minimum(state.radius, 1.0)
            radius = jnp.where(state.searching, 0.5 * (state.low + state.high), shortest)
            x = at(candidate, radius)
            runs = runs_fn(runs_key, x)
            wrong = jnp.mean(runs.logits.argmax(-1) != label) > 0.5
            inside = NORMS["linf"].size(x - image) <= self.eps
            low = jnp.where(state.searching & ~wrong, radius, jnp.where(wrong, state.low, 0.0))
            high = jnp.where(wrong, radius, state.high)
            found = state.searching & (high - low < self.tolerance)
            leave = found | (~state.searching & ~wrong)
            was_last = (state.block + 1) * -(-image.size // 2**state.level) >= image.size
            return _Search(
                direction=jnp.where(found, candidate, state.direction),
                candidate=candidate,
                radius=jnp.where(found, high, state.radius),
                searching=~leave,
                low=jnp.where(leave, 0.0, low),
                high=high,
                level=jnp.where(
                    leave & was_last, jnp.minimum(state.level + 1, last_level), state.level
                ),
                block=jnp.where(leave, jnp.where(was_last, 0, state.block + 1), state.block),
                interim=state.interim | (inside & runs.any_wrong(label)),
            ), None

        zero, none = jnp.zeros((), image.dtype), jnp.array(0)
        ones = jnp.ones_like(image)
        no = jnp.array(False)
        start = _Search(ones, ones, zero + jnp.inf, no, zero, zero, none, none, no)
        end, _ = jax.lax.scan(step, start, jnp.arange(self.num_steps))
        found = at(end.direction, jnp.minimum(end.radius, 1.0))
        return one_search(Nearest(found, end.radius, end.interim, found))


class _Search(NamedTuple):
    direction: Array  # signs [H, W, C]
    candidate: Array  # a direction that was asked about; on the way to a radius, always the same
    radius: Array  # at which the answer is wrong along it; inf where that is not known
    # Whether the candidate's radius is being bisected, and between which bounds.
    searching: Array
    low: Array
    high: Array
    # The block: level l has 2^l of them.
    level: Array
    block: Array
    interim: Array  # see Attacked

"""The L2 attack of Carlini and Wagner (S&P 2017): the nearest wrong image by a penalty."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from attacks.gradients import average_logits
from attacks.losses import margin
from attacks.objective import NearestWrong, one_search
from attacks.types import Array, LogitsFn, Nearest

# How close to 0 and 1 pixels begin, which tanh reaches at infinity only.
INSIDE = 1 - 1e-6


@dataclasses.dataclass(frozen=True)
class CarliniWagner(NearestWrong):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1], under L2.

    Minimises |x - image|^2 + c max(-margin(x), 0) over x = (1 + tanh w) / 2 by Adam; c is the least
    that leads to a wrong answer, by bisection. See NearestWrong for what is offered of what was
    found, and Expected for the ball and the choice at the end.

    num_steps, learning_rate: of Adam, for each c.
    searches, first_c: values of c: tenfold until an answer is wrong, then bisected.
    eot_samples: runs whose averaged logits (see average) each step's margin is taken of, and by
        which an image counts as wrong.
    """

    norm: str = "l2"
    eps: float = 0.5
    loss: str = "margin"
    num_steps: int = 200
    learning_rate: float = 0.01
    searches: int = 9
    first_c: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.norm != "l2":
            raise ValueError(f"norm={self.norm!r} is not defined for carlini_wagner; use l2")
        for field in ("learning_rate", "first_c"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} must be positive and finite")

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps", "searches")

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        return f"{self.searches} penalties x {self.num_steps} steps, EOT {self.eot_samples}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return self.searches * self.num_steps * self.eot_samples

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""
        return self.choice_queries(self.num_candidates)

    def search(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image found, in any ball."""
        runs_fn = self.runs(logits_fn)
        optimizer = optax.adam(self.learning_rate)

        def penalised(w, c, key):
            x = 0.5 * (1 + jnp.tanh(w))
            runs = runs_fn(key, x)
            ahead = margin(average_logits(runs.logits, self.average), label)
            squared = jnp.sum((x - image) ** 2)
            seen = (x, jnp.sqrt(squared), ahead > 0, runs.any_wrong(label))
            return squared + c * jnp.maximum(-ahead, 0.0), seen

        def minimise(nearest: Nearest, c, key):
            def step(carry, t):
                w, state, nearest, any_wrong = carry
                gradient, (x, distance, wrong, run_wrong) = jax.grad(penalised, has_aux=True)(
                    w, c, jax.random.fold_in(key, t)
                )
                interim = run_wrong & (distance <= self.eps)
                nearest = nearest.note(x, distance, wrong=wrong, interim=interim)
                update, state = optimizer.update(gradient, state)
                return (w + update, state, nearest, any_wrong | wrong), None

            w = jnp.arctanh(INSIDE * (2 * image - 1))
            carry = (w, optimizer.init(w), nearest, jnp.array(False))
            (w, _, nearest, wrong), _ = jax.lax.scan(step, carry, jnp.arange(self.num_steps))
            return nearest.ended(0.5 * (1 + jnp.tanh(w))), wrong

        def search_c(carry, i):
            nearest, c, low, high = carry
            nearest, wrong = minimise(nearest, c, jax.random.fold_in(key, i))
            low, high = jnp.where(wrong, low, c), jnp.where(wrong, c, high)
            c = jnp.where(jnp.isinf(high), 10 * c, 0.5 * (low + high))
            return (nearest, c, low, high), None

        zero = jnp.zeros((), image.dtype)
        start = (Nearest.none(image), zero + self.first_c, zero, zero + jnp.inf)
        (nearest, *_), _ = jax.lax.scan(search_c, start, jnp.arange(self.searches))
        return one_search(nearest)

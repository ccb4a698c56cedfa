"""What an attack is, and what it returns."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
LogitsFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> logits [K], one run
DirectionFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> direction [H, W, C]
PenaltyFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> scalar, of one run


class Attacked(NamedTuple):
    """An attack's result for one image.

    image: float [H, W, C], in the ball and in [0, 1].
    loss: its loss on the selection draws, which no gradient has seen.
    start_loss: the loss of the clean image on the same draws.
    interim: bool, whether the search ever saw a wrong answer: one run at one point of the ball is
        enough, of those by which the search compares points (an ascent ranks its iterates, but for
        the last one, on one fixed set of draws). An evaluation that stops at its first success
        counts that; where answers are random, it counts luck. Selection draws are not of them.
    """

    image: Array
    loss: Array
    start_loss: Array
    interim: Array


class Nearest(NamedTuple):
    """What a search for the nearest wrong image found.

    image: float [H, W, C], in [0, 1] but in any ball; where none is wrong, any image.
    distance: its distance from the clean one, inf where none is wrong.
    interim: as in Attacked.
    """

    image: Array
    distance: Array
    interim: Array

    @classmethod
    def none(cls, image: Array) -> "Nearest":
        """Before the search."""
        return cls(image, jnp.full((), jnp.inf, image.dtype), jnp.array(False))

    def note(self, image: Array, distance: Array, *, wrong: Array, interim: Array) -> "Nearest":
        """After another image, whose answer was wrong or right."""
        nearer = wrong & (distance < self.distance)
        return Nearest(
            jnp.where(nearer, image, self.image),
            jnp.where(nearer, distance, self.distance),
            self.interim | interim,
        )


class Attack(Protocol):
    """A frozen dataclass of plain options: `attack(key, logits_fn, image, label) -> Attacked`."""

    @property
    def norm(self) -> str: ...

    @property
    def eps(self) -> float: ...

    @property
    def average(self) -> str:
        """How runs are combined where the loss is taken of their mean, see average_logits."""

    @property
    def eot_samples(self) -> int: ...

    @property
    def chunk(self) -> int | None: ...

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""

    @property
    def direction_queries(self) -> int:
        """Calls of direction_fn, an argument by keyword, per image; 0 of one that takes none."""

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked: ...

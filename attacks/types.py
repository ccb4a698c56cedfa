"""What an attack is, and what it returns."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
LogitsFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> logits [K], one run
DirectionFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> direction [H, W, C]
PenaltyFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> scalar, of one run
PassesFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> bool, of one run


class Attacked(NamedTuple):
    """An attack's result for one image.

    image: float [H, W, C], in the ball and in [0, 1].
    loss: its loss on the selection draws, which no gradient has seen.
    start_loss: the loss of the clean image on the same draws.
    interim: bool, whether the search ever saw a wrong answer: one run at one point of the ball is
        enough, of those that gave a gradient and of those by which points were compared. An
        evaluation that stops at its first success counts that; where answers are random, it counts
        luck. Selection draws are not of them, nor the values that estimate a gradient.
    """

    image: Array
    loss: Array
    start_loss: Array
    interim: Array


class Nearest(NamedTuple):
    """What a search for the nearest wrong image found.

    image: float [H, W, C], in [0, 1] but in any ball; where none is wrong, the last one.
    distance: its distance from the clean one, inf where none is wrong.
    interim: as in Attacked.
    last: float [H, W, C], in [0, 1], where the search ended, whatever the answer there: behind
        random answers, of which a lucky one makes some image the nearest for good, it goes on.
    """

    image: Array
    distance: Array
    interim: Array
    last: Array

    @classmethod
    def none(cls, image: Array) -> "Nearest":
        """Before the search."""
        return cls(image, jnp.full((), jnp.inf, image.dtype), jnp.array(False), image)

    def note(self, image: Array, distance: Array, *, wrong: Array, interim: Array) -> "Nearest":
        """After another image, whose answer was wrong or right. The clean one, at distance 0, does
        not count: it is none that a search has found. A NaN stays: where one arose in the search,
        its result is to show it."""
        taken = (wrong & (0 < distance) & (distance < self.distance)) | jnp.isnan(distance)
        return Nearest(
            jnp.where(taken, image, self.image),
            jnp.where(taken, distance, self.distance),
            self.interim | interim,
            self.last,
        )

    def ended(self, last: Array) -> "Nearest":
        """After the search, at the last image."""
        image = jnp.where(jnp.isinf(self.distance), last, self.image)
        return self._replace(image=image, last=last)


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

    @property
    def passing_queries(self) -> int:
        """Calls of passes_fn, likewise."""

    @property
    def takes_penalty(self) -> bool:
        """Whether there can be a penalty_fn, an argument by keyword."""

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked: ...

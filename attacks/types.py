"""What an attack is, and what it returns."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

Array = jax.Array
LogitsFn = Callable[[Array, Array], Array]  # (key, image [H, W, C]) -> logits [K], one run


class Attacked(NamedTuple):
    """An attack's result for one image.

    image: float [H, W, C], in the ball and in [0, 1].
    loss: its loss on the selection draws, which no gradient has seen.
    start_loss: the loss of the clean image on the same draws.
    """

    image: Array
    loss: Array
    start_loss: Array


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
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked: ...

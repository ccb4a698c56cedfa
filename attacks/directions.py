"""Where an attack can go beside along the gradient: the joint attacks of Yoon, Hwang and Lee (ICML
2021), which follow the purifier itself. A direction_fn of an ascent, see attacks.ascent."""

import dataclasses
from collections.abc import Callable

import jax

from attacks.gradients import expectation
from attacks.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoreDirection:
    """h(x), what the score model says of the image as it is: 'joint (score)'."""

    score: Callable

    @property
    def nfe(self):
        """Network evaluations of one call."""
        return self.score.nfe

    def __call__(self, key: Array, image: Array) -> Array:
        return self.score(image)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PurifiedDirection:
    """purified(x) - x, the mean of num_samples purifications: 'joint (full)'. With the keys of the
    gradient's draws, as an ascent gives them, these are the purifications that it sees."""

    purifier: Callable
    num_samples: int = dataclasses.field(metadata={"static": True})
    chunk: int | None = dataclasses.field(metadata={"static": True})

    @property
    def nfe(self):
        """Network evaluations of one call."""
        return self.num_samples * self.purifier.nfe

    def __call__(self, key: Array, image: Array) -> Array:
        return expectation(self.purifier, self.num_samples, self.chunk)(key, image) - image


DIRECTIONS: dict[str, Callable] = {
    "score": lambda purifier, num_samples, chunk: ScoreDirection(purifier.score),
    "full": PurifiedDirection,
}
Direction = ScoreDirection | PurifiedDirection


def build_direction(name: str, purifier, *, num_samples: int, chunk: int | None = None):
    """The direction `name` of a purifier, for attacks whose gradient takes num_samples draws.

    Raises ValueError for an unknown name, and for a purifier without a score model, which goes
    nowhere that is worth following.
    """
    if name not in DIRECTIONS:
        raise ValueError(f"direction={name!r} is unknown; known: {', '.join(DIRECTIONS)}")
    if not hasattr(purifier, "score"):
        raise ValueError(
            f"direction={name!r} does not apply to {type(purifier).__name__}: it has no score model"
        )
    return DIRECTIONS[name](purifier, num_samples, chunk)

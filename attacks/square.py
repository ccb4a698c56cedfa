"""Square Attack (Andriushchenko et al., ECCV 2020): random search with squares, by values alone."""

import dataclasses

import jax
import jax.numpy as jnp

from attacks.norms import NORMS
from attacks.objective import Expected
from attacks.types import Array, Attacked, LogitsFn

# Of 10,000 proposals, those from which the squares' area is halved (section 5 of the paper; steps
# of any other budget are scaled to it).
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # in a row and in a column of the first L2 perturbation


@dataclasses.dataclass(frozen=True)
class Square(Expected):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    Proposes to change one square after the other, and keeps what raises the loss. See Expected for
    the ball (Linf and L2), the loss (by default the margin, as in the paper) and its expectation.

    num_steps: proposals of each restart.
    share: of the image's area that the first squares cover.
    remeasure: whether the image that a proposal has to beat is measured again, on the same fresh
        draws as the proposal: at twice the cost one lucky draw cannot settle in. Only a
        deterministic logits_fn does without.
    """

    loss: str = "margin"
    num_steps: int = 5000
    restarts: int = 1
    share: float = 0.8
    remeasure: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.norm == "l1":
            raise ValueError("norm='l1' is not defined for square; use linf or l2")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1")

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps", "restarts")

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        runs = f"{self.restarts} x {self.num_steps} proposals"
        return f"{self.loss}, {runs}, EOT {self.eot_samples} {self.eot}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return 0

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""
        measured = 2 * self.num_steps if self.remeasure else self.num_steps + 1
        search = self.restarts * measured * self.eot_samples
        return search + self.choice_queries(self.restarts)

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        runs_fn = self.runs(logits_fn)
        begin, propose = {
            "linf": (_stripes, _propose_linf),
            "l2": (_tiles, _propose_l2),
        }[self.norm]
        search_key, selection_key = jax.random.split(key)
        sizes = jnp.asarray(self._sizes(min(image.shape[:2])))

        def run(index):
            start_key, value_key, steps_key = jax.random.split(
                jax.random.fold_in(search_key, index), 3
            )
            x = self._inside(image, self.eps * begin(start_key, image))

            def measure(key, x):
                runs = runs_fn(key, x)
                return self.value(runs, label), runs.any_wrong(label)

            def step(carry, t):
                x, value, interim = carry
                proposal_key, draws_key = jax.random.split(jax.random.fold_in(steps_key, t))
                proposal = propose(proposal_key, x - image, sizes[t], self.eps)
                proposal = self._inside(image, proposal)
                if self.remeasure:
                    value, wrong = measure(draws_key, x)
                    interim |= wrong
                proposed, wrong = measure(draws_key, proposal)
                better = proposed > value
                x = jnp.where(better, proposal, x)
                return (x, jnp.where(better, proposed, value), interim | wrong), None

            value, wrong = jnp.zeros((), x.dtype), jnp.array(False)
            if not self.remeasure:
                value, wrong = measure(value_key, x)
            steps = jnp.arange(self.num_steps)
            (x, _, interim), _ = jax.lax.scan(step, (x, value, wrong), steps)
            return x, interim

        candidates, interim = jax.vmap(run)(jnp.arange(self.restarts))
        return self.choose(
            selection_key, logits_fn, image, label, candidates, interim=interim.any()
        )

    def _inside(self, image: Array, difference: Array) -> Array:
        return NORMS[self.norm].project(image + difference, image, self.eps)

    def _sizes(self, side: int) -> list[int]:
        """The side of each step's square, in pixels."""
        sizes = []
        for t in range(self.num_steps):
            halvings = sum(t * 10_000 / self.num_steps > at for at in HALVED_AT)
            sizes.append(max(round((self.share / 2**halvings) ** 0.5 * side), self._smallest))
        return [min(size, side) for size in sizes]

    @property
    def _smallest(self) -> int:
        return 3 if self.norm == "l2" else 1  # an L2 bump has two halves, and a centre


def _stripes(key: Array, image: Array) -> Array:
    """Vertical stripes of random sign, in every channel, of Linf norm 1."""
    signs = jax.random.rademacher(key, (1, *image.shape[1:]), image.dtype)
    return jnp.broadcast_to(signs, image.shape)


def _propose_linf(key: Array, difference: Array, size: Array, eps: float) -> Array:
    """A square in which every channel is at +eps or -eps (algorithm 2)."""
    place_key, sign_key = jax.random.split(key)
    window = _window(place_key, difference.shape, size).inside
    signs = jax.random.rademacher(sign_key, (1, 1, difference.shape[2]), difference.dtype)
    return jnp.where(window, eps * signs, difference)


def _tiles(key: Array, image: Array) -> Array:
    """A grid of bumps of random sign, in every channel, of L2 norm 1."""
    height, width, channels = image.shape
    side = max(min(height, width) // TILES, 1)
    signs = jax.random.rademacher(key, (TILES, TILES, channels), image.dtype)
    rows, columns = jnp.arange(height), jnp.arange(width)
    bump = _bump(rows % side, columns % side, jnp.array(side)).astype(image.dtype)[..., None]
    tile = signs[jnp.minimum(rows // side, TILES - 1)][:, jnp.minimum(columns // side, TILES - 1)]
    difference = tile * bump
    return difference / jnp.sqrt(jnp.sum(difference**2))


def _propose_l2(key: Array, difference: Array, size: Array, eps: float) -> Array:
    """A bump in one window, with the norm of that window, of a second one, which is emptied, and of
    what the box left unused (algorithm 3)."""
    first_key, second_key, sign_key, turn_key = jax.random.split(key, 4)
    first, second = (_window(k, difference.shape, size) for k in (first_key, second_key))
    bump = _bump(first.rows, first.columns, size)
    turned = _bump(first.columns, first.rows, size).T
    bump = jnp.where(jax.random.bernoulli(turn_key), bump, turned)[..., None] * first.inside
    channels = difference.shape[2]
    signs = jax.random.rademacher(sign_key, (1, 1, channels), difference.dtype)
    unused = jnp.maximum(eps**2 - jnp.sum(difference**2), 0.0)
    new = signs * _unit(bump) + _unit(difference * first.inside)
    either = first.inside | second.inside
    available = jnp.sqrt(_squares(difference * either) + unused / channels)
    kept = jnp.where(either, 0.0, difference)
    return kept + _unit(new) * available


def _squares(difference: Array) -> Array:
    return jnp.sum(difference**2, axis=(0, 1), keepdims=True)


def _unit(difference: Array) -> Array:
    """Every channel scaled to L2 norm 1 (or 0)."""
    return difference / jnp.sqrt(jnp.maximum(_squares(difference), 1e-12))


@dataclasses.dataclass(frozen=True)
class _Window:
    inside: Array  # bool [H, W, 1]
    rows: Array  # of each pixel row, its number within the window [H]
    columns: Array


def _window(key: Array, shape: tuple[int, ...], size: Array) -> _Window:
    """A square of that size, anywhere in the image."""
    row_key, column_key = jax.random.split(key)
    rows, columns = (
        jnp.arange(side) - jax.random.randint(k, (), 0, side - size + 1)
        for k, side in zip((row_key, column_key), shape[:2], strict=True)
    )
    is_row, is_column = ((0 <= at) & (at < size) for at in (rows, columns))
    return _Window(is_row[:, None, None] & is_column[None, :, None], rows, columns)


def _bump(rows: Array, columns: Array, size: Array) -> Array:
    """Eq. 2 of the paper: [H, W], a hill in the upper half of a window, a valley in the lower one.

    A hill of n rings is 1/1^2 + ... + 1/n^2 high at its centre, and one term less a ring further.
    """
    half = size // 2
    upper = rows < half
    height = jnp.where(upper, half, size - half)
    below = jnp.where(upper, rows, rows - half)
    distance = jnp.maximum(
        jnp.abs(below - height // 2)[:, None], jnp.abs(columns - size // 2)[None, :]
    )
    rings = size // 2 + 1
    terms = 1.0 / (1.0 + jnp.arange(len(rows) + 1)) ** 2
    sums = jnp.append(0.0, jnp.cumsum(terms))
    value = sums[rings] - sums[jnp.clip(distance, 0, rings)]
    return jnp.where(upper, 1.0, -1.0)[:, None] * value

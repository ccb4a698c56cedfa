"""Attacks on a piecewise-linear network whose optimum is known, though a gradient shows one piece.

logits = [0, max_k (w_k x + b_k)], and the label is 0. The highest margin in a ball is the highest
of the pieces' own, and the nearest wrong image the nearest of theirs: both are known of each piece.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from tests.test_ascent import box_aware_optimum, compiled, quick

SIZE, PIECES, IMAGES = 12, 4, 60
SHAPE = (2, 2, 3)
EPS = {"linf": 0.15, "l2": 0.5, "l1": 1.2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Maxout:
    weights: jax.Array  # [PIECES, SIZE]
    bias: jax.Array  # [PIECES]

    def __call__(self, key, image):
        return jnp.stack([jnp.zeros(()), jnp.max(self.weights @ image.ravel() + self.bias)])


@functools.cache
def case():
    """(images [IMAGES, SIZE], a third of the pixels at the border of the box, all answered right;
    weights, bias), in double precision."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(PIECES, SIZE))
    bias = -0.5 * weights.sum(1) - 1.5
    images = np.clip(rng.uniform(-0.25, 1.25, (4 * IMAGES, SIZE)), 0, 1)
    right = (images @ weights.T + bias).max(1) < -0.1
    return images[right][:IMAGES], weights, bias


def highest(norm: str, radii: np.ndarray | float) -> np.ndarray:
    """[IMAGES, PIECES], of each piece in its ball and the box; radii: [IMAGES, PIECES], or one."""
    images, weights, bias = case()
    return np.array(
        [
            [
                w @ box_aware_optimum(norm, x, w, radius) + b
                for w, b, radius in zip(weights, bias, of_pieces, strict=True)
            ]
            for x, of_pieces in zip(images, np.broadcast_to(radii, (IMAGES, PIECES)), strict=True)
        ]
    )


@functools.cache
def nearest(norm: str) -> np.ndarray:
    """[IMAGES, PIECES], the radius at which each piece reaches 0, by bisection."""
    low, high = np.zeros((IMAGES, PIECES)), np.full((IMAGES, PIECES), 12.0)
    for _ in range(30):
        middle = (low + high) / 2
        reached = highest(norm, middle) >= 0
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def arguments():
    """(keys, network, images, labels), for a batch."""
    images, weights, bias = case()
    return (
        jax.random.split(jax.random.key(0), IMAGES),
        Maxout(*(jnp.asarray(a, jnp.float32) for a in (weights, bias))),
        jnp.asarray(images.reshape(-1, *SHAPE), jnp.float32),
        jnp.zeros(IMAGES, int),
    )


def check(found: np.ndarray, best_piece: np.ndarray, of_seen: float, of_hidden: float) -> None:
    """found: bool [IMAGES]. Where the best piece is the one whose gradient the clean image shows,
    at least the share of_seen is found, elsewhere of_hidden."""
    images, weights, bias = case()
    seen = best_piece == (images @ weights.T + bias).argmax(1)
    assert min(seen.sum(), (~seen).sum()) >= 10
    assert found[seen].mean() >= of_seen and found[~seen].mean() >= of_hidden


ASCENTS = {
    ("pgd", "linf"): dict(num_steps=40, restarts=10),
    ("pgd", "l2"): dict(num_steps=40, restarts=10),
    ("apgd", "linf"): dict(num_steps=40, restarts=10),
    ("apgd", "l2"): dict(num_steps=40, restarts=10),
    ("apgd", "l1"): dict(num_steps=60, restarts=10),
    ("square", "linf"): dict(num_steps=2000, restarts=2),
}


@pytest.mark.parametrize(("name", "norm"), ASCENTS)
def test_the_highest_piece_is_found(name, norm):
    """From random starts, half of the hidden ones too; none can be exceeded."""
    eps = EPS[norm]
    options = ASCENTS[name, norm] | dict(norm=norm, eps=eps, loss="margin", selection_draws=1)
    if name == "pgd":
        options["step_size"] = eps / 4
    loss = np.asarray(compiled(attacks.build(name, **options))(*arguments()).loss)
    best = highest(norm, eps)
    assert (loss <= best.max(1) + 1e-5).all()
    check(loss >= best.max(1) - 1e-4, best.argmax(1), of_seen=1, of_hidden=0.5)


# name, norm: options, and the shares to be found. FMN, and Carlini and Wagner's search, follow one
# gradient from the clean image; FAB starts at most half as far away as what it has found already;
# RayS sees answers alone.
SEARCHES = {
    ("fab", "linf"): (dict(num_steps=40, targets=1, restarts=5), 1, 0.1),
    ("fab", "l2"): (dict(num_steps=40, targets=1, restarts=5), 1, 0.1),
    ("fab", "l1"): (dict(num_steps=40, targets=1, restarts=5), 1, 0.1),
    **{("fmn", norm): (dict(num_steps=100), 1, 0) for norm in EPS},
    ("carlini_wagner", "l2"): (
        dict(num_steps=200, searches=8, learning_rate=0.1, first_c=1.0), 1, 0
    ),
    ("rays", "linf"): (dict(num_steps=1000, tolerance=1e-4), 0.7, 0.4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(*search, marks=[pytest.mark.slow] if search == ("fab", "l2") else [])
        for search in SEARCHES
    ],
)
def test_the_nearest_piece_is_found(name, norm):
    options, of_seen, of_hidden = SEARCHES[name, norm]
    attack = attacks.build(name, norm=norm, eps=EPS[norm], selection_draws=1, **options)
    keys, network, images, labels = arguments()
    search = quick(jax.vmap(lambda k, i, y: attack.nearest(k, network, i, y)))
    distance = np.asarray(search(keys, images, labels).distance)
    best = nearest(norm)
    assert (distance >= (1 - 1e-5) * best.min(1)).all()
    check(distance < 1.02 * best.min(1), best.argmin(1), of_seen, of_hidden)

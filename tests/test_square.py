"""Square Attack: its proposals by the paper's formulas, its schedule, and what it accepts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks import square
from attacks.losses import margin
from attacks.square import Square
from tests.test_ascent import Linear, Recorder, compiled, compiled_alone, inputs, noisy

SHAPE = (8, 8, 3)


@pytest.mark.parametrize("size", [3, 4, 5, 7])
def test_a_bump_is_the_papers(size):
    """Eq. 2: hills of rings, eta = sum over the rings around a pixel of 1 / (ring number)^2, in the
    first floor(h / 2) rows, minus those of the other rows."""

    def hill(height, width):
        values, middle = np.zeros((height, width)), (height // 2, width // 2)
        for ring in range(max(height, width) // 2 + 1):
            for i in range(height):
                for j in range(width):
                    if max(abs(i - middle[0]), abs(j - middle[1])) <= ring:
                        values[i, j] += 1 / (ring + 1) ** 2
        return values

    upper = size // 2
    expected = np.concatenate([hill(upper, size), -hill(size - upper, size)])
    at = jnp.arange(10) - 2
    bump = np.asarray(square._bump(at, at, jnp.array(size)))
    np.testing.assert_allclose(bump[2 : 2 + size, 2 : 2 + size], expected, rtol=1e-6)


def proposals(norm: str, size: int, n: int = 200):
    """Differences inside the ball (in the open box) and what is proposed instead."""
    propose = {"linf": square._propose_linf, "l2": square._propose_l2}[norm]
    keys = jax.random.split(jax.random.key(0), n)
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(n, *SHAPE)).astype(np.float32)
    lengths = np.linalg.norm(differences.reshape(n, -1), axis=1).reshape(n, 1, 1, 1)
    differences *= rng.uniform(0.3, 1, (n, 1, 1, 1)).astype(np.float32) / lengths
    batched = jax.jit(jax.vmap(lambda k, d: propose(k, d, jnp.array(size), 1.0)))
    return differences, np.asarray(batched(keys, differences))


def windows(changed: np.ndarray) -> set[tuple[int, int]]:
    """Height and width of what changed in each image [n, H, W]."""
    spans = set()
    for image in changed:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        spans.add((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
    return spans


def test_linf_proposals_are_squares_at_the_ends_of_the_ball():
    before, after = proposals("linf", 3)
    changed = (before != after).any(-1)
    assert windows(changed) == {(3, 3)} and set(changed.sum((1, 2))) == {9}
    assert set(np.unique(after[changed])) == {-1.0, 1.0}
    inside = after[changed].reshape(len(after), 9, 3)
    assert (inside == inside[:, :1]).all()  # one sign a channel
    signs = {tuple(s) for s in inside[:, 0].tolist()}
    assert len(signs) == 8
    corners = {tuple(np.argwhere(c)[0]) for c in changed}
    assert corners == {(i, j) for i in range(6) for j in range(6)}


def test_l2_proposals_spend_the_whole_ball_in_one_window():
    before, after = proposals("l2", 3)
    np.testing.assert_allclose(np.linalg.norm(after.reshape(len(after), -1), axis=1), 1, rtol=1e-5)
    changed = (np.abs(before - after) > 1e-7).any(-1)
    assert changed.sum((1, 2)).max() <= 18  # two windows
    emptied = ((after == 0) & (before != 0)).any(-1)
    assert 0 < emptied.sum((1, 2)).mean() <= 9
    # Outside both windows nothing moves.
    np.testing.assert_array_equal(np.where(changed[..., None], 0, before - after), 0)


def test_l2_windows_keep_their_norm_and_share_what_was_unused():
    """In every channel of the first window: the norm of both windows before, and a third of eps^2
    minus that of the image (algorithm 3)."""
    before, after = proposals("l2", 8, n=5)  # as large as the image: both windows are all of it
    for d, new in zip(before, after, strict=True):
        unused = 1 - np.sum(d**2)
        expected = np.sum(d**2, axis=(0, 1)) + unused / 3
        np.testing.assert_allclose(np.sum(new**2, axis=(0, 1)), expected, rtol=1e-5)


def test_l2_proposals_add_the_bump_to_what_the_window_had():
    """Of unit norm each, in every channel, the bump by either sign and upright or on its side."""
    before, after = proposals("l2", 8, n=5)
    bump = np.asarray(square._bump(jnp.arange(8), jnp.arange(8), jnp.array(8)))
    bumps = [sign * b / np.linalg.norm(b) for b in (bump, bump.T) for sign in (1, -1)]
    for d, new in zip(before, after, strict=True):
        for channel in range(3):
            had, has = (a[..., channel] / np.linalg.norm(a[..., channel]) for a in (d, new))
            sums = [b + had for b in bumps]
            apart = [np.abs(s / np.linalg.norm(s) - has).max() for s in sums]
            assert min(apart) < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_image_is_at_the_end_of_the_ball(norm):
    image = jnp.full(SHAPE, 0.5)
    begin = {"linf": square._stripes, "l2": square._tiles}[norm]
    first = np.asarray(begin(jax.random.key(0), image))
    if norm == "linf":
        assert set(np.unique(first)) == {-1.0, 1.0} and (first == first[:1]).all()
    else:
        assert np.linalg.norm(first.ravel()) == pytest.approx(1, rel=1e-5)


def test_squares_shrink_as_in_the_paper():
    """p = 0.8, halved after 10, 50, 200, ... of 10,000 proposals; sides are sqrt(p) w."""
    sizes = Square(num_steps=10_000)._sizes(32)
    at = {0: 0.8, 11: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 4001: 0.00625}
    for t, share in at.items():
        assert sizes[t] == max(round(share**0.5 * 32), 1), t
    assert sizes[10] == sizes[0] and sizes[-1] == 1 and len(sizes) == 10_000
    scaled = Square(num_steps=100)._sizes(32)
    assert scaled == sizes[::100]
    assert min(Square(norm="l2")._sizes(32)) == 3


@pytest.mark.parametrize("remeasure", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_deterministic_classifier_the_loss_never_falls(norm, remeasure):
    eps = {"linf": 0.1, "l2": 0.3}[norm]
    attack = Square(norm, eps, num_steps=20, remeasure=remeasure, selection_draws=1)
    logits_fn = noisy(sigma=0.0)
    recorder = Recorder(logits_fn)
    keys, images, labels = inputs(1)
    result = compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    runs = [run for runs in recorder.runs.values() for run in runs]
    assert attack.gradient_queries == 0 and attack.selection_queries == len(runs)
    losses = [float(margin(jnp.asarray(logits), labels[0])) for _, logits in runs]
    assert float(result.loss) == pytest.approx(max(losses), abs=1e-6)


def test_square_reaches_the_optimum_of_a_linear_classifier():
    """Under Linf: every pixel at the end of the ball that its weight points to."""
    rng = np.random.default_rng(0)
    n, size, eps = 8, 16, 0.1
    images = rng.uniform(0.2, 0.8, (n, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(2, size)).astype(np.float32)
    labels = np.zeros(n, int)
    attack = Square("linf", eps, num_steps=600, remeasure=False, selection_draws=1)
    keys = jax.random.split(jax.random.key(0), n)
    result = compiled(attack)(keys, Linear(jnp.asarray(weights), jnp.zeros(2)), images, labels)
    signs = np.sign(weights[1] - weights[0]).reshape(4, 4, 1)
    np.testing.assert_allclose(result.image, images + eps * signs, atol=1e-6)


def test_one_lucky_draw_does_not_settle_in():
    """Behind noise larger than any change of the image, which moves all logits of a draw alike:
    compared on the same draws an image improves; one that was measured once, by luck, stays."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)

    def logits_fn(key, image):
        return jnp.stack([0.0, weights @ image.ravel() + 10 * jax.random.normal(key)])

    right = {}
    for remeasure in (True, False):
        attack = Square("linf", 0.1, num_steps=600, remeasure=remeasure)
        image = compiled_alone(attack)(
            jax.random.key(0), logits_fn, jnp.full((4, 4, 1), 0.5), 0
        ).image
        right[remeasure] = np.mean(np.sign(image.ravel() - 0.5) == np.sign(weights))
    assert right[True] == 1 and right[False] < 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="l1"), "norm='l1' is not defined for square"),
        (dict(share=0.0), "share=0.0 must be above 0"),
        (dict(num_steps=0), "num_steps=0 must be at least 1"),
        (dict(eot="sign_vote"), "eot='sign_vote' is unknown"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Square(**options)

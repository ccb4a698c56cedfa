"""Selective EOT: its weights by hand, and what the mean of all draws cannot do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.pgd import PGD
from attacks.selective import selected
from tests.oracles import double_precision
from tests.test_ascent import compiled_alone

SHAPE = (2, 2, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_weights_are_those_of_expectation_maximisation(norm, num_steps):
    rng, lam, eps = np.random.default_rng(0), 2.0, 0.3
    values, gradients = rng.normal(size=5), rng.normal(size=(5, *SHAPE))
    image = rng.uniform(0, 1, SHAPE)  # pixels meet the box
    x = np.clip(image + rng.uniform(-0.1, 0.1, SHAPE), 0, 1)
    weights = np.ones(5)
    for _ in range(num_steps):
        mean = np.tensordot(weights, gradients, 1) / weights.sum()
        along = np.sign(mean) if norm == "linf" else mean / np.linalg.norm(mean)
        ahead = np.clip(image + eps * along, 0, 1)
        gains = gradients.reshape(5, -1) @ (ahead - x).ravel()
        weights = 1 / (1 + np.exp(-lam * (values + gains)))
    expected = np.tensordot(weights, gradients, 1) / weights.sum()
    with double_precision():
        ours = selected(*map(jnp.asarray, (values, gradients, x, image)), norm=norm, eps=eps,
                        lam=lam, num_steps=num_steps)  # fmt: skip
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
    plain = gradients.mean(0)
    assert np.abs(expected - plain).max() > 0.05


def test_weights_keep_their_ratios_where_no_draw_can_be_fooled():
    """Weights of exp(-1000) each, but for one that is less hopeless."""
    gradients = jnp.eye(4).reshape(4, *SHAPE)
    values = jnp.full(4, -1000.0).at[2].set(-900.0)
    x = jnp.full(SHAPE, 0.5)
    result = selected(values, gradients, x, x, norm="linf", eps=0.1)
    np.testing.assert_allclose(result, gradients[2], atol=1e-6)


# Classifiers of which half the draws cannot be fooled, but have the larger gradient


def halves(hopeless, open_):
    """Logits [u, 0] with label 1, so that the margin is u: of one or the other function of the
    image, with equal chance."""

    def logits_fn(key, image):
        pixels = image.ravel() - 0.5
        margin = jnp.where(jax.random.bernoulli(key), hopeless(pixels), open_(pixels))
        return jnp.stack([margin, 0.0 * margin])

    return logits_fn


def fooled(logits_fn, image, n: int = 400) -> float:
    keys = jax.random.split(jax.random.key(7), n)
    logits = jax.vmap(lambda key: logits_fn(key, image))(keys)
    return float(jnp.mean(logits.argmax(-1) != 1))


MEAN = PGD("linf", 0.1, num_steps=20, step_size=0.025, loss="margin", eot_samples=16)
SELECTIVE = dataclasses.replace(MEAN, eot="selective", selectivity=2.0)


def test_of_linear_draws_it_fools_all_that_can_be_fooled_where_the_mean_fools_none():
    """margins -20 + 30 p_0 + p_1 and -1 - 20 p_0 + p_1 in |p| <= 0.1: the first are never fooled
    (-16.9 at most), the second at p = (-0.1, 0.1), by 1.1. The mean of both, -10.5 + 5 p_0 + p_1,
    is largest at (0.1, 0.1), where the second have -2.9."""
    logits_fn = halves(lambda p: -20 + 30 * p[0] + p[1], lambda p: -1 - 20 * p[0] + p[1])
    image = jnp.full((2, 1, 1), 0.5)
    ends = {}
    for attack in (MEAN, SELECTIVE):
        # What was climbed to: by the mean of the losses the other end is the better choice.
        last = dataclasses.replace(attack, keep="last")
        ends[attack.eot] = compiled_alone(last)(jax.random.key(0), logits_fn, image, 1).image
    np.testing.assert_allclose(ends["mean_of_loss"].ravel(), [0.6, 0.6], atol=0.06)
    assert fooled(logits_fn, ends["mean_of_loss"]) == 0
    np.testing.assert_allclose(ends["selective"].ravel(), [0.4, 0.6], atol=1e-6)
    assert fooled(logits_fn, ends["selective"]) == pytest.approx(0.5, abs=0.1)


def test_a_steep_rise_that_fools_nothing_holds_the_mean_and_not_the_selection():
    """Hopeless draws rise by tanh(30 p) from -10: steep, and soon over. The mean stays on that
    rise, though further down the others are fooled, and the mean of the losses is higher too."""
    logits_fn = halves(lambda p: -10 + jnp.tanh(30 * p[0]), lambda p: -0.5 - 25 * p[0])
    image = jnp.full((1, 1, 1), 0.5)
    from_clean = dict(random_start=False, step_size=0.01, selection_draws=256)
    mean, selective = (
        compiled_alone(dataclasses.replace(attack, **from_clean))(
            jax.random.key(0), logits_fn, image, 1
        )
        for attack in (MEAN, SELECTIVE)
    )
    assert fooled(logits_fn, mean.image) == 0
    assert fooled(logits_fn, selective.image) == pytest.approx(0.5, abs=0.1)
    assert selective.loss > mean.loss + 0.3  # by the choice that both have in common

"""Annealed Langevin dynamics against the closed forms of Gaussian data, and the published steps."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.training.losses import noise_levels
from tests.oracles import GaussianScore, make_score

SHAPE, KEY = (4, 4, 1), jax.random.key(0)
GREY = jnp.full(SHAPE, 0.5)


@flax.struct.dataclass
class MixtureScore:
    """The unit noise that a perfect network sees, told sigma, of data sum_k w_k N(mean_k, std^2 I)
    with all pixels of a mean alike: sigma sum_k p_k(x) (x - mean_k) / (std^2 + sigma^2)."""

    weights: jax.Array  # [K]
    means: jax.Array  # [K]
    std: float = 0.1
    nfe = 1

    def predict_noise(self, image, sigma):
        variance = self.std**2 + sigma**2
        differences = image[None] - self.means[:, None, None, None]
        logits = jnp.log(self.weights) - 0.5 * jnp.sum(differences**2, (1, 2, 3)) / variance
        posterior = jax.nn.softmax(logits)[:, None, None, None]
        return sigma * jnp.sum(posterior * differences, 0) / variance


def draw(sampler, number, centre=GREY, key=KEY):
    keys = jax.random.split(key, number)
    return np.asarray(jax.jit(jax.vmap(sampler, (0, None)))(keys, centre), np.float64)


@pytest.mark.parametrize(
    ("centre", "num_levels", "steps", "step_size"), [(0.9, 6, 3, 0.05), (0.5, 10, 100, 0.2)]
)
def test_mean_and_variance_are_those_of_the_chain_for_gaussian_data(
    centre, num_levels, steps, step_size
):
    """Every step is linear in x, so the mean m and the variance v of a pixel are known exactly; and
    with many steps they are those of the data."""
    mean, std, largest, smallest = 0.3, 0.2, 1.0, 0.02
    m, v = centre - mean, largest**2
    for sigma in np.geomspace(largest, smallest, num_levels).repeat(steps):
        keep = 1 - step_size * sigma**2 / (std**2 + sigma**2)
        m, v = keep * m, keep**2 * v + 2 * step_size * sigma**2
    keep = std**2 / (std**2 + smallest**2)
    m, v = keep * m, keep**2 * v
    score = MixtureScore(jnp.ones(1), jnp.array([mean]), std)
    sampler = AnnealedLangevin(score, largest, smallest, num_levels, steps, step_size)
    x = draw(sampler, 2000, jnp.full(SHAPE, centre))
    n = x.size  # pixels are independent: the variance of n of them is known to sqrt(2 / n), 0.8 %
    assert abs(x.mean() - mean - m) < 4 * np.sqrt(v / n)
    assert abs(x.var() / v - 1) < 4 * np.sqrt(2 / n)
    if steps == 100:
        assert abs(m) < 1e-6 and abs(v / std**2 - 1) < 0.02


def test_a_noise_blind_model_of_one_image_gives_that_image():
    """It reads sigma off x, of whose 64 pixels the root-mean-square tells it to 1 / sqrt(128)."""
    levels = jnp.asarray(noise_levels(2.0, 0.02, 40))
    image = jax.random.uniform(jax.random.key(1), (8, 8, 1))
    sampler = AnnealedLangevin(GaussianScore(image, 0.0, levels), 2.0, 0.02, 40, 20, 0.1)
    x = draw(sampler, 20, jnp.full(image.shape, 0.5))
    errors = np.sqrt(((x - np.asarray(image)) ** 2).mean((1, 2, 3)))
    assert errors.mean() < 0.3 * 0.02  # most of the noise of the last level is gone


def test_both_modes_are_found_with_their_weights():
    score = MixtureScore(jnp.array([0.25, 0.75]), jnp.array([0.1, 0.9]), 0.05)
    x = draw(AnnealedLangevin(score, 8.0, 0.02, 30, 10, 0.1), 1500)
    means = x.mean((1, 2, 3))
    low = means < 0.5
    assert np.all(np.abs(means - np.where(low, 0.1, 0.9)) < 4.5 * 0.05 / 4)  # and nothing between
    assert abs(low.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(x))


@pytest.mark.parametrize("head", ["score", "energy", "denoiser"])
def test_a_step_goes_along_the_score_of_every_head(x64, head):
    """s = h / sigma, and h / sigma^2 of a denoiser; one level and one step, by hand."""
    score, sigma, a, grey = make_score(SHAPE, head=head), 0.3, 0.2, jnp.full(SHAPE, 0.5)
    sampler = AnnealedLangevin(score, sigma, sigma, 1, 1, a)
    n = [jax.random.normal(jax.random.fold_in(KEY, i), SHAPE, jnp.float64) for i in (0, 1)]
    sigma = float(np.float32(sigma))  # as levels are

    def s(x):
        return score(x) / (sigma**2 if head == "denoiser" else sigma)

    alpha = a * sigma**2
    x = grey + 0.3 * n[0]
    x = x + alpha * s(x) + np.sqrt(2 * alpha) * n[1]
    expected = x + sigma**2 * s(x)
    np.testing.assert_allclose(sampler(KEY, grey), expected, rtol=1e-9)
    np.testing.assert_array_equal(sampler.start(KEY, grey), grey + 0.3 * n[0])
    assert sampler.nfe == 2 * (2 if head == "energy" else 1)


def test_a_sample_is_a_function_of_its_key_alone():
    sampler = AnnealedLangevin(make_score(SHAPE), 1.0, 0.1, 4, 2, 0.1)
    keys = jax.random.split(KEY, 5)
    together = jax.jit(jax.vmap(sampler, (0, None)))(keys, GREY)
    np.testing.assert_allclose(
        together[3], jax.jit(lambda s, k: s(k, GREY))(sampler, keys[3]), atol=1e-5
    )
    assert len(np.unique(np.asarray(together).reshape(5, -1), axis=0)) == 5


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "steps", "published"),
    [(50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6), (190, 1086, 3, 1.8e-6), (348, 2311, 3, 0.9e-6)],
    ids=["cifar10", "celeba", "bedroom", "ffhq"],
)
def test_the_balanced_step_size_is_the_published_one(sigma_max, num_levels, steps, published):
    """eps = a sigma_L^2, to the digits that ermongroup/ncsnv2's configs have; of these, church's
    alone has another."""
    eps = balanced_step_size(sigma_max, 0.01, num_levels, steps) * 0.01**2
    assert abs(eps - published) < 0.05e-6


def test_the_balanced_step_size_of_few_levels_is_the_minimum_of_what_is_left_of_the_variance():
    """Two levels, whose ratio is 4: of steps x <- (1 - a) x + sqrt(2 a) n, from variance 16 on."""

    def variance(a, steps=3):
        left = 16.0
        for _ in range(steps):
            left = (1 - a) ** 2 * left + 2 * a
        return left

    best = minimize_scalar(variance, bounds=(1e-6, 1), method="bounded", options={"xatol": 1e-10})
    assert balanced_step_size(0.4, 0.1, 2, 3) == pytest.approx(best.x, rel=2e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps_per_level": 0}, "steps_per_level=0"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": 1.5}, "step_size=1.5"),
        ({"sigma_min": 6.0}, "sigma_min <= sigma_max"),
        ({"num_levels": 0}, "num_levels=0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        AnnealedLangevin(make_score(SHAPE), **options)


def test_no_step_size_follows_from_one_level():
    with pytest.raises(ValueError, match="num_levels=1"):
        balanced_step_size(1.0, 0.1, 1, 5)

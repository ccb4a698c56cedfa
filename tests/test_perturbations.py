"""What score models learn to undo: the contract of the table, closed forms, and Pillow."""

import dataclasses
import functools
import importlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps
from scipy.fft import dctn, idctn

from purify import purifiers
from purify.data.datasets import load
from purify.data.image_io import to_float
from purify.evals import corruptions
from purify.evals.core.inputs import score_settings
from purify.models.networks import HEADS
from purify.random import image_keys
from purify.saving.checkpoint import load_classifier, load_score
from purify.saving.jsonl import read_lines, write_json
from purify.saving.settings import read_settings
from purify.training import perturbations, train_score
from purify.training.augmix import OPERATIONS, AugMix
from purify.training.losses import dsm
from purify.training.perturbations import (
    PERTURBATIONS,
    DCTNoise,
    build,
    dct_matrix,
    effective_sigma,
)
from tests.oracles import QUICK, UnitScore
from tests.test_losses import Field

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]


def draw_images(n: int, shape, seed: int = 0) -> np.ndarray:
    """uint8 [n, H, W, C], smooth but for a little noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    y, x = np.mgrid[:height, :width][..., None] / np.array([height, width]).reshape(2, 1, 1, 1)
    waves = rng.uniform(1, 6, (2, n, 1, 1, channels))
    images = 0.5 + 0.35 * np.sin(waves[0] * x + waves[1] * y)
    return np.round(255 * np.clip(images + rng.normal(0, 0.05, images.shape), 0, 1)).astype(
        np.uint8
    )


# The contract of the table


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_displacement_is_finite_decided_by_its_key_and_that_of_an_image_alone(name, shape):
    perturbation = build(name)
    images = jnp.asarray(to_float(draw_images(6, shape)))
    keys = jax.random.split(jax.random.key(0), 6)
    batched = jax.jit(jax.vmap(perturbation), compiler_options=QUICK)
    displacements = np.asarray(batched(keys, images))
    assert displacements.shape == images.shape and displacements.dtype == np.float32
    assert np.isfinite(displacements).all()
    assert (np.abs(displacements).max((1, 2, 3)) > 1e-3).all()
    if not perturbation.has_levels:  # it is x' - x, of an x' in [0, 1]
        perturbed = images + displacements
        assert perturbed.min() >= -1e-6 and perturbed.max() <= 1 + 1e-6
    np.testing.assert_array_equal(batched(keys, images), displacements)
    same = np.asarray(batched(keys, jnp.broadcast_to(images[:1], images.shape)))
    assert np.abs(same - same[0])[1:].max((1, 2, 3)).min() > 1e-3  # other keys, other draws
    # The last, in another company, at another place.
    order = np.array([5, 1, 0, 3, 4, 2])
    np.testing.assert_allclose(batched(keys[order], images[order]), displacements[order], atol=2e-6)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_alone_without_jit_it_is_the_same(name, x64):
    perturbation = build(name)
    images = jnp.asarray(draw_images(2, (6, 6, 1)) / 255)
    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.jit(jax.vmap(perturbation))(keys, images)
    assert batched.dtype == np.float64
    for key, image, expected in zip(keys, images, batched, strict=True):
        np.testing.assert_allclose(perturbation(key, image), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("blur", {}, "perturbation 'blur' is unknown; known: gaussian, dct, augmix"),
        ("dct", {"slope": 1}, "dct has no option slope; known: power"),
        ("gaussian", {"power": 1}, "gaussian has no option power"),
        ("dct", {"power": -0.5}, "power=-0.5 must be at least 0 and finite"),
        ("dct", {"power": float("nan")}, "power=nan must be at least 0 and finite"),
        ("augmix", {"severity": 11}, "severity=11, width=3, depth=3"),
        ("augmix", {"severity": 0.1}, "0.1 < severity <= 10"),
        ("augmix", {"width": 0}, "width >= 1"),
        ("augmix", {"depth": 0}, "depth >= 1"),
    ],
)
def test_what_does_not_exist_or_is_impossible_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(name, **options)


# Noise in the frequency domain


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 6, 3)], ids=str)
def test_dct_noise_is_the_inverse_transform_of_weighted_unit_noise(shape, x64):
    """By SciPy's transform, on the same draws."""
    key, noise = jax.random.key(3), DCTNoise(power=1.5)
    n = np.asarray(jax.random.normal(key, shape))
    weights = noise.deviations(*shape[:2])
    expected = idctn(weights[..., None] * n, axes=(0, 1), norm="ortho")
    np.testing.assert_allclose(noise(key, jnp.zeros(shape)), expected, atol=1e-12)
    u, v = np.mgrid[: shape[0], : shape[1]]
    profile = (1 + np.sqrt(u**2 + v**2)) ** -1.5
    np.testing.assert_allclose(weights / weights[0, 0], profile, rtol=1e-12)
    assert np.mean(weights**2) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 8, 31])
def test_the_matrix_is_the_orthonormal_dct(size):
    x = np.random.default_rng(0).normal(size=(size, 3))
    matrix = dct_matrix(size)
    np.testing.assert_allclose(matrix @ x, dctn(x, axes=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


def test_draws_have_rms_1_and_the_covariance_of_the_closed_form():
    """IDCT w^2 DCT on pixels, for power 1; the identity, for power 0."""
    n, shape = 20_000, (4, 5, 1)
    keys = jax.random.split(jax.random.key(0), n)
    transform = np.kron(dct_matrix(4), dct_matrix(5))
    for power in (0.0, 1.0):
        noise = DCTNoise(power)
        draws = np.asarray(jax.vmap(noise, (0, None))(keys, jnp.zeros(shape))).reshape(n, -1)
        expected = transform.T @ np.diag(noise.deviations(4, 5).ravel() ** 2) @ transform
        # An entry's standard error is sqrt((C_ij^2 + C_ii C_jj) / n); five of them.
        error = 5 * np.sqrt((expected**2 + np.outer(*2 * [np.diag(expected)])) / n)
        assert (np.abs(draws.T @ draws / n - expected) < error).all()
        # Of n draws the mean square is 1 up to 5 sqrt(2 sum w^4 / n) / 20.
        spread = np.sqrt(2 * np.sum(noise.deviations(4, 5) ** 4) / n) / 20
        assert np.mean(draws**2) == pytest.approx(1, abs=5 * spread)
        if power == 0:
            np.testing.assert_allclose(expected, np.eye(20), atol=1e-12)
        else:
            assert expected[0, 1] > 0.5  # neighbours go together


def test_channels_have_noise_of_their_own():
    draws = np.asarray(DCTNoise()(jax.random.key(0), jnp.zeros((16, 16, 3)))).reshape(-1, 3)
    white = dctn(draws.reshape(16, 16, 3), axes=(0, 1)) / DCTNoise().deviations(16, 16)[..., None]
    assert np.abs(np.corrcoef(white.reshape(-1, 3).T)[~np.eye(3, dtype=bool)]).max() < 0.3


# The loss


class Scaled(UnitScore):
    """h = IDCT (gains * DCT x): linear and diagonal in the frequency domain."""

    def __init__(self, gains, head="score"):
        self.gains, self.head = gains, head
        self.matrices = [jnp.asarray(dct_matrix(side)) for side in gains.shape[:2]]

    def __call__(self, image):
        rows, columns = self.matrices
        coefficients = jnp.einsum("uy,vx,yxc->uvc", rows, columns, image)
        return jnp.einsum("uy,vx,uvc->yxc", rows, columns, self.gains[..., None] * coefficients)

    def predict_noise(self, image, sigma):
        return -self(image) / (sigma if self.head == "denoiser" else 1.0)


@pytest.mark.parametrize("head", ["score", "denoiser"])
def test_on_gaussian_data_the_minimum_is_the_closed_form(head, x64):
    """For x ~ N(0, c^2 I), E[(x - x') / sigma | x'] = -sigma w^2 / (c^2 + sigma^2 w^2) x' in the
    DCT domain; the denoiser's h is sigma times that. The loss is quadratic in the gains, of
    curvature E[DCT(x')^2]: its gradient at 0 is known, and at the optimum vanishes."""
    std, sigma, shape, n = 0.3, 0.5, (4, 4, 1), 20_000
    noise = DCTNoise(power=1.0)
    w = noise.deviations(4, 4)
    optimum = -sigma * w**2 / (std**2 + sigma**2 * w**2)
    unit = sigma if head == "denoiser" else 1.0

    def mean_loss(gains):
        def one(key):
            image_key, loss_key = jax.random.split(key)
            image = std * jax.random.normal(image_key, shape)
            sigmas = jnp.array([sigma])
            return dsm(Scaled(gains, head), loss_key, image, sigmas=sigmas, noise=noise)[0]

        return jax.vmap(one)(jax.random.split(jax.random.key(0), n)).mean()

    gradient = np.asarray(jax.jit(jax.grad(mean_loss))(jnp.zeros((4, 4))))
    curvature = (std**2 + sigma**2 * w**2) / unit**2
    # A frequency's share of the gradient at 0 is a mean of n products of two Gaussians that
    # correlate: five standard errors.
    spread = 5 * np.sqrt((sigma**2 * w**4 + (std**2 + sigma**2 * w**2) * w**2) / n) / unit
    assert (np.abs(gradient - -curvature * unit * optimum) < spread).all()
    assert (spread < 0.2 * np.abs(curvature * unit * optimum)).mean() > 0.9
    vanishing = np.asarray(jax.jit(jax.grad(mean_loss))(jnp.asarray(unit * optimum)))
    assert (np.abs(vanishing) < spread).all()
    # That of white noise at the same level is none.
    white = unit * np.full((4, 4), -sigma / (std**2 + sigma**2))
    elsewhere = np.asarray(jax.jit(jax.grad(mean_loss))(jnp.asarray(white)))
    assert (np.abs(elsewhere) > 2 * spread).mean() > 0.7


@pytest.mark.parametrize("head", HEADS)
def test_of_any_perturbation_the_target_is_the_way_back_in_units_of_sigma_eff(head, x64):
    """1/2 ||h(x') - (x - x') / sigma_eff||^2, of the denoiser 1 / sigma_eff^2 times its error's."""
    sigma_eff, key = 0.07, jax.random.key(6)
    image = jnp.asarray(draw_images(1, (8, 8, 1))[0] / 255)

    def displacement(key, image):
        return jax.random.uniform(key) * (image**2 - image)

    class Fixed(Field):
        def predict_noise(self, image, sigma):
            return -self(image) / (sigma if head == "denoiser" else 1.0)

    score = Fixed(lambda x: jnp.sin(3 * x))
    score.head = head
    noise = perturbations.scaled(displacement, sigma_eff)
    loss, _ = dsm(score, key, image, sigmas=jnp.array([sigma_eff]), noise=noise)
    target = -np.asarray(displacement(jax.random.split(key)[1], image))
    error = np.sin(3 * (np.asarray(image) - target))
    error -= target if head == "denoiser" else target / sigma_eff
    error /= sigma_eff if head == "denoiser" else 1.0
    assert np.abs(target).max() > 0.05
    assert float(loss) == pytest.approx(np.sum(error**2) / 2, rel=1e-9)


@dataclasses.dataclass(frozen=True)
class Darken:
    """x' - x = -u x^2, u uniform."""

    has_levels = False

    def __call__(self, key, image):
        return -jax.random.uniform(key) * image**2


def test_sigma_eff_is_the_rms_over_all_images_one_draw_of_each():
    images = draw_images(7, (8, 8, 1))
    u = [jax.random.uniform(key) for key in image_keys(3, np.arange(7), stream="perturbation")]
    moved = np.array(u).reshape(7, 1, 1, 1) * (images / 255.0) ** 2
    expected = np.sqrt(np.mean(moved**2))
    measure = functools.partial(effective_sigma, Darken(), batch_size=3)  # 7 has a rest
    assert measure(images, seed=3) == pytest.approx(expected, rel=1e-5)
    assert effective_sigma(Darken(), images, seed=3) == pytest.approx(expected, rel=1e-5)
    assert measure(images, seed=4) != pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="leaves every training image as it is"):
        measure(np.zeros_like(images), seed=3)


# AugMix's operations, against Pillow's


def affine(*matrix):
    return lambda image: image.transform(
        image.size, Pillow.Transform.AFFINE, matrix, Pillow.Resampling.BILINEAR
    )


def in_pillow(name: str, strength: float, side: int):
    """The same operation of a Pillow image."""
    size = abs(strength)
    return {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda image: ImageOps.posterize(image, 4 - int(4 * size)),
        "solarize": lambda image: ImageOps.solarize(image, 256 - int(256 * size)),
        "rotate": lambda image: image.rotate(30 * strength, Pillow.Resampling.BILINEAR),
        "shear_x": affine(1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": affine(1, 0, side / 3 * strength, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, side / 3 * strength),
    }[name]


def pillow_image(name: str) -> np.ndarray:
    """uint8 [H, W, 3] on which the operation of that name has something to do."""
    rng = np.random.default_rng(0)
    if name == "solarize":
        return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    if name != "equalize":
        return 40 + draw_images(1, (32, 32, 3))[0] // 2
    # Pillow's rounding of the pixels per level does nothing where 255 divides them: 256 each.
    levels = np.concatenate([rng.integers(0, 255, 255 * 256), np.full(256, 255)])
    darkened = np.sort(levels) ** 2 / 255
    return np.stack(
        [rng.permutation(np.round(darkened)).reshape(256, 256) for _ in range(3)], -1
    ).astype(np.uint8)


@pytest.mark.parametrize("strength", [0.3, -0.17, 0.02])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, strength):
    """Pillow rounds to grey levels: autocontrast and equalize down, from a table, warps to the
    nearest, from weights of 16 bits; posterize and solarize are exact."""
    image = pillow_image(name)
    expected = np.asarray(in_pillow(name, strength, len(image))(Pillow.fromarray(image)), float)
    operation = jax.jit(OPERATIONS[name], compiler_options=QUICK)
    ours = 255 * np.asarray(operation(jnp.asarray(to_float(image)), jnp.float32(strength)))
    assert np.abs(expected - image).max() > 2  # it does something
    allowed = {"posterize": 0, "solarize": 0, "autocontrast": 1, "equalize": 1}.get(name, 1)
    assert np.abs(ours - expected).max() <= allowed + 1e-3


def test_equalize_of_a_small_image_ranks_its_grey_levels(x64):
    """By hand; Pillow returns an image of 64 pixels as it is."""
    image = np.array([10, 10, 20, 30, 30, 30, 90, 90], np.uint8).reshape(2, 4, 1)
    expected = np.array([0, 0, 2, 3, 3, 3, 6, 6]).reshape(2, 4, 1) / 6
    equalize = functools.partial(OPERATIONS["equalize"], strength=jnp.float32(0.1))
    np.testing.assert_allclose(equalize(jnp.asarray(image / 255)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_flat_image_stays_as_it_is_rounding_included(name):
    image = 0.4 + 1e-6 * np.random.default_rng(0).random((8, 8, 1), np.float32)
    np.testing.assert_array_equal(OPERATIONS[name](jnp.asarray(image), jnp.float32(0.1)), image)


def test_operations_are_drawn_alike_and_their_strengths_as_in_the_paper(monkeypatch):
    """Of a chain of one: each in 1 of 9, signs alike, strengths uniform in [0.01, 0.3]."""
    for number, name in enumerate(list(OPERATIONS)):
        monkeypatch.setitem(
            OPERATIONS,
            name,
            lambda image, strength, number=number: jnp.stack([0 * strength + number, strength]),
        )
    n, key = 9000, jax.random.key(0)
    chain = jax.jit(jax.vmap(AugMix(depth=1)._chain, (0, None)), compiler_options=QUICK)
    which, strengths = np.asarray(chain(jax.random.split(key, n), jnp.zeros(2))).T
    share = np.bincount(which.astype(int), minlength=9) / n
    np.testing.assert_allclose(share, 1 / 9, atol=5 * np.sqrt(8 / 81 / n))
    assert np.mean(strengths > 0) == pytest.approx(0.5, abs=2.5 / np.sqrt(n))
    size = np.abs(strengths)
    assert size.min() >= 0.01 and size.max() <= 0.3
    assert size.mean() == pytest.approx(0.155, abs=5 * 0.29 / np.sqrt(12 * n))


def on_all_keys(function, image, n: int) -> np.ndarray:
    """Of n keys, [n, values]."""
    alike = jax.jit(jax.vmap(function, (0, None)), compiler_options=QUICK)
    return np.asarray(alike(jax.random.split(jax.random.key(0), n), image), float).reshape(n, -1)


def test_chains_have_one_to_depth_operations(monkeypatch):
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, strength: image + 0.1)
    n = 4000
    lengths = 10 * on_all_keys(AugMix()._chain, jnp.zeros((1, 1, 1)), n).ravel()
    share = [np.mean(np.abs(lengths - k) < 1e-4) for k in (1, 2, 3)]
    np.testing.assert_allclose(share, 1 / 3, atol=5 * 0.48 / n**0.5)


def test_a_mixture_has_dirichlet_weights_and_a_uniform_share(monkeypatch):
    """Each operation here marks a pixel of its own, so x' - x is m times the weights of those that
    were drawn, of chains of one. E sum_i w_i^2 is 1/2, and one in nine pairs shares a pixel."""
    for number, name in enumerate(list(OPERATIONS)):
        mark = jnp.zeros(9).at[number].set(1.0).reshape(3, 3, 1)
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, strength, mark=mark: image + mark.astype(image.dtype)
        )
    n = 4000
    moved = on_all_keys(AugMix(depth=1), jnp.zeros((3, 3, 1)), n)
    m = moved.sum(1)
    for quantile in (0.25, 0.5, 0.75):
        assert np.quantile(m, quantile) == pytest.approx(quantile, abs=5 * 0.5 / n**0.5)
    squares = ((moved / m[:, None]) ** 2).sum(1)
    assert squares.mean() == pytest.approx(0.5 + 0.5 / 9, abs=float(5 * squares.std() / n**0.5))


# Training

SMALL = {
    "score.network.widths": (4,),
    "score.network.blocks": 0,
    "score.train.num_steps": 150,
    "score.train.batch_size": 32,
    "score.train.learning_rate": 0.01,
    "score.train.warmup_steps": 5,
    "score.train.log_every": 50,
}


def small_config(tfds_dir, perturbation: str, **changes):
    """changes: fields of config.score, with '.' as '__'."""
    config = importlib.import_module("configs.digits").get_config()
    changes = {f"score.{k.replace('__', '.')}": v for k, v in changes.items()}
    config.update_from_flattened_dict(SMALL | changes)
    config.score.perturbation = perturbation
    config.data.dir = str(tfds_dir)
    return config


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module", params=["dct", "augmix"])
def learnt(request, tmp_path_factory, tfds_dir):
    """(perturbation, workdir) of a short run."""
    workdir = tmp_path_factory.mktemp(request.param)
    train_score.run(small_config(tfds_dir, request.param), workdir)
    return request.param, workdir


def test_a_run_learns_to_undo_it(learnt):
    """The displacement has rms 1 in its units: of h = 0 the loss is 64 / 2."""
    line = read_lines(learnt[1] / "score/metrics.jsonl")[-1]
    assert line["loss"] < 0.9 * 32


def test_a_run_and_an_evaluation_record_what_it_has_learnt_to_undo(learnt, tfds_dir):
    name, workdir = learnt
    settings = read_settings(workdir / "score")
    recorded = dict(settings["perturbation"])
    if name == "dct":
        assert recorded == {"name": "dct", "power": 1.0}
        assert settings["sigma_max"] == 0.6
    else:
        sigma_eff = recorded.pop("sigma_eff")
        assert recorded == {"name": "augmix", "severity": 3.0, "width": 3, "depth": 3}
        assert "sigma_max" not in settings
        images = load("digits8x8", "train", data_dir=tfds_dir).images
        assert sigma_eff == pytest.approx(effective_sigma(AugMix(), images, seed=0), rel=1e-6)
        line = read_lines(workdir / "score/metrics.jsonl")[-1]
        assert line[f"loss_by_sigma/{sigma_eff:.3g}"] == pytest.approx(line["loss"])
    expected = {"head": "score", "perturbation": settings["perturbation"]}
    assert score_settings(load_score(workdir), workdir / "score") == expected
    # Settings of Gaussian runs, and of their evaluations, are what they were before there was more.
    del settings["perturbation"]
    (workdir / "gaussian").mkdir()
    write_json(workdir / "gaussian/settings.json", settings)
    given = score_settings(load_score(workdir), workdir / "gaussian")
    assert given == {"head": "score"}


def test_corruptions_are_purified_by_the_score_model_of_another_run(
    learnt, trained, tmp_path, capsys
):
    """Beside the evaluation's own; which it is, and what it has learnt, is said and recorded."""
    name, other = learnt
    workdir = trained.copied_into(tmp_path)
    config = trained.config(
        variants__other=dict(purifier="adp", sigma=0.0, score=str(other)),
        corruptions__names=("contrast",),
        corruptions__severities=(3,),
        corruptions__defenses=("identity", "adp_s0", "other", "detect_then_purify"),
        corruptions__num_images=4,
    )
    corruptions.run(config, workdir)
    assert f"{other}/score: learnt to undo {name}" in capsys.readouterr().out
    (folder,) = (workdir / "eval_corruptions").iterdir()
    results = json.loads((folder / "results.json").read_text())
    run = f"{other}/score"
    assert results["trained"][run]["perturbation"]["name"] == name
    assert results["weights"].keys() == {"classifier", "score", run}
    images = load("digits8x8", "test[:4]", data_dir=trained.tfds).images.astype(np.float32) / 255
    purifier = purifiers.build("adp", load_score(other), sigma=0.0, num_steps=3)
    logits = jax.vmap(lambda x: load_classifier(workdir)(purifier(jax.random.key(0), x)))(images)
    stored = np.load(folder / "arrays" / "other-clean.logits.npy")[:, 0, 0]
    np.testing.assert_allclose(stored, logits, atol=1e-3)
    by_detector = np.load(folder / "arrays" / "detect_then_purify-contrast_3.logits.npy")
    assert np.isfinite(by_detector).all()


def test_a_run_goes_on_with_the_same_perturbation_only(learnt, tmp_path, tfds_dir, monkeypatch):
    name, workdir = learnt
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    refused = [
        ("dct", {"dct__power": 2.0}),
        ("augmix", {"augmix__depth": 2}),
        ("gaussian", {}),
        ("augmix" if name == "dct" else "dct", {}),
    ]
    # Also: what was recorded is not measured again; elsewhere it might be rounded differently.
    monkeypatch.setattr(perturbations, "effective_sigma", lambda *_, **__: 0.5)
    for other, options in refused:
        config = small_config(tfds_dir, other, **options)
        with pytest.raises(ValueError, match="was made with other settings: .*perturbation"):
            train_score.run(config, tmp_path)
    train_score.run(small_config(tfds_dir, name), tmp_path)

"""Adaptive denoising purification against closed forms, plain loops and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify import models
from purify.models.networks import Score
from purify.purifiers.adp import ADP, CURVATURES
from tests.oracles import (
    ConstantScore,
    LinearScore,
    OneConvolution,
    count_convolutions,
    double_precision,
    make_score,
    relative_error,
)

every_curvature = pytest.mark.parametrize("curvature", CURVATURES)
KEY = jax.random.key(0)


@jax.jit
def trace(purifier, key, image):
    return purifier.trace(key, image)


@jax.jit
def trace_batch(purifier, keys, images):
    return jax.vmap(lambda purifier, k, x: purifier.trace(k, x), (None, 0, 0))(
        purifier, keys, images
    )


def isotropic(curvature: float, shape=(2, 3, 1)):
    """h(x) = -curvature (x - 0.5)."""
    return LinearScore(curvature * jnp.eye(int(np.prod(shape))), jnp.full(shape, 0.5))


def images(n, shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(n, *shape)))


# Step sizes


@every_curvature
def test_image_and_step_sizes_equal_a_hand_written_loop(x64, curvature):
    """h(x) = -A (x - m): curvature <d, A d> / ||d||^2, where d is h itself or, for the secant, the
    last displacement, which is not along h because a pixel clips, and then stays where it is."""
    shape, lam, alpha_max, num_steps = (2, 2, 1), 0.4, 0.3, 7
    matrix = np.random.default_rng(1).standard_normal((4, 4)) + np.diag([3.0, 4.0, 5.0, 9.0])
    mean = np.array([0.45, 0.45, 1.1, 0.45])
    x = np.array([0.3, 0.6, 0.5, 0.2])
    score = LinearScore(jnp.asarray(matrix), jnp.asarray(mean).reshape(shape))
    adp = ADP(score, 0.0, lam, 1e-4, alpha_max=alpha_max, num_steps=num_steps, curvature=curvature)
    actual, actual_trace = trace(adp, KEY, jnp.asarray(x).reshape(shape))

    alphas, norms, clips, previous = [], [], 0, None
    for _ in range(num_steps):
        h = -matrix @ (x - mean)
        direction = h if curvature != "secant" or previous is None else x - previous
        alpha = min(lam * direction @ direction / (direction @ matrix @ direction), alpha_max)
        alphas.append(alpha)
        norms.append(np.sqrt(np.mean(h**2)))
        previous, x = x, np.clip(x + alpha * h, 0.0, 1.0)
        clips += np.sum((x == 0.0) | (x == 1.0))

    assert clips >= 4 and len({round(a, 6) for a in alphas}) >= 4  # the sizes really adapt
    # The finite difference is exact for a linear h up to 1e-16 / delta.
    np.testing.assert_allclose(actual_trace.step_sizes, alphas, rtol=1e-11)
    np.testing.assert_allclose(actual_trace.score_norms, norms, rtol=1e-11)
    np.testing.assert_allclose(actual.ravel(), x, rtol=1e-11)


@every_curvature
@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (2.0, 0.05 / 2.0),  # lam / curvature
        (0.5, 0.1),  # lam / curvature = alpha_max
        (0.01, 0.1),  # flatter: the upper bound
        (0.0, 0.1),  # flat
        (-1e-6, 0.1),  # and no jump below zero, where the published code takes the smallest step
        (-2.0, 0.1),
        (1e4, 1e-5),  # lam / curvature = 5e-6, under the lower bound
    ],
)
def test_step_size_is_lam_over_curvature_within_its_bounds(x64, curvature, slope, expected):
    adp = ADP(isotropic(slope), 0.0, 0.05, tau=1e-6, num_steps=3, curvature=curvature)
    _, info = trace(adp, KEY, images(1, (2, 3, 1))[0])
    np.testing.assert_allclose(info.step_sizes, expected, rtol=1e-9)  # 1e-16 / (delta slope)
    assert info.steps == 3


@every_curvature
def test_isotropic_gaussian_contracts_by_one_minus_lam(x64, curvature):
    """The data are N(0.5, c^2 I) at one noise level, h = -sigma (x - 0.5) / (c^2 + sigma^2): every
    step is lam times the exact minimiser, whatever c and sigma."""
    std, sigma, lam = 0.3, 0.2, 0.1
    score = isotropic(sigma / (std**2 + sigma**2))
    adp = ADP(score, 0.0, lam, alpha_max=10.0, num_steps=6, curvature=curvature)
    x = images(1, (2, 3, 1))[0]
    purified, info = trace(adp, KEY, x)
    np.testing.assert_allclose(info.step_sizes, lam * (std**2 + sigma**2) / sigma, rtol=1e-10)
    np.testing.assert_allclose(purified - 0.5, (1 - lam) ** 6 * (x - 0.5), rtol=1e-10)


# Stopping


@every_curvature
@pytest.mark.parametrize(("tau", "steps"), [(0.25, 0), (0.2499, 3)])
def test_an_image_stops_at_alpha_equal_to_tau_without_moving(curvature, tau, steps):
    """One pixel and dyadic numbers, so that alpha = 0.5 / 2 is exact in float32."""
    score = isotropic(2.0, (1, 1, 1))
    adp = ADP(score, 0.0, 0.5, tau, alpha_max=0.5, delta=2.0**-10, num_steps=3, curvature=curvature)
    x = jnp.full((1, 1, 1), 0.25)
    purified, info = trace(adp, KEY, x)
    assert info.steps == steps and info.step_sizes[0] == 0.25
    assert (purified == x).all() == (steps == 0)
    assert np.count_nonzero(info.step_sizes) == np.count_nonzero(info.score_norms) == max(steps, 1)


@every_curvature
@pytest.mark.parametrize("loop", ["while", "scan"])
def test_images_stop_for_good_and_at_different_steps(x64, curvature, loop):
    score = make_score((6, 6, 1))
    adp = ADP(score, tau=1.5e-3, num_steps=12, curvature=curvature, loop=loop)
    keys = jax.random.split(KEY, 8)
    _, info = trace_batch(adp, keys, images(8, (6, 6, 1)))
    assert len(set(info.steps.tolist())) >= 3 and max(info.steps) <= 12
    for steps, alphas in zip(info.steps.tolist(), np.asarray(info.step_sizes), strict=True):
        assert np.all(alphas[:steps] > adp.tau) and not np.any(alphas[steps + 1 :])
        assert steps == 12 or 0 < alphas[steps] <= adp.tau
    # No more than an ulp of rounding in lam / (lam / alpha_max).
    assert np.max(info.step_sizes) <= adp.alpha_max * (1 + 1e-15)


@pytest.mark.parametrize("loop", ["while", "scan"])
def test_a_secant_that_stops_does_not_start_again(x64, loop):
    """h falls steeply between x_0 = 0.5 and x_1 = 0.6 and is flat at both: the secant over the step
    stops the image, where a finite difference at x_1 would take the longest step."""

    class Cliff:
        nfe = 1

        def __call__(self, image):
            return 1.0 - 0.5 * jax.nn.sigmoid(100.0 * (image - 0.55))

    adp = ADP(Cliff(), 0.0, tau=0.02, num_steps=5, curvature="secant", loop=loop)
    purified, info = jax.jit(lambda x: adp.trace(KEY, x))(jnp.full((1, 1, 1), 0.5))
    assert info.steps == 1 and 0 < info.step_sizes[1] < 0.02 and info.nfe == 3
    np.testing.assert_allclose(purified, 0.6, atol=1e-3)  # alpha_max h(0.5) = 0.0997
    # From there, a purification of its own would go on.
    _, fresh = jax.jit(lambda x: adp.trace(KEY, x))(purified)
    np.testing.assert_allclose(fresh.step_sizes[0], 0.1, rtol=1e-12)


@every_curvature
def test_scan_and_while_give_the_same_image_and_trace(x64, curvature):
    adp = ADP(make_score((6, 6, 1)), tau=1.5e-3, num_steps=12, curvature=curvature)
    keys, x = jax.random.split(KEY, 8), images(8, (6, 6, 1))
    left = trace_batch(adp.replace(loop="while"), keys, x)
    right = trace_batch(adp.replace(loop="scan"), keys, x)
    assert min(left[1].steps) < 12 <= max(left[1].steps) + 3  # some stop early, some late
    # Rounding of two programs, times 1 / delta in a step size, over 12 steps.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), left, right)


@every_curvature
def test_an_image_does_not_depend_on_its_batch(x64, curvature):
    """Alone, and among images that stop sooner and later."""
    adp = ADP(make_score((6, 6, 1)), tau=1.5e-3, num_steps=12, curvature=curvature)
    keys, x = jax.random.split(KEY, 8), images(8, (6, 6, 1))
    batch = trace_batch(adp, keys, x)
    for i in range(3):
        alone = trace(adp, keys[i], x[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-9, atol=1e-11),
            alone,
            batch,
        )


# Degenerate scores


@every_curvature
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_score_without_curvature_gives_the_longest_steps_and_finite_gradients(
    x64, curvature, value
):
    shape = (2, 3, 1)
    adp = ADP(ConstantScore(jnp.asarray(value)), 0.0, num_steps=4, curvature=curvature, loop="scan")
    x = 0.5 * images(1, shape)[0]
    purified, info = trace(adp, KEY, x)
    np.testing.assert_allclose(info.step_sizes, 0.1, rtol=1e-14)
    np.testing.assert_allclose(purified, x + 4 * 0.1 * value, rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda adp, x: jnp.vdot(x, adp(KEY, x)), 1))(adp, x)
    # d/dx <c, x + 0.4 value> with c = x: x again, plus the purified image itself.
    np.testing.assert_allclose(gradient, x + purified, rtol=1e-13)


@every_curvature
def test_zero_displacement_falls_back_on_a_finite_difference(x64, curvature):
    """Every pixel is white and pushed outward by h(x) = 3 - 2 x: x stays at 1, where the curvature
    is 2 at each step, although the secant has no displacement to take it from."""
    shape = (2, 3, 1)
    score = LinearScore(2.0 * jnp.eye(6), jnp.full(shape, 1.5))
    adp = ADP(score, 0.0, num_steps=3, curvature=curvature, loop="scan")
    white = jnp.ones(shape)
    purified, info = trace(adp, KEY, white)
    np.testing.assert_allclose(info.step_sizes, 0.05 / 2.0, rtol=1e-11)
    np.testing.assert_array_equal(purified, white)
    gradient = jax.jit(jax.grad(lambda adp, x: jnp.sum(adp(KEY, x)), 1))(adp, white)
    assert np.all(np.isfinite(gradient))


# Cost


@every_curvature
@pytest.mark.parametrize("head", ["score", "energy"])
def test_nfe_and_nge_are_the_evaluations_executed(x64, curvature, head):
    """The network is one convolution, so its evaluations, tangents and backward passes are each one
    convolution of the program."""
    score = make_score((4, 4, 1), OneConvolution(), head=head)
    adp = ADP(score, num_steps=7, tau=-1.0, curvature=curvature, loop="scan", checkpoint=False)
    assert adp.nfe == {"secant": 8, "jvp": 14, "finite_difference": 14}[curvature] * score.nfe
    x = images(1, (4, 4, 1))[0]
    assert count_convolutions(adp, KEY, x) == adp.nfe == trace(adp, KEY, x)[1].nfe
    for detach in (False, True):
        attacked = adp.replace(detach_step=detach)

        def backward(x, attacked=attacked):
            return jax.grad(lambda x: jnp.sum(attacked(KEY, x)))(x)

        assert count_convolutions(backward, x) - adp.nfe == attacked.nge


@every_curvature
def test_traced_nfe_counts_the_real_calls_of_an_image_that_stops(x64, curvature):
    calls = []
    network = make_score((6, 6, 1))

    class Counting:
        nfe = 1

        def __call__(self, image):
            jax.debug.callback(lambda: calls.append(1))
            return network(image)

    counting = Counting()
    adp = ADP(counting, tau=1.5e-3, num_steps=40, curvature=curvature)
    _, info = jax.jit(lambda key, x: adp.trace(key, x))(KEY, images(1, (6, 6, 1))[0])
    jax.effects_barrier()
    assert 3 <= info.steps < 39
    evaluated = int(info.steps) + 1  # the step that decides to stop is evaluated too
    expected = {"secant": 1 + evaluated, "jvp": evaluated, "finite_difference": 2 * evaluated}
    assert len(calls) == expected[curvature]
    # A jvp's tangent is no call, and counts as one.
    assert info.nfe == len(calls) * (2 if curvature == "jvp" else 1)


# Gradients

SHAPE, NUM_STEPS, STEP = (6, 6, 1), 15, 1e-6
# A gradient's check needs a point where the purifier is smooth, and interesting: image i of these.
NUM_IMAGES = 8


def replay(adp, key, image, alphas):
    """The purified image for step sizes given as constants, and every pixel that clips, below and
    above: by the noise [2, H, W, C], by each step [T, 2, H, W, C]."""

    def clip(x):
        return jnp.clip(x, 0.0, 1.0), jnp.stack([x < 0, x > 1])

    x, noise_clips = clip(image + adp.sigma * jax.random.normal(key, image.shape, image.dtype))
    sizes = jnp.where(alphas > adp.tau, alphas, 0.0)
    x, step_clips = jax.lax.scan(lambda x, size: clip(x + size * adp.score(x)), x, sizes)
    return x, noise_clips, step_clips


@functools.cache
def gradient_check(curvature):
    """Gradients and central differences of <weights, purified image> for NUM_IMAGES images, with
    what makes each image a fair test: a dict of arrays with one row per image."""
    with double_precision():
        adp = ADP(
            make_score(SHAPE), tau=1.5e-3, num_steps=NUM_STEPS, curvature=curvature, loop="scan"
        )
        x, keys = images(NUM_IMAGES, SHAPE, seed=3), jax.random.split(KEY, NUM_IMAGES)
        weights = jnp.asarray(np.random.default_rng(4).standard_normal(SHAPE))
        result = {}

        gradient = jax.vmap(
            jax.grad(lambda p, key, x: jnp.vdot(weights, p(key, x)), 2), (None, 0, 0)
        )
        for name, fields in {
            "exact": {},
            "detached": {"detach_step": True},
            "unchecked": {"checkpoint": False},
        }.items():
            result[name] = jax.jit(gradient)(adp.replace(**fields), keys, x)
        replayed = jax.vmap(
            jax.grad(lambda key, x, a: jnp.vdot(weights, replay(adp, key, x, a)[0]), 1)
        )

        def observe(key, x):
            """Everything that is decided rather than computed, and what is computed."""
            purified, info = adp.trace(key, x)
            again, noise_clips, step_clips = replay(adp, key, x, info.step_sizes)
            at_most = info.step_sizes >= adp.alpha_max * (1 - 1e-9)
            at_least = info.step_sizes <= adp.alpha_min * (1 + 1e-9)
            decided = noise_clips, step_clips, at_most, at_least, info.steps
            return decided, info, jnp.vdot(weights, purified), jnp.max(jnp.abs(again - purified))

        steps = STEP * jnp.eye(x[0].size).reshape(-1, *SHAPE)
        moves = jnp.concatenate([jnp.zeros((1, *SHAPE)), steps, -steps])
        points = x[:, None] + moves[None]  # [images, 1 + 2 pixels, H, W, C]
        decided, info, losses, gap = jax.jit(jax.vmap(jax.vmap(observe, (None, 0))))(keys, points)
        alphas = info.step_sizes[:, 0]
        result["replayed"] = jax.jit(replayed)(keys, x, alphas)

    decided, losses, alphas, gap, result = jax.tree.map(
        np.asarray, (decided, losses, alphas, gap, result)
    )
    assert np.max(gap) < 1e-10  # the replay that finds the kinks is the purifier
    up, down = np.split(losses[:, 1:], 2, axis=1)
    same = [(a == a[:, :1]).reshape(NUM_IMAGES, -1).all(1) for a in decided]
    return result | {
        "difference": ((up - down) / (2 * STEP)).reshape(x.shape),
        "smooth": np.all(same, axis=0),
        "between": np.sum((alphas > adp.tau) & (alphas < 0.999 * adp.alpha_max), axis=1),
        "steps": decided[4][:, 0],
        "noise_clips": decided[0][:, 0].sum((1, 2, 3, 4)),
        "step_clips": decided[1][:, 0].sum((1, 2, 3, 4, 5)),
    }


@functools.cache
def fair_points(curvature):
    """The images at which a comparison with finite differences means something: at least 3 steps
    between the bounds, a stop before T, pixels clipped by the noise and by the steps, and the same
    decisions one difference step away in every pixel, both ways."""
    check = gradient_check(curvature)
    fair = (check["between"] >= 3) & (check["steps"] < NUM_STEPS) & check["smooth"]
    fair = np.flatnonzero(fair & (check["noise_clips"] > 0) & (check["step_clips"] > 0))
    assert len(fair) >= NUM_IMAGES // 2
    return fair


@every_curvature
def test_exact_gradient_equals_central_differences(curvature):
    check = gradient_check(curvature)
    for i in fair_points(curvature):
        assert relative_error(check["exact"][i], check["difference"][i]) < 1e-5
        # Pixels that the noise clipped have no gradient; the others do.
        assert (
            np.count_nonzero(check["exact"][i]) == check["exact"][i].size - check["noise_clips"][i]
        )


@every_curvature
def test_detaching_the_step_changes_the_gradient(curvature):
    check = gradient_check(curvature)
    for i in fair_points(curvature):
        assert relative_error(check["detached"][i], check["exact"][i]) > 0.01


@every_curvature
def test_checkpointing_changes_no_gradient(curvature):
    check = gradient_check(curvature)
    for i in fair_points(curvature):
        assert relative_error(check["unchecked"][i], check["exact"][i]) < 1e-12


@every_curvature
def test_detached_gradient_is_that_of_a_loop_with_constant_steps(curvature):
    check = gradient_check(curvature)
    for i in fair_points(curvature):
        # The secant evaluates h at x_known + (x - x_known), a rounding away from x.
        assert relative_error(check["detached"][i], check["replayed"][i]) < 1e-10


def gradient_memory(curvature, num_steps, *, shape, batch, widths):
    """Bytes of temporary memory of the compiled exact gradient of a batch, with a real U-Net."""
    network = models.build("unet", widths=widths, blocks=1)
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, *shape)))
    adp = ADP(Score(variables, network), num_steps=num_steps, curvature=curvature, loop="scan")

    def gradient(adp, keys, x):
        return jax.grad(lambda x: jnp.sum(jax.vmap(adp)(keys, x)))(x)

    arguments = (
        adp,
        jax.random.split(KEY, batch),
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
    )
    # Memory is assigned before code is generated, which need not be good code: it never runs.
    options = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(gradient).lower(*arguments).compile(options)
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("curvature", "shape", "widths"),
    [
        ("jvp", (8, 8, 1), (16,)),
        *(
            pytest.param(curvature, *sizes, marks=pytest.mark.slow)
            for curvature in CURVATURES
            for sizes in (((8, 8, 1), (16,)), ((32, 32, 3), (16, 32)))
            if (curvature, sizes[0]) != ("jvp", (8, 8, 1))
        ),
    ],
)
def test_gradient_memory_hardly_grows_with_the_number_of_steps(curvature, shape, widths):
    """T = 100 keeps the states between ten segments of ten steps beside what T = 10 keeps: even
    where the network is narrow and the images are large, little beside its activations."""
    few, many = (
        gradient_memory(curvature, n, shape=shape, batch=8, widths=widths) for n in (10, 100)
    )
    assert 0 < few <= many <= 1.5 * few


# Two noise levels


def test_each_run_has_one_of_two_noise_levels_by_a_coin_of_its_own():
    """The same noise as with one level, at either; about half of 400 runs at each."""
    score, image = isotropic(1.0), jnp.full((2, 3, 1), 0.5)
    keys = jax.random.split(KEY, 400)
    both, low, high = (
        jax.vmap(ADP(score, sigma, second_sigma=second).noised, (0, None))(keys, image)
        for sigma, second in ((0.25, 0.1), (0.1, None), (0.25, None))
    )
    is_low, is_high = (np.asarray(jnp.all(both == one, axis=(1, 2, 3))) for one in (low, high))
    assert (is_low ^ is_high).all()  # never both: nowhere did all pixels clip
    assert abs(is_low.mean() - 0.5) < 0.1  # four standard deviations of 400 fair coins
    # The coin is not the noise's: it says nothing of it.
    noise = (np.asarray(low) - np.asarray(image)).mean((1, 2, 3))
    assert abs(np.corrcoef(noise, is_low)[0, 1]) < 0.2
    x, _ = ADP(score, 0.25, second_sigma=0.1).trace(keys[0], image)
    of_its_level, _ = ADP(score, 0.1 if is_low[0] else 0.25).trace(keys[0], image)
    np.testing.assert_array_equal(x, of_its_level)


def test_no_noise_can_be_one_of_the_two_levels():
    adp = ADP(isotropic(1.0), 0.25, second_sigma=0.0)
    image = jnp.full((2, 3, 1), 0.5)
    noised = jax.vmap(adp.noised, (0, None))(jax.random.split(KEY, 40), image)
    untouched = (np.asarray(noised) == np.asarray(image)).all((1, 2, 3))
    assert 5 < untouched.sum() < 35
    assert adp.stochastic and ADP(isotropic(1.0), 0.0, second_sigma=0.1).stochastic
    assert not ADP(isotropic(1.0), 0.0, second_sigma=0.0).stochastic


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second_sigma": -0.1}, "second_sigma=-0.1"),
        ({"curvature": "hessian"}, "known: finite_difference, jvp, secant"),
        ({"loop": "for"}, "known: while, scan"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"sigma": -0.1}, "sigma=-0.1"),
        ({"lam": 0.0}, "lam=0.0"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"alpha_min": 0.0}, "alpha_min=0.0"),
        ({"alpha_min": 0.2}, "alpha_min=0.2"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ADP(isotropic(1.0), **options)

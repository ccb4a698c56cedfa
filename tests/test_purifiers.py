"""The contract of every purifier in the table, and each against its closed form.

As a script it purifies batches that are split over four devices, and writes them to a file.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.purifiers import PURIFIERS, Identity, NoiseOnly, OneStep, Schedule, build
from purify.purifiers.adp import CURVATURES
from purify.purifiers.noise import add_noise
from purify.runtime import parallel
from tests.command import on_devices
from tests.oracles import ConstantScore, GaussianScore, LinearScore, UnitScore, make_score

SHAPE, KEY = (8, 8, 1), jax.random.key(0)
NUM_IMAGES, NUM_STEPS = 128, 10
# Across batch shapes and devices sums are taken in another order. An adaptive step divides a
# difference of two scores by delta = 1e-3: of a rounding of 1e-7 each makes 1e-4, and a few steps
# a few of them.
ACROSS_SHAPES = 3e-4

# id -> (name, head, options): every entry of the table, and what changes its program.
ADAPTIVE = ("adp", "adp_reference", "detect_then_purify")
# Between the score norms of these images, 3e-6 apart there: 38 of them are taken for natural.
DETECTING = dict(
    threshold=0.9997718,
    natural=dict(purifier="schedule", sigma=0.1, num_steps=3),
    suspected=dict(purifier="adp", num_steps=NUM_STEPS, tau=2e-3),
)
CASES = {name: (name, "score", {}) for name in PURIFIERS if name not in ADAPTIVE}
# Alone: what it does with a batch is not the contract, and is tested apart.
CASES["adp_reference"] = ("adp_reference", "score", {"axis_name": None, "tau": 2e-3})
CASES["detect_then_purify"] = ("detect_then_purify", "score", DETECTING)
CASES["schedule-energy"] = ("schedule", "energy", {})
CASES |= {f"{name}-denoiser": (name, "denoiser", {}) for name in ("one_step", "schedule")}
CASES |= {
    f"adp-{curvature}{'-energy' if head == 'energy' else ''}": (
        "adp",
        head,
        {"curvature": curvature, "num_steps": NUM_STEPS, "tau": 2e-3},
    )
    for curvature, head in [*((c, "score") for c in CURVATURES), ("jvp", "energy")]
}
# With one whose images stop together, also those on other devices; no other contract holds for it.
SHARDED = CASES | {"adp_reference-batch": ("adp_reference", "score", {"tau": 2e-3})}
every_case = pytest.mark.parametrize("case", CASES)


def make(case):
    name, head, options = SHARDED[case]
    return build(name, make_score(SHAPE, head=head), **options)


@functools.cache
def inputs():
    """One image and one key each; the first two images are all black and all white."""
    images = np.random.default_rng(0).uniform(size=(NUM_IMAGES, *SHAPE)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    return jax.random.split(KEY, NUM_IMAGES), jnp.asarray(images)


TRACED = []  # one entry per compilation of what follows


@jax.jit
def single(purifier, key, image):
    TRACED.append(purifier)
    return purifier.trace(key, image)


@jax.jit
def batched(purifier, keys, images):
    trace = jax.vmap(lambda p, k, x: p.trace(k, x), (None, 0, 0), axis_name="batch")
    return trace(purifier, keys, images)


@functools.cache
def whole(case):
    """Images and traces of all inputs in one batch."""
    return jax.tree.map(np.asarray, batched(make(case), *inputs()))


def apart(case, size):
    """The same image by image (size 1, without vmap) or in batches, the last one padded."""
    purifier, parts = make(case), []
    keys, images = jax.random.key_data(inputs()[0]), np.asarray(inputs()[1])
    for start in range(0, NUM_IMAGES, size):
        index = np.minimum(np.arange(start, start + size), NUM_IMAGES - 1)
        run, index = (single, start) if size == 1 else (batched, index)
        parts.append(run(purifier, jax.random.wrap_key_data(keys[index]), images[index]))
    join = np.stack if size == 1 else np.concatenate
    return jax.tree.map(lambda *a: join(a)[:NUM_IMAGES], *jax.device_get(parts))


def differences(left, right):
    """The share of images whose number of steps differs, and the largest difference in a pixel of
    the others."""
    (left, left_trace), (right, right_trace) = left, right
    same = np.asarray(left_trace.steps == right_trace.steps)
    gap = np.abs(np.asarray(left) - np.asarray(right)).reshape(len(same), -1).max(1)
    return 1.0 - same.mean(), np.max(gap, where=same, initial=0.0)


# The contract


@every_case
def test_images_keep_shape_and_dtype_stay_in_range_and_are_finite(case):
    images, trace = whole(case)
    assert images.shape == (NUM_IMAGES, *SHAPE) and images.dtype == np.float32
    assert np.min(images) >= 0.0 and np.max(images) <= 1.0  # false for NaN
    assert all(np.all(np.isfinite(leaf)) for leaf in trace)
    assert trace.steps.dtype == trace.nfe.dtype == np.int32


@every_case
def test_images_keep_double_precision(case, x64):
    image, trace = jax.eval_shape(make(case).trace, KEY, jnp.zeros(SHAPE))
    assert image.dtype == jnp.float64
    assert trace.step_sizes.dtype == trace.score_norms.dtype == jnp.float64


@every_case
def test_the_key_decides_the_image_and_the_second_call_does_not_retrace(case):
    keys, images = inputs()
    purifier, before = make(case), len(TRACED)
    first, again, other = (single(purifier, k, images[2])[0] for k in (keys[2], keys[2], keys[3]))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) == purifier.stochastic
    # Nor do new parameters, since they are arguments.
    trained = jax.tree.map(lambda a: 1.01 * a, purifier)
    assert np.any(single(trained, keys[2], images[2])[0] != first) == (purifier.nfe > 0)
    assert len(TRACED) == before + 1


@pytest.mark.parametrize("name", ["noise_only", "one_step", "adp", "adp_reference"])
def test_without_noise_a_purifier_draws_nothing_and_says_so(name):
    alone = dict(axis_name=None) if name == "adp_reference" else {}
    for sigma in (0.0, 0.05):
        purifier = build(name, make_score(SHAPE), sigma=sigma, **alone)
        one, other = (purifier(key, inputs()[1][2]) for key in jax.random.split(KEY))
        assert purifier.stochastic == np.any(one != other) == (sigma > 0)


@every_case
def test_a_plain_call_gives_the_image_of_the_compiled_trace(case):
    keys, images = inputs()
    compiled, _ = single(make(case), keys[2], images[2])
    np.testing.assert_allclose(make(case)(keys[2], images[2]), compiled, atol=ACROSS_SHAPES)


@every_case
def test_vmap_equals_a_loop_but_for_rounding(case):
    flips, gap = differences(apart(case, 1), whole(case))
    assert flips < 0.01 and gap < ACROSS_SHAPES


@pytest.mark.parametrize("case", ["schedule", *(f"adp-{curvature}" for curvature in CURVATURES)])
def test_the_batch_size_changes_no_more_than_rounding(case):
    flips, gap = differences(apart(case, 48), whole(case))
    assert flips < 0.01 and gap < ACROSS_SHAPES


@every_case
def test_in_one_batch_shape_neighbours_and_position_change_no_bit(case):
    """The same images elsewhere in the batch, every other neighbour replaced by black."""
    keys, images = inputs()
    images = images.at[1::2].set(0.0)
    order = np.random.default_rng(1).permutation(NUM_IMAGES)
    shuffled = batched(make(case), keys[order], images[order])
    restored = jax.tree.map(lambda a: np.asarray(a)[np.argsort(order)][::2], shuffled)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::2]), restored, whole(case))


@every_case
def test_nfe_is_what_an_image_spends_that_does_not_stop_early(case):
    purifier, (_, trace) = make(case), whole(case)
    full = trace.steps == trace.step_sizes.shape[1]
    assert np.any(full) and np.all(trace.nfe[full] == purifier.nfe)
    assert np.all(trace.nfe[~full] <= purifier.nfe)
    # Without stops the comparisons above would say nothing about flips; energies do not stop here.
    assert np.any(~full) == (CASES[case][0] in ADAPTIVE and CASES[case][1] == "score")


def write_sharded(path):
    """Images and numbers of steps of every case, from batches split over four devices."""
    arrays = {}
    for case in SHARDED:
        images, trace = batched(parallel.replicate(make(case)), *parallel.shard(inputs()))
        assert {s.data.shape[0] for s in images.addressable_shards} == {NUM_IMAGES // 4}
        arrays |= {case: images, f"{case} steps": trace.steps}
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded") / "images.npz"
    command = [sys.executable, __file__, str(path)]
    result = subprocess.run(command, env=on_devices(4), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return np.load(path)


@pytest.mark.parametrize("case", SHARDED)
def test_four_devices_give_what_one_does(case, four_devices):
    images, trace = whole(case)
    spread = four_devices[case], trace._replace(steps=four_devices[f"{case} steps"])
    flips, gap = differences(spread, (images, trace))
    assert flips < 0.01 and gap < ACROSS_SHAPES


# Closed forms


def test_identity_returns_its_image():
    image = inputs()[1][2]
    np.testing.assert_array_equal(Identity()(KEY, image), image)


def test_noise_only_is_the_clipped_noise():
    keys, images = inputs()
    purified = jax.vmap(NoiseOnly(sigma=0.3))(keys, images)
    noise = jax.vmap(lambda k: jax.random.normal(k, SHAPE))(keys)
    np.testing.assert_allclose(purified, np.clip(images + 0.3 * noise, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(
        purified, jax.vmap(lambda k, x: add_noise(k, x, 0.3))(keys, images)
    )
    np.testing.assert_array_equal(NoiseOnly(sigma=0.0)(KEY, images[2]), images[2])


def test_the_noise_has_standard_deviation_sigma():
    grey = jnp.full((64, 64, 3), 0.5)
    noise = np.asarray(add_noise(KEY, grey, 0.1)) - 0.5
    n = noise.size  # five standard errors of a mean and of a standard deviation
    assert abs(noise.mean()) < 5 * 0.1 / np.sqrt(n)
    assert abs(noise.std() - 0.1) < 5 * 0.1 / np.sqrt(2 * n)


@pytest.mark.parametrize("name", ["one_step", "schedule", "adp"])
def test_every_purifier_injects_noise_only_noise_first(name):
    """With a score that is zero there is nothing else."""
    keys, images = inputs()
    purifier = build(name, ConstantScore(jnp.zeros(())), sigma=0.2)
    np.testing.assert_allclose(
        purifier(KEY, images[2]), NoiseOnly(sigma=0.2)(KEY, images[2]), atol=1e-6
    )


def test_one_step_is_the_schedule_of_one_level():
    score, image = make_score(SHAPE), inputs()[1][2]
    one_step = single(OneStep(score, sigma=0.2), KEY, image)
    schedule = single(Schedule(score, sigma=0.2, num_steps=1), KEY, image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one_step, schedule)
    noisy = NoiseOnly(sigma=0.2)(KEY, image)
    np.testing.assert_allclose(
        one_step[0], np.clip(noisy + 0.2 * score(noisy), 0.0, 1.0), atol=1e-5
    )


def test_a_denoiser_takes_away_shares_of_the_noise_that_it_sees(x64):
    """x + (1 - below / level) (D(x) - x) from level to level, whatever the level."""
    score, image = make_score(SHAPE, head="denoiser"), jnp.asarray(inputs()[1][2], float)
    x = NoiseOnly(sigma=0.2)(KEY, image)
    one_step, _ = single(OneStep(score, sigma=0.2), KEY, image)
    np.testing.assert_allclose(one_step, np.clip(x + score(x), 0, 1), rtol=1e-12)
    schedule, _ = single(Schedule(score, sigma=0.2, num_steps=3), KEY, image)
    levels = [*np.geomspace(0.2, 0.01, 3), 0.0]
    for level, below in zip(levels, levels[1:], strict=False):
        x = np.clip(x + (1 - below / level) * np.asarray(score(x)), 0, 1)
    np.testing.assert_allclose(schedule, x, rtol=1e-12)


def test_without_noise_a_denoiser_of_one_step_leaves_the_image():
    score, image = make_score(SHAPE, head="denoiser"), inputs()[1][2]
    np.testing.assert_array_equal(single(OneStep(score, sigma=0.0), KEY, image)[0], image)


@pytest.mark.parametrize(("sigma", "sigma_min", "num_steps"), [(0.25, 0.01, 5), (0.1, 0.1, 3)])
def test_schedule_levels_are_geometric_and_end_at_zero(sigma, sigma_min, num_steps):
    schedule = Schedule(ConstantScore(jnp.zeros(())), sigma, sigma_min, num_steps)
    _, trace = single(schedule, KEY, jnp.full(SHAPE, 0.5))
    ratio = (sigma_min / sigma) ** (1 / (num_steps - 1))
    levels = [sigma * ratio**t for t in range(num_steps)] + [0.0]
    expected = [above - below for above, below in zip(levels, levels[1:], strict=False)]
    np.testing.assert_allclose(trace.step_sizes, expected, atol=1e-7)
    assert trace.nfe == schedule.nfe == num_steps


def gaussian_score(mean, std):
    return GaussianScore(mean, std, jnp.geomspace(0.5, 0.01, 12))


def test_the_reference_takes_the_longest_step_over_flat_ground_and_keeps_its_gradient(x64):
    """A constant h has no curvature: 1 / 0 in the published formula."""
    score, x = ConstantScore(jnp.asarray(0.01)), jnp.full(SHAPE, 0.4)
    purifier = build("adp_reference", score, sigma=0.0, num_steps=2, loop="scan", axis_name=None)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(purifier(KEY, x)))(x)
    expected = 255 / 256 * 0.4 + 1 / 512
    for _ in range(2):
        expected = 256 / 255 * (expected + purifier.alpha_max * 0.01 - 1 / 512)
    assert float(value) == pytest.approx(64 * expected, rel=1e-12)
    np.testing.assert_allclose(gradient, 256 / 255, rtol=1e-12)


def test_in_the_reference_a_curvature_below_zero_stops_the_image(x64):
    """Where ADP takes the longest step. The last stretch of contrast is left out, too."""
    score, x = LinearScore(-2.0 * jnp.eye(64), jnp.full(SHAPE, 0.5)), jnp.full(SHAPE, 0.4)
    purifier = build("adp_reference", score, sigma=0.0, num_steps=3, axis_name=None)
    image, trace = purifier.trace(KEY, x)
    np.testing.assert_allclose(image, 255 / 256 * 0.4 + 1 / 512, rtol=1e-12)
    assert trace.steps == 0 and trace.nfe == 2


class CubicScore(UnitScore):
    """h(x) = -k (x - 1/2)^3, whose curvature along itself is 3 k (x - 1/2)^2 of a flat image."""

    def __call__(self, image):
        return -200.0 * (image - 0.5) ** 3


def test_in_the_reference_a_stopped_image_gains_contrast_as_long_as_its_batch_moves(x64):
    """The first one stops at once, by a curvature near 96; the second moves three times."""
    score, starts = CubicScore(), jnp.array([0.9, 0.55])
    purifier = build("adp_reference", score, sigma=0.0, num_steps=3)
    images = jnp.broadcast_to(starts.reshape(2, 1, 1, 1), (2, *SHAPE))
    keys = jax.random.split(KEY, 2)
    found, trace = jax.vmap(purifier.trace, axis_name="batch")(keys, images)
    x = 255 / 256 * np.array([0.9, 0.55]) + 1 / 512
    for _ in range(3):
        # The mean slope of h over the finite difference, delta h long.
        ahead = x[1] - purifier.delta * 200 * (x[1] - 0.5) ** 3
        change = 1 - ((ahead - 0.5) / (x[1] - 0.5)) ** 3
        alpha = np.clip(purifier.lam * purifier.delta / change, 1e-5, purifier.alpha_max)
        x[1] -= alpha * 200 * (x[1] - 0.5) ** 3
        x = 256 / 255 * (x - 1 / 512)
    assert trace.steps.tolist() == [0, 3]
    np.testing.assert_allclose(found.mean((1, 2, 3)), x, rtol=1e-9)


def test_the_exact_gradient_of_the_reference_is_that_of_central_differences(x64):
    """Through steps whose size depends on the image: inside their bounds."""
    image = jnp.asarray(inputs()[1][2], float)
    score = GaussianScore(jnp.full(SHAPE, 0.5), 0.3, jnp.array([0.5, 0.1]))
    purifier = build("adp_reference", score, sigma=0.1, num_steps=4, loop="scan", axis_name=None)
    rng = np.random.default_rng(1)
    direction, weights = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(2))
    along = jax.jit(lambda t: jnp.sum(weights * purifier(KEY, image + t * direction)))
    exact, step = jax.grad(along)(0.0), 1e-6
    difference = (along(step) - along(-step)) / (2 * step)
    alphas = np.asarray(purifier.trace(KEY, image)[1].step_sizes)
    assert np.all((alphas > purifier.tau) & (alphas < 0.999 * purifier.alpha_max)), alphas
    assert float(exact) == pytest.approx(float(difference), rel=1e-5)


def test_schedule_on_gaussian_data_equals_a_hand_written_loop(x64):
    shape, std, sigma, num_steps = (3, 3, 2), 0.1, 0.3, 6
    mean = 0.5 + 0.4 * (np.random.default_rng(1).uniform(size=shape) - 0.5)
    image = np.random.default_rng(2).uniform(size=shape)
    schedule = Schedule(gaussian_score(jnp.asarray(mean), std), sigma, 0.01, num_steps)
    actual, trace = single(schedule, KEY, jnp.asarray(image))

    sigmas, variances = np.geomspace(0.5, 0.01, 12), std**2 + np.geomspace(0.5, 0.01, 12) ** 2
    x = np.clip(image + sigma * np.asarray(jax.random.normal(KEY, shape)), 0, 1)
    assert np.any((x == 0) | (x == 1))
    for t in range(num_steps):
        level, below = (sigma * (0.01 / sigma) ** (s / (num_steps - 1)) for s in (t, t + 1))
        squared = np.sum((x - mean) ** 2)
        densities = variances ** (-mean.size / 2) * np.exp(-0.5 * squared / variances)
        weights = densities / densities.sum()
        h = -np.sum(weights * sigmas / variances) * (x - mean)
        np.testing.assert_allclose(trace.score_norms[t], np.sqrt(np.mean(h**2)), rtol=1e-10)
        x = np.clip(x + (level - (below if t + 1 < num_steps else 0.0)) * h, 0, 1)
    np.testing.assert_allclose(actual, x, rtol=1e-10)


def test_a_long_schedule_follows_the_probability_flow_of_gaussian_data():
    """The flow of N(mean, (std^2 + sigma^2) I) contracts to N(mean, std^2 I) along straight lines:
    x - mean shrinks by std / sqrt(std^2 + sigma^2)."""
    shape, std, sigma = (32, 32, 3), 0.05, 0.1
    mean = jnp.full(shape, 0.5)
    data = mean + std * jax.random.normal(jax.random.key(1), shape)
    schedule = Schedule(gaussian_score(mean, std), sigma, 0.01, num_steps=200)
    noisy, (purified, _) = NoiseOnly(sigma=sigma)(KEY, data), single(schedule, KEY, data)
    shrunk = jnp.vdot(purified - mean, noisy - mean) / jnp.vdot(noisy - mean, noisy - mean)
    # 3,072 pixels tell the blind score its noise level to 1 %; the last step is a long one.
    np.testing.assert_allclose(shrunk, std / np.sqrt(std**2 + sigma**2), rtol=0.03)


# Building


def test_build_errors_list_what_exists():
    score = LinearScore(jnp.eye(4), jnp.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match="purifier 'median' is unknown; known: identity, noise_on"):
        build("median", score)
    with pytest.raises(ValueError, match="one_step has no option T; known: sigma, straight_thr"):
        build("one_step", score, T=3)
    with pytest.raises(ValueError, match="'schedule' needs a score model"):
        build("schedule", None)


@pytest.mark.parametrize("name", ["identity", "noise_only"])
def test_what_needs_no_score_is_built_without_one(name):
    assert build(name, None) == PURIFIERS[name]()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("noise_only", {"sigma": -0.1}, "sigma=-0.1"),
        ("one_step", {"sigma": -0.1}, "sigma=-0.1"),
        ("adp", {"sigma": -0.1}, "sigma=-0.1"),
        ("schedule", {"num_steps": 0}, "num_steps=0"),
        ("schedule", {"sigma": 0.1, "sigma_min": 0.2}, "sigma_min=0.2"),
        ("schedule", {"sigma_min": 0.0}, "sigma_min=0.0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, ConstantScore(jnp.zeros(())), **options)


if __name__ == "__main__":
    write_sharded(sys.argv[1])

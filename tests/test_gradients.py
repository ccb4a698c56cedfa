"""How a purifier is differentiated, and expectation over transformation, against closed forms."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.gradients import (
    BPDA,
    GRADIENT_MODES,
    OTHER_FUNCTIONS,
    ApproximateInput,
    Blind,
    attacked_purifier,
    average_logits,
    bind,
    binding_nfe,
    draws,
    estimated_gradient,
    exact,
    expectation,
    straight_through,
)
from purify.purifiers import PURIFIERS, NoiseOnly, OneStep, Schedule, build
from purify.purifiers.adp import ADP
from tests.oracles import (
    LinearScore,
    OneConvolution,
    QuadraticClassifier,
    count_convolutions,
    make_score,
)

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = (2, 3, 1)
KEY = jax.random.key(0)
MODES = [*(mode for mode in GRADIENT_MODES if mode != "none"), "surrogate"]


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape))


def linear_score():
    """A score whose purifiers stay between their bounds, and inside [0, 1] for most pixels."""
    return LinearScore(jnp.diag(jnp.array([1.0, 1.5, 2.0, 2.5, 3.0, 4.0])), jnp.full(SHAPE, 0.5))


def purifier(name, **options):
    if name == "detect_then_purify":
        options = dict(natural=dict(purifier="one_step"), suspected=dict(purifier="adp"))
    return build(name, linear_score(), **options)


# Straight-through


def test_straight_through_has_the_value_of_one_and_the_derivative_of_the_other():
    def f(x):
        return straight_through(jnp.round(x), x**3)

    x = 3.0 * random(0, 5)
    np.testing.assert_array_equal(f(x), jnp.round(x))
    np.testing.assert_array_equal(jax.jit(f)(x), jnp.round(x))
    np.testing.assert_allclose(jax.grad(lambda x: f(x).sum())(x), 3 * x**2, rtol=1e-14)
    value, tangent = jax.jvp(f, (x,), (jnp.ones(5),))
    np.testing.assert_array_equal(value, jnp.round(x))
    np.testing.assert_allclose(tangent, 3 * x**2, rtol=1e-14)


# BPDA


@pytest.fixture(params=["schedule", "adp"])
def bpda(request):
    """A purifier and its BPDA, an image and a cotangent; pixels enough to show a lost last bit."""
    shape = (8, 8, 1)
    inner = build(request.param, make_score(shape), num_steps=3)
    return inner, BPDA(inner), random(1, *shape), random(2, *shape)


def test_bpda_forward_is_bit_equal(bpda):
    inner, outer, x, tangent = bpda
    expected = np.asarray(jax.jit(lambda p, x: p(KEY, x))(inner, x))
    assert np.any(expected != x)
    np.testing.assert_array_equal(jax.jit(lambda p, x: p(KEY, x))(outer, x), expected)
    np.testing.assert_array_equal(
        jax.jit(lambda p, x: jax.vjp(lambda x: p(KEY, x), x)[0])(outer, x), expected
    )
    np.testing.assert_array_equal(
        jax.jit(lambda p, x: jax.jvp(lambda x: p(KEY, x), (x,), (tangent,))[0])(outer, x), expected
    )


def test_bpda_backward_and_tangent_are_the_identity(bpda):
    _, outer, x, direction = bpda
    value, pull = jax.vjp(lambda x: outer(KEY, x), x)
    np.testing.assert_array_equal(pull(direction)[0], direction)
    np.testing.assert_array_equal(
        jax.jvp(lambda x: outer(KEY, x), (x,), (direction,))[1], direction
    )
    batch = jax.jit(jax.vmap(lambda x, c: jax.vjp(lambda x: outer(KEY, x), x)[1](c)[0]))
    xs, cotangents = random(3, 4, *direction.shape), random(4, 4, *direction.shape)
    np.testing.assert_array_equal(batch(xs, cotangents), cotangents)


def test_bpda_loss_gradient_is_the_classifiers_at_the_purified_image(bpda):
    inner, outer, x, _ = bpda
    classifier = QuadraticClassifier(random(5, 3, x.size))
    gradient = jax.jit(jax.grad(lambda x: classifier(outer(KEY, x))[1]))(x)
    purified = inner(KEY, x)
    row = classifier.weights[1]
    expected = 2 * jnp.vdot(row, purified.ravel()) * row.reshape(x.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    elsewhere = 2 * jnp.vdot(row, x.ravel()) * row.reshape(x.shape)
    assert np.max(np.abs(gradient - elsewhere)) > 1e-2  # not the one at the attacked image


def test_bpda_reports_the_purifiers_cost_forward_and_none_backward(bpda):
    inner, outer, *_ = bpda
    assert (outer.nfe, outer.nge, outer.stochastic) == (inner.nfe, 0, True)


def test_bpda_backward_runs_no_network():
    schedule = Schedule(make_score((4, 4, 1), OneConvolution()), num_steps=3)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(BPDA(schedule)(KEY, x)))(x)

    assert count_convolutions(gradient, jnp.zeros((4, 4, 1))) == schedule.nfe == 3


# Expectation


def noisy(key, x):
    """Values of two shapes, with gradients that depend on the draw."""
    noise = jax.random.normal(key, x.shape)
    return {"image": jnp.sin(x * noise), "sum": jnp.sum(x**2 * noise)}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(fn, key, x):
    return fn(key, x), jax.jacrev(fn, 1)(key, x)


@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 8], ids=lambda chunk: f"chunk={chunk}")
def test_expectation_is_the_mean_of_single_values_and_gradients(chunk):
    """5 draws: 2 does not divide them, 8 exceeds them."""
    x = random(0, 4)
    keys = [jax.random.fold_in(KEY, i) for i in range(5)]

    singles = [value_and_gradient(noisy, key, x) for key in keys]
    mean = jax.tree.map(lambda *a: np.mean(a, axis=0), *singles)
    actual = value_and_gradient(expectation(noisy, 5, chunk), KEY, x)
    # A mean of 5 numbers near 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-14), actual, mean)
    stacked = jax.jit(draws(noisy, 5, chunk))(KEY, x)
    jax.tree.map(
        lambda a, *b: np.testing.assert_allclose(a, np.stack(b), 1e-12, 1e-14),
        stacked,
        *(value for value, _ in singles),
    )


def test_memory_grows_with_the_chunk_and_not_with_the_samples():
    def memory(num_samples, chunk):
        def gradient(key, x):
            mean = expectation(lambda key, x: jnp.sum(noisy(key, x)["image"]), num_samples, chunk)
            return jax.grad(mean, 1)(key, x)

        compiled = jax.jit(gradient).lower(KEY, jnp.zeros(4096)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunked, all_at_once = memory(64, 4), memory(64, None)
    assert chunked < all_at_once / 4
    assert chunked <= 1.1 * memory(8, 4)  # a result and a key per draw


@pytest.mark.parametrize("fill", [0.0, 1000.0, -1000.0])
def test_average_logits_are_the_mean_and_the_log_of_the_mean_probability(fill):
    """A common shift of all logits leaves probabilities alone, and may not overflow."""
    logits = 4.0 * np.random.default_rng(0).standard_normal((3, 5))
    exponentials = np.exp(logits)
    probabilities = (exponentials / exponentials.sum(1, keepdims=True)).mean(0)
    # float32 keeps 6e-5 at 1000.
    np.testing.assert_allclose(
        average_logits(jnp.float32(logits + fill), "softmax"), np.log(probabilities), atol=3e-4
    )
    np.testing.assert_allclose(
        average_logits(jnp.float32(logits + fill), "logits"), logits.mean(0) + fill, atol=3e-4
    )


# Every mode on every purifier

# What has no adaptive step cannot detach it; what has no noise cannot see past its clip; what has
# no steps cannot be cut down to one.
REFUSED = {
    *(("one_step_unrolling", name) for name in ("identity", "noise_only", "one_step")),
    *(("exact_detached_step", name) for name in ("identity", "noise_only", "one_step", "schedule")),
    *((mode, "detect_then_purify") for mode in ("one_step_unrolling", "exact_detached_step")),
    ("exact_straight_through", "identity"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PURIFIERS)
def test_a_mode_gives_a_finite_gradient_or_says_where_it_does_not_apply(mode, name):
    defended = purifier(name, **({"num_steps": 2} if name in ("schedule", "adp") else {}))
    if (mode, name) in REFUSED:
        refusing = {"detect_then_purify": "OneStep"}.get(name, PURIFIERS[name].__name__)
        with pytest.raises(ValueError, match=f"{mode}.*{refusing}"):
            attacked_purifier(mode, defended)
        return
    attacked = attacked_purifier(mode, defended, surrogate=purifier("one_step"))
    weights, x = random(5, *SHAPE), random(6, *SHAPE)

    def gradient(attacked, x):
        bound = bind(attacked, KEY, x)
        return jax.grad(lambda x: jnp.vdot(weights, bound(KEY, x)))(x)

    batched = jax.vmap(gradient, (None, 0), axis_name="batch")
    (result,) = jax.jit(batched)(attacked, x[None])
    assert result.shape == x.shape and result.dtype == x.dtype
    assert np.all(np.isfinite(result)) and np.any(result != 0)


def test_exact_through_a_linear_purifier_is_its_matrix():
    """OneStep of a linear score is noisy - sigma A (noisy - m), and the noise's clip a mask."""
    one_step, x = OneStep(linear_score(), sigma=0.1), 0.5 + 0.3 * (random(6, *SHAPE) - 0.5)
    weights = random(5, *SHAPE)
    gradient = jax.grad(lambda x: jnp.vdot(weights, exact(one_step)(KEY, x)))(x)
    expected = (jnp.eye(6) - 0.1 * one_step.score.matrix).T @ weights.ravel()
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-12)


def test_exact_makes_adp_differentiable_in_reverse():
    adp = purifier("adp")
    assert adp.loop == "while" and exact(adp).loop == "scan"
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(lambda x: jnp.sum(adp(KEY, x)))(random(0, *SHAPE))


def mask_of_the_noise(sigma, x):
    """Pixels that the initial noise leaves inside (0, 1); some of each kind."""
    noisy = x + sigma * jax.random.normal(KEY, x.shape, x.dtype)
    inside = (noisy > 0) & (noisy < 1)
    assert 0 < np.sum(inside) < inside.size
    return inside


def test_straight_through_noise_is_the_identity_where_the_exact_gradient_is_a_mask():
    x, weights = random(7, *SHAPE), random(5, *SHAPE)
    noise_only = NoiseOnly(sigma=0.8)
    inside = mask_of_the_noise(0.8, x)

    def gradient(purifier):
        return jax.grad(lambda x: jnp.vdot(weights, purifier(KEY, x)))(x)

    np.testing.assert_array_equal(gradient(exact(noise_only)), weights * inside)
    seen = attacked_purifier("exact_straight_through", noise_only)
    np.testing.assert_array_equal(gradient(seen), weights)
    np.testing.assert_array_equal(seen(KEY, x), noise_only(KEY, x))


@pytest.mark.parametrize("name", ["one_step", "schedule", "adp"])
def test_exact_straight_through_differs_only_by_the_clip_of_the_initial_noise(name):
    """Behind the mask it is exact_detached_step (exact, where there is no step to detach)."""
    x, weights = random(7, *SHAPE), random(5, *SHAPE)
    defended = purifier(name, sigma=0.8)
    inside = mask_of_the_noise(0.8, x)

    def gradient(mode):
        attacked = attacked_purifier(mode, defended)
        return jax.jit(jax.grad(lambda x: jnp.vdot(weights, attacked(KEY, x))))(x)

    masked = gradient("exact_detached_step" if name == "adp" else "exact")
    seen = gradient("exact_straight_through")
    np.testing.assert_allclose(masked, seen * inside, rtol=1e-12)
    assert np.any(seen[~inside] != 0)


@pytest.mark.parametrize("mode", MODES)
def test_modes_keep_the_value_or_are_listed_as_another_function(mode):
    """The function attacked has the defence's value, and only its derivative is another, or a wrong
    answer of it is none of the defence."""
    adp, x = purifier("adp", lam=0.2, num_steps=4), random(6, *SHAPE)
    attacked = attacked_purifier(mode, adp, surrogate=purifier("one_step"))
    bound = bind(attacked, jax.random.key(1), random(7, *SHAPE))
    if mode in OTHER_FUNCTIONS:
        assert np.abs(bound(KEY, x) - adp(KEY, x)).max() > 1e-3
    else:
        np.testing.assert_allclose(bound(KEY, x), adp(KEY, x), rtol=1e-12)


@pytest.mark.parametrize("name", ["schedule", "adp", "adp_reference"])
def test_one_step_unrolling_is_the_exact_gradient_of_a_single_step(name):
    x, weights = random(6, *SHAPE), random(5, *SHAPE)

    def value_and_gradient(attacked):
        def one(x):
            return jax.value_and_grad(lambda x: jnp.vdot(weights, attacked(KEY, x)))(x)

        return jax.jit(jax.vmap(one, axis_name="batch"))(x[None])

    def attacked(mode, num_steps):
        return attacked_purifier(mode, purifier(name, num_steps=num_steps))

    single, all_steps = attacked("exact", 1), attacked("exact", 5)
    ours = attacked("one_step_unrolling", 5)
    jax.tree.map(
        np.testing.assert_array_equal, value_and_gradient(ours), value_and_gradient(single)
    )
    assert (ours.nfe, ours.nge) == (single.nfe, single.nge)
    difference = value_and_gradient(ours)[1] - value_and_gradient(all_steps)[1]
    assert np.abs(difference).max() > 1e-3


def test_approximate_input_is_the_purified_clean_image_and_what_was_added_to_it():
    """clip(x + purified(clean) - clean, 0, 1): whatever the key of a call, and with derivative 1
    where nothing is clipped, also by the clean image's way into the offset."""
    adp, clean, weights = purifier("adp", num_steps=3), random(6, *SHAPE), random(5, *SHAPE)
    added = jnp.zeros(SHAPE).at[0, 0, 0].set(-1.0).at[1].set(0.01)
    attacked = attacked_purifier("approximate_input", adp)

    def around(clean, added, key=KEY):
        return bind(attacked, jax.random.key(1), clean)(key, clean + added)

    expected = jnp.clip(adp(jax.random.key(1), clean) + added, 0.0, 1.0)
    np.testing.assert_allclose(around(clean, added), expected, rtol=1e-12)
    np.testing.assert_array_equal(around(clean, added, jax.random.key(2)), around(clean, added))
    inside = (expected > 0) & (expected < 1)
    assert 0 < inside.sum() < inside.size
    for argument in (0, 1):
        gradient = jax.grad(lambda *a: jnp.vdot(weights, around(*a)), argument)(clean, added)
        np.testing.assert_array_equal(gradient, weights * inside)


def test_approximate_input_purifies_once_and_says_so():
    schedule = Schedule(make_score((4, 4, 1), OneConvolution()), num_steps=3)
    attacked, x = attacked_purifier("approximate_input", schedule), jnp.zeros((4, 4, 1))
    bound = bind(attacked, KEY, x)
    assert count_convolutions(lambda x: bind(attacked, KEY, x).offset, x) == 3
    assert binding_nfe(attacked) == 3 and binding_nfe(schedule) == 0
    assert count_convolutions(lambda x: jax.grad(lambda x: bound(KEY, x).sum())(x), x) == 0
    assert (attacked.nfe, attacked.nge, attacked.stochastic) == (0, 0, False)
    assert bind(schedule, KEY, x) is schedule and isinstance(bound, ApproximateInput)
    with pytest.raises(ValueError, match="bound to no clean image"):
        attacked(KEY, x)


def test_surrogate_is_the_exact_gradient_of_the_other_purifier():
    defended, surrogate = purifier("schedule"), purifier("adp")
    attacked = attacked_purifier("surrogate", defended, surrogate)
    assert attacked == exact(surrogate) and attacked.loop == "scan"


def test_blind_sees_no_purifier():
    attacked, x = attacked_purifier("blind", purifier("adp")), random(0, *SHAPE)
    assert isinstance(attacked, Blind) and (attacked.nfe, attacked.nge) == (0, 0)
    np.testing.assert_array_equal(attacked(KEY, x), x)


def test_errors_list_what_exists():
    known = ", ".join([*GRADIENT_MODES, "surrogate"])
    with pytest.raises(ValueError, match=f"'adjoint' is unknown; known: {known}"):
        attacked_purifier("adjoint", purifier("adp"))
    with pytest.raises(ValueError, match="needs the name of the surrogate"):
        attacked_purifier("surrogate", purifier("adp"))
    with pytest.raises(ValueError, match="'vote' is unknown; known: logits, softmax"):
        average_logits(jnp.zeros((2, 3)), "vote")


@flax.struct.dataclass
class HardPurifier:
    """What no gradient passes: rounding to black and white."""

    nfe = nge = 0
    stochastic = False

    def __call__(self, key, image):
        return jnp.round(image)


def test_bpda_passes_what_exact_cannot():
    x = random(0, *SHAPE)
    for mode, expected in (("exact", 0.0), ("bpda", 1.0)):
        attacked = attacked_purifier(mode, HardPurifier())
        gradient = jax.grad(lambda x, p=attacked: jnp.sum(p(KEY, x)))(x)
        np.testing.assert_array_equal(gradient, jnp.full(SHAPE, expected))


def test_modes_apply_to_a_purifier_inside_a_compiled_program():
    """A mode is a pytree: new parameters of the same shape do not compile again."""
    traced = []

    @jax.jit
    def purify(attacked, x):
        traced.append(1)
        return attacked(KEY, x)

    adp = ADP(linear_score(), num_steps=2)
    for mode in ("exact", "bpda"):
        for scale in (1.0, 2.0):
            score = adp.score.replace(matrix=scale * adp.score.matrix)
            purify(attacked_purifier(mode, adp.replace(score=score)), random(0, *SHAPE))
    assert len(traced) == 2


def test_who_sees_values_only_meets_the_purifier_itself():
    adp = purifier("adp")
    assert attacked_purifier("none", adp) is adp and adp.loop == "while"


# Estimates by differences


@pytest.mark.parametrize(("name", "kurtosis"), [("spsa", 1.0), ("nes", 3.0)])
def test_estimated_gradients_have_the_mean_and_variance_of_their_directions(name, kurtosis, x64):
    """Of a linear function w x the estimate is (w v) v: mean w, and variances
    |w|^2 + (kurtosis - 2) w_i^2."""
    w, n = jnp.array([3.0, -1.0, 0.5, 2.0]).reshape(2, 2, 1), 20_000
    image = jnp.full((2, 2, 1), 0.5)
    single = estimated_gradient(lambda key, x: jnp.sum(w * x), name, 1, 1e-3)
    keys = jax.random.split(jax.random.key(0), n)
    estimates = np.asarray(jax.jit(jax.vmap(single, (0, None)))(keys, image)).reshape(n, 4)
    flat = np.asarray(w).ravel()
    variance = flat @ flat + (kurtosis - 2) * flat**2
    np.testing.assert_allclose(estimates.mean(0), flat, atol=5 * (variance.max() / n) ** 0.5)
    np.testing.assert_allclose(estimates.var(0), variance, rtol=0.1)


def test_estimated_gradients_ask_about_images_only_and_with_fresh_keys():
    asked = []

    def fn(key, x):
        jax.debug.callback(lambda k, x: asked.append((tuple(np.asarray(k)), np.asarray(x))),
                           jax.random.key_data(key), x)  # fmt: skip
        return jnp.sum(x)

    estimate = estimated_gradient(fn, "spsa", 8, 0.1)
    estimate(jax.random.key(0), jnp.array([0.0, 0.05, 0.5, 1.0]).reshape(2, 2, 1))
    jax.effects_barrier()
    assert len({key for key, _ in asked}) == len(asked) == 16
    assert all(x.min() >= 0 and x.max() <= 1 for _, x in asked)

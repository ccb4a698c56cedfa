"""Purify, classify, average: against means taken by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify import models
from purify.defense import AVERAGES, Defense, classify, combine
from purify.detectors import STATISTICS, build_statistic
from purify.models.networks import Classifier
from purify.purifiers import (
    PURIFIERS,
    Identity,
    NoiseOnly,
    OneStep,
    Schedule,
    build,
    parts_of,
)
from purify.purifiers.adp import ADP
from tests.oracles import LinearClassifier, QuadraticClassifier, make_score

pytestmark = pytest.mark.usefixtures("x64")

SHAPE, CLASSES, KEY = (4, 4, 1), 3, jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(size=SHAPE)
WEIGHTS = RNG.standard_normal((CLASSES, 16))


def defense(purifier=None, **options):
    classifier = LinearClassifier(jnp.asarray(WEIGHTS))
    return Defense(purifier or NoiseOnly(sigma=0.3), classifier, **options)


@jax.jit
def call(logits_fn, key, image):
    return logits_fn(key, image)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


# Three runs of three classes; the votes go 0, 2, 2.
RUNS = np.array([[2.0, 0.5, -1.0], [0.1, 0.0, 0.2], [-3.0, 1.0, 1.5]])
BY_HAND = {
    "logits": [-0.3, 0.5, 0.7 / 3],
    "softmax": np.log(softmax(RUNS).mean(0)),
    "vote": [1 / 3, 0, 2 / 3],
}


def test_every_average_has_an_oracle():
    assert set(BY_HAND) == set(AVERAGES)


@pytest.mark.parametrize("average", AVERAGES)
def test_runs_are_combined_as_by_hand(average):
    np.testing.assert_allclose(combine(jnp.asarray(RUNS), average), BY_HAND[average], atol=1e-14)


def test_the_averages_may_disagree():
    """Which is why the average is part of the defence that an attack has to aim at."""
    assert [int(np.argmax(BY_HAND[average])) for average in AVERAGES] == [1, 0, 2]


@pytest.mark.parametrize("chunk", [None, 1, 2, 9], ids=lambda chunk: f"chunk={chunk}")
def test_a_draw_combines_single_runs_with_folded_keys(chunk):
    """5 runs: 2 does not divide them, 9 exceeds them."""
    ensemble = defense(num_runs=5, chunk=chunk)
    keys = [jax.random.fold_in(KEY, i) for i in range(5)]
    singles = jnp.stack([WEIGHTS @ ensemble.purifier(key, IMAGE).ravel() for key in keys])
    assert np.std(singles, axis=0).min() > 0.01

    @jax.jit
    def every_average(ensemble, key, image):
        drawn = {average: ensemble.replace(average=average)(key, image) for average in AVERAGES}
        return ensemble.run(keys[3], image), ensemble.runs(key, image), drawn

    run, runs, drawn = every_average(ensemble, KEY, IMAGE)
    # Sums of 16 products.
    np.testing.assert_allclose(run, singles[3], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(runs, singles, rtol=1e-12, atol=1e-12)
    for average in AVERAGES:
        np.testing.assert_allclose(
            drawn[average], combine(singles, average), rtol=1e-12, atol=1e-12
        )


def test_without_purification_every_run_is_the_classifier():
    alone = defense(Identity(), num_runs=1)
    np.testing.assert_allclose(alone(KEY, IMAGE), WEIGHTS @ IMAGE.ravel(), rtol=1e-12)
    assert alone.runs(KEY, IMAGE).shape == (1, CLASSES)


@jax.jit
def trace_purifier(purifier, key, image):
    return purifier.trace(key, image)


@jax.jit
def trace_and_runs(ensemble):
    logits, trace = ensemble.trace(KEY, IMAGE)
    return logits, ensemble.runs(KEY, IMAGE), trace


@pytest.mark.parametrize("chunk", [None, 2])
def test_trace_gives_the_runs_and_what_was_done_in_each(chunk):
    adp = ADP(make_score(SHAPE), num_steps=4)
    ensemble = defense(adp, num_runs=3, chunk=chunk)
    logits, runs, trace = trace_and_runs(ensemble)
    assert logits.shape == (3, CLASSES)
    assert trace.steps.shape == trace.nfe.shape == (3,)
    assert trace.step_sizes.shape == trace.score_norms.shape == (3, 4)
    # A rounding of 1e-16 over delta = 1e-3, some steps and 16 weights.
    np.testing.assert_allclose(logits, runs, rtol=1e-9)
    for i in range(3):
        _, alone = trace_purifier(adp, jax.random.fold_in(KEY, i), IMAGE)
        assert alone.nfe == trace.nfe[i]
        np.testing.assert_allclose(alone.step_sizes, trace.step_sizes[i], rtol=1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_purifier_that_takes_no_steps_has_empty_traces(chunk):
    logits, runs, trace = trace_and_runs(defense(NoiseOnly(sigma=0.3), num_runs=3, chunk=chunk))
    assert trace.step_sizes.shape == (3, 0)
    np.testing.assert_allclose(logits, runs, rtol=1e-12)


def test_the_gradient_of_a_draw_is_the_mean_over_its_runs():
    ensemble = Defense(NoiseOnly(sigma=0.3), QuadraticClassifier(jnp.asarray(WEIGHTS)), num_runs=4)

    @jax.jit
    def gradients(key, image):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
        of_run = jax.vmap(jax.grad(lambda key, x: ensemble.run(key, x)[1], 1), (0, None))
        return jax.grad(lambda x: ensemble(key, x)[1])(image), of_run(keys, image)

    of_draw, of_runs = gradients(KEY, IMAGE)
    assert np.std(of_runs, axis=0).max() > 1.0  # the runs really differ
    np.testing.assert_allclose(of_draw, np.mean(of_runs, axis=0), rtol=1e-12, atol=1e-12)


def test_a_defense_is_an_argument_of_a_compiled_function():
    traced = []

    @jax.jit
    def logits(ensemble, key, image):
        traced.append(1)
        return ensemble(key, image)

    ensemble = defense(Schedule(make_score(SHAPE), num_steps=2), num_runs=2)
    first = logits(ensemble, KEY, IMAGE)
    other = jax.tree.map(lambda a: 1.1 * a, ensemble)  # as another checkpoint
    second = logits(other, KEY, IMAGE)
    assert len(traced) == 1 and np.all(first != second)
    np.testing.assert_allclose(second, other(KEY, IMAGE), rtol=1e-9)
    logits(ensemble.replace(num_runs=3), KEY, IMAGE)  # a hyper-parameter is another program
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "median"}, "average='median' is unknown; known: logits, softmax, vote"),
        ({"num_runs": 0}, "num_runs=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be None or at least 1"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        defense(**options)


# classify


def batch(dtype=np.float32):
    keys = jax.random.split(KEY, 3)
    return keys, jnp.asarray(RNG.uniform(size=(3, *SHAPE)), dtype)


def test_classify_is_every_image_under_its_own_key():
    ensemble, (keys, images) = defense(num_runs=2), batch(float)
    alone = [ensemble(key, image) for key, image in zip(keys, images, strict=True)]
    np.testing.assert_allclose(classify(ensemble, keys, images), alone, rtol=1e-12, atol=1e-12)


def test_classify_works_within_other_programs():
    """In one that is compiled, also of what it holds itself, and where one is differentiated."""
    ensemble, (keys, images) = defense(num_runs=2), batch(float)
    expected = classify(ensemble, keys, images)
    inside = [
        jax.jit(lambda x: classify(ensemble, keys, x))(images),
        jax.jit(lambda: classify(ensemble, keys, images))(),
        jax.jit(classify)(ensemble, keys, images),
        jax.vmap(lambda x: classify(ensemble, keys, x))(images[None])[0],
        jax.linearize(lambda x: classify(ensemble, keys, x), images)[0],
    ]
    for logits in inside:
        np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)

    def loss(x):
        return classify(ensemble, keys, x)[:, 1].sum()

    in_range = 0.5 + 0.01 * images  # where the clip of the noised image hides little
    gradient = jax.grad(loss)(in_range)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(in_range), gradient, rtol=1e-9)
    direction, step = np.ones(images.shape), 1e-6
    slope = (loss(in_range + step * direction) - loss(in_range - step * direction)) / (2 * step)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-6)


def test_classify_is_differentiated_through_adp_as_a_scan():
    """As a while loop, which ends early, it has no reverse mode."""
    score, (keys, images) = make_score((4, 4, 1)), batch(float)
    images = 0.5 + 0.01 * images[:2]
    classifier = LinearClassifier(jnp.ones((3, 16)) * jnp.arange(3.0)[:, None])
    ensemble = Defense(ADP(score, num_steps=2, loop="scan"), classifier, num_runs=2)
    gradient = jax.grad(lambda x: classify(ensemble, keys[:2], x)[:, 1].sum())(images)
    assert gradient.shape == images.shape and np.abs(gradient).max() > 0.01


def resnet(shape=(8, 8, 1), image_shape=None):
    network = models.build("resnet", widths=(4,), num_classes=3)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    return Classifier(variables, network, image_shape=image_shape)


@pytest.mark.parametrize("trained_on", [None, (8, 8, 1)], ids=str)
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 28, 28, 1), r"of shape \(28, 28, 1\) does not fit Classifier: it takes .*\(8, 8, 1\)"),
        ((2, 8, 8, 3), r"of shape \(8, 8, 3\) does not fit"),
        ((8, 8, 1), r"keys \[n\] and images \[n, height, width, channels\], not \(2,\) and \(8, 8"),
        ((3, 8, 8, 1), r"not \(2,\) and \(3, 8, 8, 1\)"),
    ],
    ids=str,
)
def test_images_of_another_shape_are_refused(trained_on, shape, said):
    """What is known of a network without a shape is what its weights say: the channels."""
    ensemble = Defense(Identity(), resnet(image_shape=trained_on), num_runs=1)
    keys = jax.random.split(KEY, 2)
    if trained_on is None and shape == (2, 28, 28, 1):
        assert classify(ensemble, keys, jnp.zeros(shape, jnp.float32)).shape == (2, 3)
        return
    for call in (classify, jax.jit(classify)):
        with pytest.raises(ValueError, match=said):
            call(ensemble, keys, jnp.zeros(shape, jnp.float32))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.full((2, 8, 8, 1), 255, np.uint8), "images of uint8 must be floats in"),
        (np.ones((2, 8, 8, 1), int), "images of int64 must be floats in"),
        (np.full((2, 8, 8, 1), 255.0, np.float32), r"from 255 to 255 must be in \[0, 1\]: divide"),
        (np.full((2, 8, 8, 1), -0.5, np.float32), "images from -0.5 to -0.5 must be in"),
        (np.full((2, 8, 8, 1), np.nan, np.float32), "images from nan to nan must be in"),
        (np.ones((2, 8, 8, 0), np.float32), r"images \(2, 8, 8, 0\) are none: give at least one"),
    ],
    ids=["uint8", "int", "255.0", "negative", "nan", "empty"],
)
def test_images_of_other_values_are_refused(images, said):
    ensemble, keys = Defense(Identity(), resnet(), num_runs=1), jax.random.split(KEY, 2)
    for array in (images, jnp.asarray(images)):
        with pytest.raises(ValueError, match=said):
            classify(ensemble, keys, array)
    assert classify(ensemble, keys, np.full((2, 8, 8, 1), 0.5).tolist()).shape == (2, 3)
    with pytest.raises(ValueError, match="images .* are none"):
        classify(ensemble, keys[:0], jnp.zeros((0, 8, 8, 1)))
    if images.dtype == np.uint8:
        with pytest.raises(ValueError, match="an image of uint8 must be floats in"):
            ensemble.classifier(images[0])


def test_errors_within_a_network_of_known_shape_are_not_blamed_on_the_image():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            return len(None)

    for shape, error in ((None, ValueError), ((8, 8, 1), TypeError)):
        classifier = Classifier({"params": {}}, Broken(), image_shape=shape)
        with pytest.raises(error, match="has no len"):
            classifier(jnp.zeros((8, 8, 1)))


def test_a_score_model_refuses_images_of_another_shape():
    score = make_score(SHAPE).replace(image_shape=SHAPE)
    assert score(jnp.zeros(SHAPE)).shape == SHAPE
    with pytest.raises(ValueError, match=r"of shape \(8, 8, 1\) does not fit Score: .*\(4, 4, 1\)"):
        OneStep(score)(KEY, jnp.zeros((8, 8, 1)))
    with pytest.raises(ValueError, match=r"of shape \(1, 4, 4, 1\) does not fit Score"):
        make_score(SHAPE)(jnp.zeros((1, *SHAPE)))


# repr


def shown() -> dict:
    """Of every kind of pytree that holds a network, one."""
    score, classifier = make_score(SHAPE), resnet()
    parts = {name: {"purifier": "noise_only"} for name in parts_of("detect_then_purify")}
    made = {name: build(name, score, **(parts if parts_of(name) else {})) for name in PURIFIERS}
    whole = Defense(made["adp"], classifier)
    energy = score.replace(head="energy")
    made |= {name: build_statistic(name, whole, energy) for name in STATISTICS}
    return made | {"score": score, "classifier": classifier, "defense": whole}


def test_what_is_printed_of_a_defence_names_its_options_and_holds_no_arrays():
    for name, of in shown().items():
        assert len(repr(of)) < 900 and "rray" not in repr(of) and "\n" not in repr(of), name
        assert repr(of).startswith(type(of).__name__), name
    told = shown()
    size = sum(leaf.size for leaf in jax.tree.leaves(told["classifier"].variables["params"]))
    assert repr(told["classifier"]).startswith("Classifier(ResNet(num_classes=3, widths=(4,)")
    assert f"{size:,} parameters)" in repr(told["classifier"])
    for part in ("ADP(score=Score(Denoiser(", "sigma=0.25", "num_runs=10", "average='logits'"):
        assert part in repr(told["defense"])
    assert repr(jax.tree.map(lambda leaf: None, told["defense"]))  # whatever the leaves are

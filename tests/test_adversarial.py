"""Adversarial training: its attack and its losses by hand, on classifiers with known answers."""

import dataclasses
import functools
import importlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.norms import NORMS
from purify import models
from purify.data import datasets
from purify.models.networks import Classifier
from purify.saving.jsonl import read_lines
from purify.training import train_classifier
from purify.training.adversarial import TRADES_START, AdversarialOptions, divergence, pgd_at, trades
from purify.training.losses import cross_entropy
from tests.oracles import QUICK

SHAPE = (3, 3, 1)
OPTIONS = AdversarialOptions("pgd_at", "linf", eps=0.1, step_size=0.03, num_steps=10, beta=6.0)


class Linear(nn.Module):
    """logits = W x of `classes` classes."""

    classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.classes, use_bias=False)(x.reshape(len(x), -1))


class Rectified(nn.Module):
    """logits = W relu(x - mean), normalised pixel by pixel over the batch."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(not train, momentum=0.9, axis_name="batch" if train else None)
        return nn.Dense(2, use_bias=False)(nn.relu(norm(x.reshape(len(x), -1))))


def linear(classes: int) -> tuple[Classifier, np.ndarray]:
    """A linear classifier and its W [classes, 9]."""
    weights = np.random.default_rng(0).normal(size=(classes, 9))
    params = {"Dense_0": {"kernel": jnp.asarray(weights.T)}}
    return Classifier({"params": params}, Linear(classes)), weights


def some_image(seed: int = 1):
    """A third of its pixels are black or white, or nearly."""
    return jnp.asarray(np.random.default_rng(seed).uniform(-0.2, 1.2, SHAPE).clip(0, 1))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def kl(p, q) -> float:
    return float(np.sum(p * (np.log(p) - np.log(q))))


# The attack


def test_pgd_at_learns_from_the_best_attack_on_a_linear_classifier(x64):
    """Linf, two classes: every pixel moves by eps, away from the label, and is clipped."""
    classifier, weights = linear(2)
    image = some_image()
    for label in (0, 1):
        away = np.sign(weights[1 - label] - weights[label]).reshape(SHAPE)
        attacked = np.clip(image + 0.1 * away, 0, 1)
        assert np.any(attacked != image + 0.1 * away)  # some pixel is clipped
        probabilities = softmax(weights @ attacked.ravel())
        loss, metrics, stats = pgd_at(classifier, jax.random.key(0), image, label, OPTIONS)
        assert float(loss) == pytest.approx(-np.log(probabilities[label]), rel=1e-12)
        clean = np.argmax(weights @ image.ravel()) == label
        assert metrics["accuracy"] == (clean, 1)
        assert metrics["robust_accuracy"] == (np.argmax(probabilities) == label, 1)
        assert not stats


def test_the_l2_attack_ends_at_eps_along_the_gradient(x64):
    classifier, weights = linear(2)
    options = dataclasses.replace(OPTIONS, norm="l2", num_steps=60)
    image = jnp.full(SHAPE, 0.5)
    along = (weights[1] - weights[0]) / np.linalg.norm(weights[1] - weights[0])
    loss, _, _ = pgd_at(classifier, jax.random.key(0), image, 0, options)
    probabilities = softmax(weights @ (np.full(9, 0.5) + 0.1 * along))
    assert float(loss) == pytest.approx(-np.log(probabilities[0]), rel=1e-9)


def test_the_attack_sees_the_running_statistics_and_no_neighbour(x64):
    """They keep every rectifier open, which the batch's own would close for half of the pixels;
    what the classifier learns from is normalised by the batch of attacked images."""
    weights = 0.1 * np.random.default_rng(0).normal(size=(2, 9))
    norm = {"scale": jnp.ones(9), "bias": jnp.zeros(9)}
    variables = {
        "params": {"BatchNorm_0": norm, "Dense_0": {"kernel": jnp.asarray(weights.T)}},
        "batch_stats": {"BatchNorm_0": {"mean": jnp.full(9, -2.0), "var": jnp.ones(9)}},
    }
    images, labels = jnp.stack([some_image(seed) for seed in range(4)]), jnp.array([0, 1, 1, 0])
    away = np.sign(weights[1 - labels] - weights[labels]).reshape(images.shape)
    attacked = np.clip(images + 0.1 * away, 0, 1)
    keys = jax.random.split(jax.random.key(0), 4)

    def means(method):
        classifier = Classifier(variables, Rectified())
        one = functools.partial(method, classifier, options=OPTIONS)
        batched = jax.vmap(one, out_axes=(0, 0, None), axis_name="batch")
        return batched(keys, images, labels)[2]["batch_stats"]["BatchNorm_0"]["mean"]

    before, of_clean, of_attacked = -2.0, images.mean(0).ravel(), attacked.mean(0).ravel()
    np.testing.assert_allclose(means(pgd_at), 0.9 * before + 0.1 * of_attacked, rtol=1e-12)
    # TRADES' images go away from the clean answer, not from the label; clean ones count before.
    after_clean = 0.9 * before + 0.1 * of_clean
    distance = np.abs((means(trades) - 0.9 * after_clean) / 0.1 - of_clean)
    assert 0 < distance.max() <= 0.1 + 1e-9


def test_pgd_at_starts_at_random_in_the_ball(x64):
    classifier, weights = linear(3)
    image, key = some_image(), jax.random.key(5)
    start = np.asarray(NORMS["linf"].random(key, image, 0.1)).ravel()
    assert np.abs(start - np.ravel(image)).max() > 0.05
    still = dataclasses.replace(OPTIONS, step_size=1e-13, num_steps=1)
    loss, _, _ = pgd_at(classifier, key, image, 1, still)
    assert float(loss) == pytest.approx(-np.log(softmax(weights @ start)[1]), rel=1e-9)


# TRADES


def trades_by_hand(weights, start, image, *, options):
    """The attacked image: ascent of KL(p(clean) || p(x)), whose gradient is W^T (p(x) - p)."""
    p, x = softmax(weights @ image), start
    for _ in range(options.num_steps):
        gradient = weights.T @ (softmax(weights @ x) - p)
        x = x + options.step_size * np.sign(gradient)
        x = np.clip(np.clip(x, image - options.eps, image + options.eps), 0, 1)
    return x


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trades_is_its_definition_on_the_same_start(smoothing, x64):
    classifier, weights = linear(4)
    image, key = some_image(), jax.random.key(3)
    options = dataclasses.replace(OPTIONS, method="trades", num_steps=3)
    start = image + TRADES_START * jax.random.normal(key, SHAPE)
    flat = np.asarray(image).ravel()
    attacked = trades_by_hand(weights, np.asarray(start).ravel(), flat, options=options)
    p, q = softmax(weights @ flat), softmax(weights @ attacked)
    assert kl(p, q) > 1e-3
    for label in (int(np.argmax(p)), int(np.argmin(p))):
        target = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
        expected = -np.sum(target * np.log(p)) + 6.0 * kl(p, q)
        loss, metrics, _ = trades(classifier, key, image, label, options, label_smoothing=smoothing)
        assert float(loss) == pytest.approx(expected, rel=1e-10)
        assert metrics["accuracy"] == (np.argmax(p) == label, 1)
        assert metrics["robust_accuracy"] == (np.argmax(q) == label, 1)


def test_the_gradient_of_trades_is_that_of_both_sides_of_its_divergence(x64):
    """Not of the attacked answers alone: clean ones learn to be like them, too."""
    classifier, weights = linear(4)
    image, key, label = some_image(), jax.random.key(3), 2
    options = dataclasses.replace(OPTIONS, method="trades", num_steps=3)
    start = np.ravel(image + TRADES_START * jax.random.normal(key, SHAPE))
    flat = np.ravel(image)
    attacked = trades_by_hand(weights, start, flat, options=options)

    def by_hand(weights):
        log_p, log_q = (jax.nn.log_softmax(weights @ x) for x in (flat, attacked))
        return -log_p[label] + 6.0 * jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    def ours(variables):
        return trades(classifier.replace(variables=variables), key, image, label, options)[0]

    found = jax.grad(ours)(classifier.variables)["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(found.T, jax.grad(by_hand)(jnp.asarray(weights)), rtol=1e-9)


def test_trades_without_its_second_term_is_cross_entropy(x64):
    classifier, _ = linear(4)
    options = dataclasses.replace(OPTIONS, method="trades", beta=0.0)
    image = some_image()

    def gradient(loss_fn):
        return jax.value_and_grad(lambda v: loss_fn(classifier.replace(variables=v))[0])(
            classifier.variables
        )

    ours = gradient(lambda c: trades(c, jax.random.key(0), image, 2, options))
    plain = gradient(lambda c: cross_entropy(c, image, 2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=0), ours, plain)


# What is learnt


@pytest.mark.parametrize("method", [pgd_at, trades])
def test_no_gradient_flows_through_the_attack(method, x64, monkeypatch):
    """Under L2, whose steps have a derivative: as if the attacked image were a constant."""
    classifier, weights = linear(3)
    options = dataclasses.replace(OPTIONS, norm="l2", num_steps=2)
    image, key, label = some_image(), jax.random.key(0), 1
    seen, train = [], Classifier.train
    with monkeypatch.context() as watched:
        watched.setattr(Classifier, "train", lambda self, x: (seen.append(x), train(self, x))[1])
        method(classifier, key, image, label, options)
    attacked = seen[-1]  # TRADES sees the clean image before
    assert np.linalg.norm(attacked - image) > 0.05

    def ours(variables):
        return method(classifier.replace(variables=variables), key, image, label, options)[0]

    def constant(variables):
        learning = classifier.replace(variables=variables)
        if method is pgd_at:
            return cross_entropy(learning, attacked, label)[0]
        clean = cross_entropy(learning, image, label)[0]
        return clean + 6.0 * divergence(learning(image), learning(attacked))

    compare = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(compare, *(jax.grad(f)(classifier.variables) for f in (ours, constant)))


def test_without_a_method_training_is_the_same_program_as_cross_entropy():
    network = models.build("resnet", num_classes=3, widths=(4,), blocks=0)
    image = jnp.zeros((8, 8, 1))
    variables = jax.jit(network.init, compiler_options=QUICK)(jax.random.key(0), image[None])
    off = dataclasses.replace(OPTIONS, method="")
    loss_fn = train_classifier.make_loss_fn(
        network, adversarial=off, label_smoothing=0.1, precision="float32"
    )

    def plain(variables, key, image, label):
        return cross_entropy(Classifier(variables, network), image, label, label_smoothing=0.1)

    arguments = (variables, jax.random.key(0), image, 1)
    ours, theirs = (str(jax.make_jaxpr(f)(*arguments)) for f in (loss_fn, plain))
    assert ours == theirs and "scan" not in ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(method="fgsm"), "method='fgsm' is unknown; known: '', pgd_at, trades"),
        (dict(norm="l1"), "norm='l1' is unknown; known: linf, l2"),
        (dict(eps=0.0), "eps=0.0 must be positive"),
        (dict(eps=float("nan")), "eps=nan must be positive"),
        (dict(step_size=-0.1), "step_size=-0.1 must be positive"),
        (dict(num_steps=0), "num_steps=0 must be at least 1"),
        (dict(beta=-1.0), "beta=-1.0 must be at least 0"),
    ],
)
def test_an_impossible_option_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **changes)


# A run


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.load("digits8x8", "train", data_dir=folder)
    return folder


def small_config(tfds_dir, variant: str):
    config = importlib.import_module("configs.digits").get_config(variant)
    config.data.dir = str(tfds_dir)
    config.classifier.network.update(widths=(4,), blocks=0)
    config.classifier.train.update(num_steps=2, warmup_steps=0, batch_size=8, log_every=1)
    return config


def test_a_run_reports_robust_accuracy_and_is_resumed_with_the_same_attack_only(tmp_path, tfds_dir):
    config = small_config(tfds_dir, "pgd_at")
    train_classifier.run(config, tmp_path)
    folder = tmp_path / "classifier"
    for line in read_lines(folder / "metrics.jsonl"):
        assert 0 <= line["robust_accuracy"] <= 1 and 0 <= line["accuracy"] <= 1
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["adversarial"] == config.classifier.adversarial.to_dict()
    config.classifier.adversarial.eps = 0.1
    with pytest.raises(ValueError, match=r"other settings: adversarial.eps: 0.15 -> 0.1; .*choose"):
        train_classifier.run(config, tmp_path)
    config.classifier.adversarial.method = ""
    with pytest.raises(ValueError, match="other settings: adversarial: {.*} -> None; choose"):
        train_classifier.run(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(method="fgsm"), "method='fgsm' is unknown"),
        (
            dict(restarts=3),
            "config.classifier.adversarial has no option restarts; known: beta, eps",
        ),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(tmp_path, tfds_dir, changes, message):
    config = small_config(tfds_dir, "pgd_at")
    with config.unlocked():
        config.classifier.adversarial.update(changes)
    with pytest.raises(ValueError, match=message):
        train_classifier.run(config, tmp_path)
    assert not list(tmp_path.iterdir())

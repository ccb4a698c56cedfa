"""The gradient health report: what is sound passes, and every planted fault fails.

On real digits, with a small network trained here.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from purify.defense import Defense
from purify.evals.gradient_checks import Budget
from purify.evals.gradient_health import STILL_FAIL, check, exact
from purify.purifiers import Identity, NoiseOnly, Schedule
from tests.oracles import GaussianScore

SIGMA, EPS = 0.25, 0.15
NUM_TRAINED, NUM_CHECKED = 1000, 50
BUDGET = Budget(eps=EPS, num_steps=8, eot_samples=2, num_draws=2, proposals=30, directions=4)


@flax.struct.dataclass
class Perceptron:
    """A classifier of one hidden layer."""

    hidden: jax.Array  # [h, n]
    bias: jax.Array  # [h]
    output: jax.Array  # [K, h]

    def __call__(self, image):
        return self.output @ jax.nn.relu(self.hidden @ (image.ravel() - 0.5) + self.bias)


@flax.struct.dataclass
class Changed:
    """A classifier of changed images, or of changed answers."""

    classifier: object
    before: object = flax.struct.field(pytree_node=False, default=lambda image: image)
    after: object = flax.struct.field(pytree_node=False, default=lambda logits: logits)

    def __call__(self, image):
        return self.after(self.classifier(self.before(image)))


@functools.cache
def digits():
    """(images float32 [1797, 8, 8, 1] in [0, 1], labels)."""
    found = load_digits()
    return (found.images[..., None] / 16).astype(np.float32), found.target


@functools.cache
def trained_network(steps: int = 0) -> Perceptron:
    """Trained on the first NUM_TRAINED digits; steps: of PGD, for images attacked as it learns."""
    images, labels = (jnp.asarray(a[:NUM_TRAINED]) for a in digits())
    rng = np.random.default_rng(0)
    network = Perceptron(
        jnp.asarray(rng.normal(0, 1 / 8, (64, 64)), jnp.float32),
        jnp.zeros(64),
        jnp.asarray(rng.normal(0, 1 / 8, (10, 64)), jnp.float32),
    )

    def loss(network, images):
        logits = jax.vmap(network)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimiser = optax.adam(1e-2)

    def attacked(network):
        def ascend(_, x):
            x = x + EPS / 3 * jnp.sign(jax.grad(loss, argnums=1)(network, x))
            return jnp.clip(x, jnp.maximum(images - EPS, 0), jnp.minimum(images + EPS, 1))

        return jax.lax.fori_loop(0, steps, ascend, images)

    def update(carry, _):
        network, state = carry
        gradient = jax.grad(loss)(network, attacked(network))
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(network, updates), state), None

    (network, _), _ = jax.jit(
        lambda carry: jax.lax.scan(update, carry, length=150)
    )((network, optimiser.init(network)))  # fmt: skip
    return network


def held_out():
    """Digits that the networks did not see."""
    return tuple(array[NUM_TRAINED : NUM_TRAINED + NUM_CHECKED] for array in digits())


def report(defense, **options) -> dict[str, str]:
    """check -> verdict, of BUDGET on the held-out digits."""
    budget = options.pop("budget", BUDGET)
    verdicts = check(defense, *held_out(), budget, **options)
    for verdict in verdicts:
        print(verdict)
    return {verdict.check: verdict.verdict for verdict in verdicts}

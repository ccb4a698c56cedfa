"""Other people's attacks on classifiers of this project, for tests/test_peers.py.

Every peer sees the very same compiled network, by way of a bridge into its own framework, and gives
back images [n, H, W, C]. Peers are imported where they are used: nothing else needs them.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from purify import models
from purify.data import datasets
from purify.models.networks import Classifier
from purify.random import stream_key
from purify.training.adversarial import AdversarialOptions
from purify.training.loop import init_state, make_train_step
from purify.training.options import TrainOptions
from purify.training.train_classifier import make_loss_fn

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as foolbox and pyautoattack write them
SHAPE, CLASSES = (8, 8, 1), 10
NETWORK = dict(arch="resnet", num_classes=CLASSES, widths=(8, 16), blocks=1)
TRAINING = TrainOptions(
    num_steps=500,
    batch_size=64,
    learning_rate=1e-2,
    warmup_steps=50,
    schedule="cosine",
    clip_norm=10.0,
    ema_decay=0.99,
)
_ATTACKED = dict(norm="linf", eps=0.15, step_size=0.04, num_steps=5, beta=0.0)
METHODS = {
    "plain": AdversarialOptions("", **_ATTACKED),
    "robust": AdversarialOptions("pgd_at", **_ATTACKED),
}


def train(dataset: datasets.Dataset, method: AdversarialOptions) -> Classifier:
    """A small classifier, the same one every time."""
    network = models.build(**NETWORK)
    variables = jax.jit(network.init)(stream_key(0, "init"), jnp.zeros((1, *SHAPE)))
    loss_fn = make_loss_fn(network, adversarial=method, label_smoothing=0.0, precision="float32")
    optimizer = TRAINING.optimizer()
    step = make_train_step(
        loss_fn, optimizer, ema_decay=TRAINING.ema_decay, augment=lambda key, image: image
    )
    state, key = init_state(variables, optimizer), stream_key(0, "train")
    for number in range(TRAINING.num_steps):
        batch = datasets.batch_indices(0, number, TRAINING.batch_size, len(dataset))
        state, _ = step(state, key, batch, dataset.images[batch], dataset.labels[batch])
    return Classifier(state.ema, network)


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier compiled once, for any number of images up to `size` at a time.

    logits(images [n, H, W, C]) -> [n, K]; pull_back(images, cotangents [n, K]) -> the gradient of
    <logits, cotangents>, [n, H, W, C]. All are NumPy arrays.
    """

    classifier: Classifier
    size: int

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(_logits(self.classifier, self._padded(images)))[: len(images)]

    def pull_back(self, images: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        padded = self._padded(images), self._padded(cotangents)
        return np.asarray(_pull_back(self.classifier, *padded))[: len(images)]

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        padding = [(0, self.size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        return np.pad(np.asarray(rows, np.float32), padding)


@jax.jit  # foolbox has it inside another program, which purify.jit cannot be
def _logits(classifier, images):
    return jax.vmap(classifier)(images)


@jax.jit
def _pull_back(classifier, images, cotangents):
    return jax.vjp(lambda x: jax.vmap(classifier)(x), images)[1](cotangents)[0]


@contextlib.contextmanager
def as_a_guest():
    """Lets other people's code do what this project's own may not: warn, broadcast across ranks,
    and draw with untyped keys."""
    with (
        warnings.catch_warnings(),
        jax.numpy_rank_promotion("allow"),
        jax.legacy_prng_key("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def with_foolbox(name: str, network: Network, images, labels, *, eps=None, seed=0, **options):
    """What an attack of foolbox found, and how many times it asked for every image's logits.

    eps: of attacks in a ball; those that look for the nearest image have none.
    """
    import eagerpy
    import foolbox

    attack = _repaired_l2_fmn() if name == "L2FMNAttack" else getattr(foolbox.attacks, name)
    calls = []

    def model(x):
        calls.append(len(x))
        return _logits(network.classifier, x)

    with as_a_guest():
        eagerpy.JAXTensor.key = jax.random.PRNGKey(seed)  # where foolbox's draws come from
        bounded = foolbox.JAXModel(model, bounds=(0, 1))
        batch = jnp.asarray(images), jnp.asarray(labels)
        _, found, _ = attack(**options)(bounded, *batch, epsilons=eps)
    # Carlini and Wagner's gives a black image where it found none, which would count as fooled.
    nothing = ~np.asarray(found).any((1, 2, 3), keepdims=True)
    return np.where(nothing, images, found), len(calls)


def _repaired_l2_fmn():
    """FMN under L2 with its projection: that of foolbox 3.3.4 multiplies by a norm over itself, so
    that nothing is ever drawn nearer, and the attack would be beaten for a slip."""
    from eagerpy import minimum, norms
    from foolbox.attacks import L2FMNAttack
    from foolbox.devutils import atleast_kd, flatten

    class Repaired(L2FMNAttack):
        def project(self, x, x0, epsilon):
            size = norms.l2(flatten(x - x0), axis=-1)
            return x0 + (x - x0) * atleast_kd(minimum(1, epsilon / (size + 1e-12)), x.ndim)

    return Repaired


def with_torch(make: Callable, network: Network, images, labels) -> np.ndarray:
    """What an attack of PyTorch's found: make(model) -> a function of (images, labels), where the
    model takes [n, C, H, W] and has a gradient."""
    import torch

    class Model(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tensor(network.logits(_from_torch(x)))

        @staticmethod
        def backward(ctx, cotangents):
            (x,) = ctx.saved_tensors
            return _to_torch(network.pull_back(_from_torch(x), cotangents.numpy()))

    with as_a_guest():
        torch.set_num_threads(1)  # on arrays this small, more wait for each other
        torch.manual_seed(0)
        perturb = make(Model.apply)
        found = perturb(_to_torch(images), torch.tensor(np.asarray(labels, np.int64)))
    return _from_torch(found)


def _from_torch(x) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _to_torch(images: np.ndarray):
    import torch

    return torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy())


def with_pyautoattack_apgd(
    network, images, labels, *, norm, eps, num_steps, loss, targets=0, seed=0
):
    """AutoAttack's APGD. (Its schedule of larger radii under L1 is another algorithm: off.)"""
    from pyautoattack import autopgd_base

    options = dict(n_iter=num_steps, norm=NORM[norm], eps=eps, seed=seed, device="cpu")
    if targets:
        make = autopgd_base.APGDAttack_targeted
        options["n_target_classes"] = targets
    else:
        make = autopgd_base.APGDAttack
        options["loss"] = loss
    return with_torch(lambda model: make(model, **options).perturb, network, images, labels)


def with_pyautoattack_square(network, images, labels, *, norm, eps, num_steps, seed=0):
    """AutoAttack's Square."""
    from pyautoattack.square import SquareAttack

    options = dict(norm=NORM[norm], n_queries=num_steps, eps=eps, seed=seed, device="cpu")
    return with_torch(lambda model: SquareAttack(model, **options).perturb, network, images, labels)


def with_pyautoattack_fab(network, images, labels, *, norm, num_steps, targets) -> np.ndarray:
    """The nearest wrong image over all target classes of AutoAttack's FAB: its own `perturb` leaves
    out what an earlier class has fooled."""
    from pyautoattack.fab_pt import FABAttack_PT

    nearest, shortest = np.array(images), np.full(len(images), np.inf)
    for target in range(2, targets + 2):

        def make(model, target=target):
            attack = FABAttack_PT(model, norm=NORM[norm], n_iter=num_steps, device="cpu")
            attack.target_class = target
            return functools.partial(attack.attack_single_run, is_targeted=True)

        found = with_torch(make, network, images, labels)
        moved = distances(found, images, norm)
        nearer = (moved > 0) & (moved < shortest)  # where nothing was found, nothing has moved
        nearest[nearer], shortest[nearer] = found[nearer], moved[nearer]
    return nearest


def with_art_square(network, images, labels, *, eps, num_steps, seed=0) -> np.ndarray:
    """ART's Square Attack under Linf, which sees the network as a black box."""
    with as_a_guest():
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        np.random.seed(seed)
        estimator = BlackBoxClassifierNeuralNetwork(
            network.logits, SHAPE, CLASSES, channels_first=False, clip_values=(0.0, 1.0)
        )
        attack = SquareAttack(
            estimator, eps=eps, max_iter=num_steps, batch_size=network.size, verbose=False
        )
        return attack.generate(np.array(images), np.array(labels))


def distances(found, images, norm: str) -> np.ndarray:
    """Of each image from the clean one, in double precision."""
    difference = np.asarray(found, np.float64) - np.asarray(images, np.float64)
    return np.linalg.norm(difference.reshape(len(difference), -1), ord=ORDER[norm], axis=1)

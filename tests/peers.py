"""Other people's attacks on classifiers of this project, for tests/test_peers.py.

Every peer sees the very same compiled network, by way of a bridge into its own framework, and gives
back images [n, H, W, C]. Peers are imported where they are used: none is needed for anything else.
"""

import contextlib
import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from purify import data, models
from purify.adversarial import AdversarialOptions
from purify.compilation import jit
from purify.networks import Classifier
from purify.random import stream_key
from purify.train import init_state, make_train_step
from purify.train_classifier import make_loss_fn
from purify.train_options import TrainOptions

NETWORK = dict(arch="resnet", num_classes=10, widths=(8, 16), blocks=1)
TRAINING = TrainOptions(
    num_steps=500,
    batch_size=64,
    learning_rate=1e-2,
    warmup_steps=50,
    schedule="cosine",
    clip_norm=10.0,
    ema_decay=0.99,
)
METHODS = {
    "plain": AdversarialOptions("", "linf", eps=0.15, step_size=0.04, num_steps=1, beta=0.0),
    "robust": AdversarialOptions("pgd_at", "linf", eps=0.15, step_size=0.04, num_steps=5, beta=0.0),
}


def train(dataset: data.Dataset, method: AdversarialOptions) -> Classifier:
    """A small classifier, the same one every time."""
    network = models.build(**NETWORK)
    variables = jax.jit(network.init)(stream_key(0, "init"), jnp.zeros((1, 8, 8, 1)))
    loss_fn = make_loss_fn(network, adversarial=method, label_smoothing=0.0, precision="float32")
    optimizer = TRAINING.optimizer()
    step = make_train_step(loss_fn, optimizer, ema_decay=TRAINING.ema_decay, augment=_as_it_is)
    state, key = init_state(variables, optimizer), stream_key(0, "train")
    for number in range(TRAINING.num_steps):
        batch = data.batch_indices(0, number, TRAINING.batch_size, len(dataset))
        state, _ = step(state, key, batch, dataset.images[batch], dataset.labels[batch])
    return Classifier(state.ema, network)


def _as_it_is(key, image):
    return image


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


@jit
def _logits(classifier, images):
    return jax.vmap(classifier)(images)


@jit
def _pull_back(classifier, images, cotangents):
    return jax.vjp(lambda x: jax.vmap(classifier)(x), images)[1](cotangents)[0]


@contextlib.contextmanager
def as_a_guest():
    """Lets other people's code do what this project's own may not: warn, and broadcast by rank."""
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        with jax.legacy_prng_key("allow"):
            yield


def with_foolbox(attack, network: Network, images, labels, eps: float | None = None):
    """What an attack of foolbox found, and how many times it asked for the logits of all images.

    eps: of attacks in a ball; those that look for the nearest image have none.
    """
    import foolbox

    calls = []

    def model(x):
        calls.append(len(x))
        return _logits(network.classifier, x)

    with as_a_guest():
        np.random.seed(0)
        bounded = foolbox.JAXModel(model, bounds=(0, 1))
        found, _, _ = attack(bounded, jnp.asarray(images), jnp.asarray(labels), epsilons=eps)
    return np.asarray(found), len(calls)


def torch_model(network: Network):
    """The network as PyTorch sees it: [n, C, H, W] -> logits [n, K], with its gradient."""
    import torch

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.tensor(network.logits(_from_torch(x)))

        @staticmethod
        def backward(ctx, cotangents):
            (x,) = ctx.saved_tensors
            return _to_torch(network.pull_back(_from_torch(x), cotangents.numpy()))

    return Call.apply


def _from_torch(x) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _to_torch(images: np.ndarray):
    import torch

    return torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy())


def with_torch(perturb, images, labels) -> np.ndarray:
    """What an attack `perturb(x, y)` of PyTorch's found."""
    import torch

    with as_a_guest():
        found = perturb(_to_torch(images), torch.tensor(np.asarray(labels, np.int64)))
    return _from_torch(found)


def nearest_by_fab(attack, images, labels) -> np.ndarray:
    """The nearest wrong image over all target classes: `perturb` of pyautoattack's FAB leaves out
    whatever is fooled by an earlier class."""
    import torch

    norm = {"Linf": np.inf, "L2": 2, "L1": 1}[attack.norm]
    nearest, shortest = np.array(images), np.full(len(images), np.inf)
    for target in range(2, attack.n_target_classes + 2):
        attack.target_class = target
        torch.manual_seed(0)
        single = functools.partial(attack.attack_single_run, is_targeted=True)
        found = with_torch(single, images, labels)
        moved = np.linalg.norm((found - images).reshape(len(images), -1), ord=norm, axis=1)
        # An image for which nothing was found comes back as it was.
        nearer = (moved > 0) & (moved < shortest)
        nearest[nearer], shortest[nearer] = found[nearer], moved[nearer]
    return nearest


def with_art_square(network: Network, images, labels, **options) -> np.ndarray:
    """ART's Square Attack, which sees the network as a black box."""
    with as_a_guest():
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        np.random.seed(0)
        estimator = BlackBoxClassifierNeuralNetwork(
            network.logits, images.shape[1:], 10, channels_first=False, clip_values=(0.0, 1.0)
        )
        attack = SquareAttack(estimator, batch_size=len(images), verbose=False, **options)
        return attack.generate(np.array(images), np.array(labels))

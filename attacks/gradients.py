"""Expectation over transformation, and how to differentiate a purifier.

A gradient mode is a transform purifier -> purifier: what the attacker differentiates. The function
attacked and the function evaluated are then two values, named separately in every result.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

AVERAGES = ("logits", "softmax")


def numbered_draws(fn: Callable) -> Callable:
    """`drawn(key, numbers, *args)`: outputs of `fn(fold_in(key, i), *args)` stacked over numbers i,
    int [n]: the only way in which draws of one key are told apart."""

    def drawn(key, numbers, *args):
        return jax.vmap(lambda i: fn(jax.random.fold_in(key, i), *args))(numbers)

    return drawn


def draws(fn: Callable, num_samples: int, chunk: int | None = None) -> Callable:
    """`drawn(key, *args)`: the numbered draws 0, ..., num_samples - 1.

    chunk: how many are computed at once (all by default). A chunk is recomputed in the backward
    pass, so memory grows with the chunk and not with num_samples.
    """

    def drawn(key, *args):
        def of(numbers):
            return numbered_draws(fn)(key, numbers, *args)

        indices = jnp.arange(num_samples)
        if chunk is None or chunk >= num_samples:
            return of(indices)
        # Not lax.map's batch_size: it fails on outputs of size 0, such as no step sizes.
        at_once = jax.checkpoint(of)
        rest = num_samples % chunk
        whole = num_samples - rest
        outputs = jax.lax.map(at_once, indices[:whole].reshape(-1, chunk))
        outputs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outputs)
        if not rest:
            return outputs
        last = at_once(indices[whole:])
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)

    return drawn


def expectation(fn: Callable, num_samples: int, chunk: int | None = None) -> Callable:
    """`mean(key, *args)`: the mean of `draws`. Its gradient is the mean of the single gradients,
    which is expectation over transformation (Athalye et al. 2018)."""
    drawn = draws(fn, num_samples, chunk)
    return lambda key, *args: jax.tree.map(lambda a: a.mean(0), drawn(key, *args))


ESTIMATES = {"spsa": jax.random.rademacher, "nes": jax.random.normal}


def estimated_gradient(
    fn: Callable, distribution: str, num_directions: int, delta: float, chunk: int | None = None
) -> Callable:
    """`estimate(key, image)`: the mean over random directions v of
    (fn(key_1, x + delta v) - fn(key_2, x - delta v)) / (2 delta) * v, for who sees values only.

    distribution: of v, a name of ESTIMATES: 'spsa' (signs; Spall 1992, Uesato et al. 2018) or
        'nes' (normal; Ilyas et al. 2018). chunk: as in draws.

    Points outside [0, 1] are no images: they are clipped. The two sides have keys of their own, for
    one who only sees answers does not choose a defence's randomness.
    """

    def single(key, image):
        direction_key, *keys = jax.random.split(key, 3)
        v = ESTIMATES[distribution](direction_key, image.shape, image.dtype)
        up, down = (
            fn(k, jnp.clip(image + d * v, 0.0, 1.0))
            for k, d in zip(keys, (delta, -delta), strict=True)
        )
        return (up - down) / (2 * delta) * v

    return expectation(single, num_directions, chunk)


def average_logits(logits: jax.Array, average: str) -> jax.Array:
    """Logits of S runs [S, K] -> [K]: their mean ('logits'), or the log of the mean probability
    ('softmax')."""
    if average == "logits":
        return logits.mean(0)
    if average == "softmax":
        log_probabilities = jax.nn.log_softmax(logits)
        return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(logits.shape[0])
    raise ValueError(f"average={average!r} is unknown; known: {', '.join(AVERAGES)}")


@jax.custom_jvp
def straight_through(value: jax.Array, point: jax.Array) -> jax.Array:
    """`value`, bit for bit, with the derivative of `point`."""
    return value


@straight_through.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BPDA:
    """Forward through the purifier, identity backward (Athalye et al. 2018)."""

    purifier: Callable
    nge = 0

    @property
    def nfe(self):
        return self.purifier.nfe

    @property
    def stochastic(self):
        return self.purifier.stochastic

    def __call__(self, key, image):
        return straight_through(jax.lax.stop_gradient(self.purifier(key, image)), image)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blind:
    """No purifier at all: the attacker sees the classifier alone."""

    nfe = 0
    nge = 0
    stochastic = False

    def __call__(self, key, image):
        return image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ApproximateInput:
    """clip(x + offset, 0, 1), the offset being purified(clean) - clean: the attacker purifies the
    clean image once and attacks the classifier around the result (Yoon, Hwang and Lee 2021).

    offset: [H, W, C], of one image: None until it is bound to that image.
    """

    purifier: Callable
    offset: jax.Array | None = None
    # Of a call: the purification is the binding's.
    nfe = 0
    nge = 0
    stochastic = False

    def bind(self, key, clean) -> "ApproximateInput":
        """Around the clean image, purified with `key`."""
        offset = jax.lax.stop_gradient(self.purifier(key, clean) - clean)
        return dataclasses.replace(self, offset=offset)

    def __call__(self, key, image):
        if self.offset is None:
            raise ValueError("gradient='approximate_input' was bound to no clean image; see bind")
        return jnp.clip(image + self.offset, 0.0, 1.0)


def bind(attacked, key, clean):
    """A purifier as it is attacked, bound to the clean image [H, W, C] where it depends on it."""
    return attacked.bind(key, clean) if isinstance(attacked, ApproximateInput) else attacked


def binding_nfe(attacked):
    """Network evaluations that `bind` takes, once for an image."""
    return attacked.purifier.nfe if isinstance(attacked, ApproximateInput) else 0


def _replace(mode: str, purifier, **fields):
    known = {field.name for field in dataclasses.fields(purifier)}
    if missing := set(fields) - known:
        raise ValueError(
            f"gradient={mode!r} does not apply to {type(purifier).__name__}: it has no "
            f"{', '.join(sorted(missing))}"
        )
    return dataclasses.replace(purifier, **fields)


def through_parts(mode: Callable) -> Callable:
    """The mode for purifiers made of others too: it then applies to each of their `parts`."""

    def applied(purifier):
        names = getattr(purifier, "parts", ())
        parts = {name: applied(getattr(purifier, name)) for name in names}
        return dataclasses.replace(purifier, **parts) if parts else mode(purifier)

    return functools.wraps(mode)(applied)


@through_parts
def exact(purifier):
    """All T steps, step size and clip included, by backpropagation through a scan."""
    has_loop = any(field.name == "loop" for field in dataclasses.fields(purifier))
    return dataclasses.replace(purifier, loop="scan") if has_loop else purifier


@through_parts
def exact_detached_step(purifier):
    """As exact, with the step size and the stop decision held constant."""
    return _replace("exact_detached_step", exact(purifier), detach_step=True)


@through_parts
def exact_straight_through(purifier):
    """As exact_detached_step, plus identity through the clip of the initial noise (Croce et al.
    2022). A purifier with no adaptive step has nothing to detach."""
    fields = {field.name for field in dataclasses.fields(purifier)}
    base = exact_detached_step(purifier) if "detach_step" in fields else exact(purifier)
    return _replace("exact_straight_through", base, straight_through_noise=True)


@through_parts
def one_step_unrolling(purifier):
    """Exactly, but through one step only: a purifier of num_steps=1, instead of all T (Yoon, Hwang
    and Lee 2021)."""
    return _replace("one_step_unrolling", exact(purifier), num_steps=1)


GRADIENT_MODES = {
    "exact": exact,
    "exact_detached_step": exact_detached_step,
    "exact_straight_through": exact_straight_through,
    "bpda": BPDA,
    "one_step_unrolling": one_step_unrolling,
    "approximate_input": ApproximateInput,
    "blind": lambda purifier: Blind(),
    "none": lambda purifier: purifier,  # for attacks that see values only
}
# Those that attack another function than the purifier's: a success against it is none yet.
OTHER_FUNCTIONS = ("one_step_unrolling", "approximate_input", "blind", "surrogate")


def attacked_purifier(gradient: str, purifier, surrogate=None):
    """The purifier that the attacker differentiates instead of `purifier`.

    gradient: a name of GRADIENT_MODES, or 'surrogate': exactly through another purifier.
    Raises ValueError for an unknown mode, one that does not apply, or a missing surrogate.
    """
    if gradient == "surrogate":
        if surrogate is None:
            raise ValueError("gradient='surrogate' needs the name of the surrogate purifier")
        return exact(surrogate)
    if gradient not in GRADIENT_MODES:
        known = ", ".join([*GRADIENT_MODES, "surrogate"])
        raise ValueError(f"gradient={gradient!r} is unknown; known: {known}")
    return GRADIENT_MODES[gradient](purifier)

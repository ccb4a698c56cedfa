"""What an evaluation computes of a batch: attacked images, and fresh draws of a defence on them."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from attacks.gradients import average_logits, bind, draws
from attacks.types import Attack, Attacked
from purify.defense import Defense, combine
from purify.types import Array, Key, PyTree

# What an image's attack key is folded with to purify the clean image, for attacks that know the
# result; attacks themselves fold it with numbers below.
CLEAN = 2**16


class Scored(NamedTuple):
    """logits [N, S, K] of all runs, answers [N] of the draws, network evaluations of them all."""

    logits: Array
    answers: Array
    nfe: Array


@functools.partial(jax.jit, static_argnames=("attack", "fixed_key"))
def craft(
    attack: Attack,
    attacked: Defense,
    beside: Mapping[str, PyTree],
    attack_keys: Key,
    defense_keys: Key,
    images: Array,
    labels: Array,
    starts: Array | None,
    *,
    fixed_key: bool,
) -> Attacked:
    """Attack a batch: keys [B], images [B, H, W, C], labels [B] -> Attacked, stacked.

    beside: more callables of the attack, by its keywords, see Row.beside.
    starts: [B, m, H, W, C], points that the attack climbs from as well, of an attack that takes m.
    fixed_key: the attacker knows all S keys of the defence's first draw and attacks that one
    deterministic function; otherwise it never sees the defence's keys.
    """

    def one(key, defense_key, image, label, starts):
        given = {} if starts is None else {"starts": starts}
        purifier = bind(attacked.purifier, jax.random.fold_in(key, CLEAN), image)
        bound = attacked.replace(purifier=purifier)

        def known_draw(_, x):
            runs = bound.runs(jax.random.fold_in(defense_key, 0), x)
            return average_logits(runs, attack.average)

        return attack(key, known_draw if fixed_key else bound.run, image, label, **beside, **given)

    batch = (attack_keys, defense_keys, images, labels, starts)
    return jax.vmap(one, axis_name="batch")(*batch)


@functools.partial(jax.jit, static_argnames="num_draws")
def score(defense: Defense, keys: Key, images: Array, *, num_draws: int) -> Scored:
    """Fresh draws of the defence on a batch: keys [B], images [B, H, W, C] -> Scored, stacked."""

    def one(key, image):
        logits, trace = draws(defense.trace, num_draws)(key, image)
        outputs = jax.vmap(lambda runs: combine(runs, defense.average))(logits)
        return Scored(logits, outputs.argmax(-1), trace.nfe.sum())

    return jax.vmap(one, axis_name="batch")(keys, images)


def check_in_ball(adversarial: np.ndarray, clean: np.ndarray, norm: str, eps: float) -> np.ndarray:
    """Distances [n], checked: in the ball of radius eps and in [0, 1], up to 1e-6.

    Plain NumPy in double precision, sharing no code with the attacks it checks. RuntimeError
    otherwise: such an image would be a defect of the attack.
    """
    difference = (adversarial.astype(np.float64) - clean).reshape(len(clean), -1)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    distance = np.linalg.norm(difference, ord=order, axis=1)
    outside = ~np.isfinite(difference).all(1) | (distance > eps + 1e-6)
    outside |= ((adversarial < -1e-6) | (adversarial > 1 + 1e-6)).reshape(len(clean), -1).any(1)
    if outside.any():
        worst = distance.max()
        raise RuntimeError(f"{outside.sum()} attacked images leave the {norm} ball of {eps} or the "
                           f"box (largest distance {worst}): a defect of the attack")  # fmt: skip
    return distance

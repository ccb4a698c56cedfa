"""Auto-PGD (Croce and Hein, ICML 2020): step sizes that adapt themselves, no one to tune."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp

from attacks.ascent import Ascent, Best, View
from attacks.norms import NORMS, sparse_sign
from attacks.types import Array

# Of Croce and Hein (2020), section 3: the share of the step that momentum leaves to the gradient,
# the share of steps that must have raised the loss, and where in the budget that is looked at.
ALPHA, RHO = 0.75, 0.75
FIRST_PERIOD, SHORTER_BY, SHORTEST_PERIOD = 0.22, 0.03, 0.06
# Of Croce and Hein (2021), "Mind the box", for L1: the share of pixels that the first steps move,
# how often it is looked at, by how much it falls, and the bounds of a step in units of eps.
L1_SHARE, L1_PERIOD, L1_REDUCTION, L1_SHORTEST = 0.2, 0.04, 1.5, 0.1


@dataclasses.dataclass(frozen=True)
class APGD(Ascent):
    """Steps of 2 eps with momentum, halved and begun again from the best iterate wherever the loss
    stopped rising. Under L1 sparse steps, whose sparsity follows that of the best iterate.

    What counts as rising is judged on the ranking draws, common to all iterates.
    """

    def begin(self, start: Array) -> "_State | _StateL1":
        return (_begin_l1 if self.norm == "l1" else _begin)(start, self.eps)

    def step(self, state, view: View, best: Best, t: Array, image: Array) -> "_State | _StateL1":
        advance = self._step_l1 if self.norm == "l1" else self._step
        return advance(state, view, best, t, image)

    def _step(self, state: "_State", view: View, best: Best, t: Array, image: Array) -> "_State":
        norm = NORMS[self.norm]
        ends, lengths = _periods(self.num_steps)
        # The first loss is no rise: there is none before it.
        rises = state.rises + ((view.loss > state.loss) & (t > 0))
        rose_too_rarely = rises < RHO * jnp.asarray(lengths)[t]
        stuck = ~state.halved & (best.loss <= state.best_loss)
        at_end = jnp.asarray(ends)[t]
        halve = at_end & (rose_too_rarely | stuck)
        size = jnp.where(halve, state.size / 2, state.size)
        x = jnp.where(halve, best.x, state.x)
        gradient = jnp.where(halve, best.gradient, view.gradient)
        ahead = norm.project(x + size * norm.steepest(gradient), image, self.eps)
        weight = jnp.where(t == 0, 1.0, ALPHA).astype(x.dtype)
        mixed = x + weight * (ahead - x) + (1 - weight) * (x - state.before)
        return _State(
            norm.project(mixed, image, self.eps),
            before=x,
            loss=jnp.where(halve, best.loss, view.loss),
            rises=jnp.where(at_end, 0, rises),
            size=size,
            halved=jnp.where(at_end, halve, state.halved),
            best_loss=jnp.where(at_end, best.loss, state.best_loss),
        )

    def _step_l1(
        self, state: "_StateL1", view: View, best: Best, t: Array, image: Array
    ) -> "_StateL1":
        period = max(int(L1_PERIOD * self.num_steps), 1)
        at_end = (t > 0) & (t % period == 0)
        # Pixels that the box has stopped stay changed: with them the count would hardly ever fall.
        inside = (best.x > 0) & (best.x < 1)
        moved = jnp.sum((best.x != image) & inside).astype(image.dtype)
        fewer = moved < 0.95 * state.moved
        renewed = jnp.where(fewer, self.eps, state.size / L1_REDUCTION)
        renewed = jnp.clip(renewed, L1_SHORTEST * self.eps, self.eps)
        size = jnp.where(at_end, renewed, state.size)
        share = jnp.where(at_end, moved / image.size / L1_REDUCTION, state.share)
        again = at_end & fewer
        x = jnp.where(again, best.x, state.x)
        gradient = jnp.where(again, best.gradient, view.gradient)
        stuck = jnp.where(gradient > 0, x >= 1, x <= 0)
        ahead = x + size * sparse_sign(gradient, share, stuck)
        x = NORMS["l1"].project(ahead, image, self.eps)
        return _StateL1(x, size, share, jnp.where(at_end, moved, state.moved))


class _State(NamedTuple):
    x: Array
    before: Array  # the iterate before x
    loss: Array  # at that one
    rises: Array  # times that the loss rose in this period
    size: Array
    # At the end of the last period: whether the step was halved, and the best loss.
    halved: Array
    best_loss: Array


class _StateL1(NamedTuple):
    x: Array
    size: Array
    share: Array  # of the pixels, that a step moves
    moved: Array  # pixels, by the best iterate when it was last looked at


def _begin(x: Array, eps: float) -> _State:
    nothing = jnp.full((), -jnp.inf, x.dtype)
    size = jnp.full((), 2 * eps, x.dtype)
    # Two equal step sizes in a row are needed before a best loss that stays is a reason to halve.
    return _State(x, x, nothing, jnp.array(0), size, jnp.array(True), nothing)


def _begin_l1(x: Array, eps: float) -> _StateL1:
    size, share, moved = (jnp.full((), value, x.dtype) for value in (eps, L1_SHARE, x.size))
    return _StateL1(x, size, share, moved)


def _periods(num_steps: int) -> tuple[list[bool], list[int]]:
    """At each step: whether a period ends there, and its length (section 3 of the 2020 paper)."""
    marks, length = [0.0, FIRST_PERIOD], FIRST_PERIOD
    while marks[-1] < 1:
        length = max(length - SHORTER_BY, SHORTEST_PERIOD)
        marks.append(marks[-1] + length)
    steps = [math.ceil(num_steps * mark - 1e-9) for mark in marks]  # sums of decimals round up
    ends, lengths = [False] * num_steps, [1] * num_steps
    for before, end in itertools.pairwise(steps):
        if before < end < num_steps:
            ends[end], lengths[end] = True, end - before
    return ends, lengths

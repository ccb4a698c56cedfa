"""Fast Adaptive Boundary attack, targeted (Croce and Hein, ICML 2020): the nearest boundary."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks.gradients import average_logits
from attacks.losses import likeliest_wrong
from attacks.norms import NORMS
from attacks.objective import NearestWrong
from attacks.types import Array, LogitsFn, Nearest

# Section 3 of the paper: the largest share of the step that goes back to the clean image, how far
# beyond a linearised boundary steps go, and how far back from an image that is wrong already.
ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
HALVINGS = 3  # of the last segment, between the clean and the nearest wrong image


@dataclasses.dataclass(frozen=True)
class FAB(NearestWrong):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    Looks for the nearest image that is wrong: towards each of the likeliest wrong classes it goes
    to the boundary of the linearised logits, drawn back to the clean image, and nearer whenever
    it is beyond. See NearestWrong for what is offered of what was found, and Expected for the ball
    and the choice at the end, for which alone there is a loss (the margin).

    num_steps, restarts: of each class; the first starts from the clean image, others at random in
        the ball of half the radius.
    targets: how many classes are aimed at.
    eot_samples: runs whose averaged logits (see average) are linearised, and as many fresh ones
        whose averaged logits say whether an image is wrong.
    """

    loss: str = "margin"
    num_steps: int = 100
    targets: int = 9
    restarts: int = 1

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps", "targets", "restarts")

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        runs = f"{self.targets} targets x {self.restarts} x {self.num_steps} steps"
        return f"{runs}, EOT {self.eot_samples}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return self.num_searches * self.num_steps * self.eot_samples

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""
        answers = self.num_searches * (self.num_steps + HALVINGS) + 1
        return answers * self.eot_samples + self.choice_queries(self.num_candidates)

    @property
    def num_searches(self) -> int:
        return self.targets * self.restarts

    def search(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image that each run found, stacked."""
        class_key, runs_key = jax.random.split(key)
        look = self._look(logits_fn, image, label)
        logits, interim = look(class_key, image)
        classes = likeliest_wrong(logits, label, self.targets)
        begun = Nearest.none(image)._replace(interim=interim)

        def run(index):
            own = jax.random.fold_in(runs_key, index)
            target, first = classes[index % self.targets], index < self.targets
            return self._towards(target, own, look, image, label, begun, first)

        return jax.lax.map(run, jnp.arange(self.num_searches))

    def _look(self, logits_fn: LogitsFn, image: Array, label: Array) -> Callable:
        """(key, x) -> averaged logits [K]; whether x is in the ball and a run there was wrong."""
        runs_fn, norm = self.runs(logits_fn), NORMS[self.norm]

        def look(key, x):
            runs = runs_fn(key, x)
            inside = norm.size(x - image) <= self.eps
            return average_logits(runs.logits, self.average), inside & runs.any_wrong(label)

        return look

    def _towards(
        self,
        target: Array,
        key: Array,
        look: Callable,
        image: Array,
        label: Array,
        nearest: Nearest,
        from_clean: Array,
    ) -> Nearest:
        """The nearest wrong image that the search towards one class found; nearest: of before."""
        norm = NORMS[self.norm]
        start_key, steps_key, halvings_key = jax.random.split(key, 3)

        def gap(x, key):
            logits, interim = look(key, x)
            return logits[label] - logits[target], interim  # positive on the label's side

        def answer(key, x):
            logits, interim = look(key, x)
            return jnp.argmax(logits) != label, interim

        def step(carry, t):
            x, nearest = carry
            gap_key, answer_key = jax.random.split(jax.random.fold_in(steps_key, t))
            (value, before), gradient = jax.value_and_grad(gap, has_aux=True)(x, gap_key)
            here = reach(self.norm, x, -gradient, value)
            there = reach(self.norm, image, -gradient, value + jnp.sum(gradient * (image - x)))
            near, far = norm.size(here), norm.size(there)
            alpha = jnp.minimum(near / jnp.maximum(near + far, 1e-12), ALPHA_MAX)
            x = (1 - alpha) * (x + ETA * here) + alpha * (image + ETA * there)
            x = jnp.clip(x, 0.0, 1.0)
            wrong, after = answer(answer_key, x)
            distance = norm.size(x - image)
            nearest = nearest.note(x, distance, wrong=wrong, interim=before | after)
            x = jnp.where(wrong, image + BETA * (x - image), x)
            return (x, nearest), None

        x = jnp.where(from_clean, image, norm.random(start_key, image, self.eps / 2))
        (x, nearest), _ = jax.lax.scan(step, (x, nearest), jnp.arange(self.num_steps))
        nearest = nearest.ended(x)

        def halve(bounds, t):
            right, wrong, interim = bounds
            middle = 0.5 * (right + wrong)
            beyond, seen = answer(jax.random.fold_in(halvings_key, t), middle)
            right, wrong = jnp.where(beyond, right, middle), jnp.where(beyond, middle, wrong)
            return (right, wrong, interim | seen), None

        bounds = (image, nearest.image, nearest.interim)
        (_, found, interim), _ = jax.lax.scan(halve, bounds, jnp.arange(HALVINGS))
        distance = norm.size(found - image)
        distance = jnp.where(jnp.isinf(nearest.distance), nearest.distance, distance)
        return Nearest(found, distance, interim, nearest.last)


def reach(norm: str, x: Array, weights: Array, gain: Array) -> Array:
    """The shortest difference d [H, W, C] with <weights, d> = gain and x + d in [0, 1], x and
    weights [H, W, C]; where the box allows no such gain, the one of largest gain. A negative gain
    goes the other way.

    Every pixel moves along its weight, under Linf all at one speed and under L2 at that of their
    weights, until it meets the box; under L1 one after the other, the heaviest first (section 3.1
    of the paper). So the gain is piecewise linear, and its breakpoints are sorted.
    """
    flat = jnp.sign(gain) * weights.ravel()
    magnitudes, gain = jnp.abs(flat), jnp.abs(gain)
    room = jnp.where(flat > 0, 1.0 - x.ravel(), x.ravel())
    if norm == "l1":
        order = jnp.argsort(-magnitudes)
        full = jnp.cumsum((magnitudes * room)[order])
        before = full - (magnitudes * room)[order]
        part = (gain - before) / jnp.maximum(magnitudes[order], 1e-30)
        moved = jnp.zeros_like(room).at[order].set(jnp.clip(part, 0.0, room[order]))
    else:
        speed = jnp.ones_like(magnitudes) if norm == "linf" else magnitudes
        times = jnp.where(magnitudes > 0, room / jnp.maximum(speed, 1e-30), 0.0)
        order = jnp.argsort(times)
        stopped = jnp.cumsum((magnitudes * room)[order])
        speeds = (magnitudes * speed)[order]
        moving = jnp.sum(speeds) - jnp.cumsum(speeds)
        gains = stopped + times[order] * moving  # when each one meets the box
        last = jnp.argmax(gains >= gain)  # the first that need not go all the way
        stopped_before = stopped[last] - (magnitudes * room)[order][last]
        time = (gain - stopped_before) / jnp.maximum(moving[last] + speeds[last], 1e-30)
        time = jnp.where(gains[-1] >= gain, time, jnp.inf)
        moved = jnp.where(magnitudes > 0, jnp.minimum(time * speed, room), 0.0)
    return (jnp.sign(flat) * moved).reshape(x.shape)

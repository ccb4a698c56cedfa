"""Fast minimum-norm attack (Pintor et al., NeurIPS 2021): the nearest boundary."""

import dataclasses

import jax
import jax.numpy as jnp

from attacks.fab import reach
from attacks.gradients import average_logits
from attacks.losses import margin, others
from attacks.norms import NORMS
from attacks.objective import NearestWrong, one_search
from attacks.types import Array, LogitsFn, Nearest

# Of the first and the last step, in between by a cosine: how long it is (L2), and the share by
# which the radius changes.
LENGTHS, SHARES = (1.0, 0.01), (0.05, 0.001)
REACH = 2.0  # of the radius before anything is wrong, in units of the linear model's


@dataclasses.dataclass(frozen=True)
class FMN(NearestWrong):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    Climbs the log odds of a wrong answer in a ball whose radius is found on the way: REACH times as
    large as where their linear model meets the boundary in the box, until an answer is wrong; then
    a little smaller after each wrong answer and a little larger after each right one. The odds have
    the direction of the cross-entropy's gradient, which its forerunner DDN climbs (Rony et al.,
    CVPR 2019), and do not saturate. The paper climbs the margin, from where its own linear model is
    0 without the box: on digits that led to images 2 to 3 % further away, and where the box binds
    to none. See NearestWrong for what is offered of what was found, and Expected for the ball and
    the choice at the end, for which alone the loss (the margin) is measured.

    num_steps: each with one gradient of the averaged logits' odds (see average) over eot_samples
        runs, which also say whether the image is wrong.
    """

    loss: str = "margin"
    num_steps: int = 100

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps")

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        return f"{self.num_steps} steps, EOT {self.eot_samples}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return self.num_steps * self.eot_samples

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not."""
        return self.choice_queries(self.num_candidates)

    def search(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image found, in any ball; where none was, the last one looked at."""
        runs_fn, norm = self.runs(logits_fn), NORMS[self.norm]

        def climbed(x, key):
            runs = runs_fn(key, x)
            logits = average_logits(runs.logits, self.average)
            odds = jax.nn.logsumexp(others(logits, label)) - logits[label]
            return odds, (margin(logits, label), runs.any_wrong(label))

        def step(carry, t):
            x, radius, nearest = carry
            step_key = jax.random.fold_in(key, t)
            gradient, (ahead, any_wrong) = jax.grad(climbed, has_aux=True)(x, step_key)
            wrong, distance = ahead > 0, norm.size(x - image)
            interim = any_wrong & (distance <= self.eps)
            nearest = nearest.note(x, distance, wrong=wrong, interim=interim)
            length, share = (
                last + 0.5 * (first - last) * (1 + jnp.cos(jnp.pi * t / self.num_steps))
                for first, last in (LENGTHS, SHARES)
            )
            at_image = ahead + jnp.sum(gradient * (image - x))  # by the linear model
            boundary = REACH * norm.size(reach(self.norm, image, gradient, -at_image))
            larger = jnp.where(jnp.isinf(nearest.distance), boundary, radius * (1 + share))
            radius = jnp.where(wrong, jnp.minimum(radius * (1 - share), nearest.distance), larger)
            x = norm.project(x + length * NORMS["l2"].steepest(gradient), image, radius)
            return (x, radius, nearest), None

        start = (image, jnp.full((), jnp.inf, image.dtype), Nearest.none(image))
        (x, _, nearest), _ = jax.lax.scan(step, start, jnp.arange(self.num_steps))
        return one_search(nearest.ended(x))

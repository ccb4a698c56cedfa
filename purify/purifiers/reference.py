"""ADP as its authors published it (github.com/jmyoon1/adp), quirks included, to reproduce their
numbers; `purify.purifiers.adp` is the method without them.

What differs: pixels are moved once onto the network's grid, x -> 255/256 x + 1/512, and back after
EVERY step, also where an image has stopped, so that contrast grows by 256/255 a step; a curvature
that is not positive stops the image instead of taking the longest step; and the loop ends when the
last image of the batch has stopped, so that an image depends on its neighbours. Left out: its
variants that average logits, probabilities or votes over all steps; the numbers it reports are of
the last one. It loads raw weights, not their moving average: what a file holds decides that here.
"""

import flax.struct
import jax
import jax.numpy as jnp

from purify.models.networks import Score
from purify.purifiers.adp import LOOPS, check_constants
from purify.purifiers.noise import add_noise
from purify.types import Array, Image, Key, Trace, static


@flax.struct.dataclass
class ReferenceADP:
    """`purifier(key, image) -> image` for one image of a batch: the vmap's axis named axis_name,
    or the image alone where that is None.

    sigma, lam, tau, alpha_min, alpha_max, delta, num_steps: as in ADP. The curvature is a finite
        difference.
    loop: 'scan' runs all T steps and can be differentiated in reverse, 'while' ends with the last
        image of the batch that is still moving. Same image.
    """

    score: Score
    sigma: float = static(0.25)
    lam: float = static(0.05)
    tau: float = static(1e-3)
    alpha_min: float = static(1e-5)
    alpha_max: float = static(0.1)
    delta: float = static(1e-3)
    num_steps: int = static(10)
    loop: str = static("while")
    detach_step: bool = static(False)
    straight_through_noise: bool = static(False)
    axis_name: str | None = static("batch")

    def __post_init__(self):
        check_constants(self)
        if self.loop not in LOOPS:
            raise ValueError(f"loop={self.loop!r} is unknown; known: {', '.join(LOOPS)}")

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    @property
    def nfe(self) -> int:
        return 2 * self.num_steps * self.score.nfe

    @property
    def nge(self) -> int:
        return self.nfe // 2 if self.detach_step else self.nfe

    def __call__(self, key: Key, image: Image) -> Image:
        return self.trace(key, image)[0]

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        x = add_noise(key, image, self.sigma, straight_through=self.straight_through_noise)
        x = 255 / 256 * x + 1 / 512
        info = jnp.zeros((2, self.num_steps), x.dtype)
        # (step, image, still moving, the batch is still moving, step sizes and norms)
        carry = (0, x, jnp.array(True), jnp.array(True), info)
        if self.loop == "scan":
            body = jax.checkpoint(lambda carry, _: (self._step(carry), None))
            carry, _ = jax.lax.scan(body, carry, None, length=self.num_steps)
        else:
            carry = jax.lax.while_loop(
                lambda carry: (carry[0] < self.num_steps) & carry[3], self._step, carry
            )
        _, x, _, _, (alphas, norms) = carry
        steps, evaluated = jnp.sum(alphas > 0), jnp.sum(norms > 0)
        return x, Trace(steps, alphas, norms, 2 * evaluated * self.score.nfe)

    def _step(self, carry):
        t, x, moving, batch_moving, info = carry
        with jax.default_matmul_precision("highest"):  # as purify.purifiers.adp's differences
            h = self.score(x)
            ratio = jnp.sum(h * self.score(x + self.delta * h)) / jnp.sum(h**2)
        change = 1 - ratio
        # No change: the longest step, as of 1 / 0, but chosen apart so that its gradient is finite.
        flat = change == 0
        alpha = jnp.clip(
            self.lam * self.delta / jnp.where(flat, 1.0, change), self.alpha_min, self.alpha_max
        )
        alpha = jnp.where(flat, self.alpha_max, alpha)
        if self.detach_step:
            alpha = jax.lax.stop_gradient(alpha)
        moving_on = moving & (alpha > self.tau)
        batch_moving_on = batch_moving & self._any_of_batch(moving_on)
        stepped = x + jnp.where(moving_on, alpha, 0.0) * h
        stretched = jnp.clip(256 / 255 * (stepped - 1 / 512), 0.0, 1.0)
        norm = jnp.sqrt(jnp.mean(h**2))
        shown = jnp.stack([jnp.where(moving_on, alpha, 0.0), norm]) * batch_moving
        info = info.at[:, t].set(jax.lax.stop_gradient(shown))
        x = jnp.where(batch_moving_on, stretched, x)
        return t + 1, x, moving_on, batch_moving_on, info

    def _any_of_batch(self, moving: Array) -> Array:
        if self.axis_name is None:
            return moving
        return jax.lax.pmax(moving.astype(jnp.int32), self.axis_name) > 0

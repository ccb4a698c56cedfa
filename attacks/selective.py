"""Which draws of a randomised defence an attack spends itself on, after DiffHammer (Wang et al.,
NeurIPS 2024): in the mean of all, draws that cannot be fooled outvote those that can."""

import jax
import jax.numpy as jnp

from attacks.norms import NORMS

Array = jax.Array


def selected(
    values: Array,
    gradients: Array,
    x: Array,
    image: Array,
    *,
    norm: str,
    eps: float,
    lam: float = 1.0,
    num_steps: int = 3,
) -> Array:
    """The mean [H, W, C] of the draws' gradients, weighted by whether they can be fooled together.

    values [k], gradients [k, H, W, C]: of each draw at x, what is maximised, positive exactly where
        it is fooled, and its gradient. image: the centre of the ball of norm and eps.
    lam: how sharply a weight tells apart what is fooled and what is not, per unit of the values.
    num_steps: rounds of expectation maximisation, from equal weights on.

    In each round the attack is taken to end at image + eps steepest(the weighted mean gradient),
    cut off at the box, and a draw's weight is sigmoid(lam (value + <gradient, end - x>)), by its
    linear model there: the ball bounds the attack wherever x is, and of linear draws the prediction
    is exact. Weights are scaled to sum to 1, in logarithms, so that they keep their ratios where no
    draw can be fooled and all of them underflow. The paper's attack has more to it, such as its way
    of taking gradients; this is the selection alone.
    """
    ball = NORMS[norm]

    def mean_gradient(weights):
        return jnp.tensordot(weights, gradients, axes=1)

    def round_(_, weights):
        end = ball.project(image + eps * ball.steepest(mean_gradient(weights)), image, eps)
        gains = jnp.tensordot(gradients, end - x, axes=x.ndim)
        return jax.nn.softmax(jax.nn.log_sigmoid(lam * (values + gains)))

    equal = jnp.full_like(values, 1.0 / values.size)
    return mean_gradient(jax.lax.fori_loop(0, num_steps, round_, equal))

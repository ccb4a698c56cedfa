"""Adaptive denoising purification (Yoon, Hwang and Lee, ICML 2021), in its clean form.

    x_0     = clip(x + sigma n, 0, 1),  n ~ N(0, I)
    x_{t+1} = clip(x_t + alpha_t h(x_t), 0, 1)
    alpha_t = clip(lam / c_t, alpha_min, alpha_max),  c_t = -<h, J h> / ||h||^2

lam / c is lam times the exact minimiser of the quadratic model along h: a damped Newton step whose
curvature is a Rayleigh quotient of J, the Jacobian of h. An image stops for good at the first
alpha_t <= tau, without taking that step.
"""

import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from purify.models.networks import Score
from purify.purifiers.noise import add_noise
from purify.types import Array, Image, Key, Trace, static

CURVATURES = ("finite_difference", "jvp", "secant")
LOOPS = ("while", "scan")
# Steps between two states that the backward pass keeps; longer chains cost one more forward pass.
SEGMENT = 10
# What a run's key is folded with for the coin between two noise levels; the noise has the key.
COIN = 1


class _State(NamedTuple):
    x: Image
    # The secant's memory: where h was last known, its value, and whether x has moved since.
    x_known: Image
    h_known: Image
    moved: Array
    active: Array


@flax.struct.dataclass
class ADP:
    """`purifier(key, image) -> image`; every image has its own step sizes and its own stop.

    sigma: standard deviation of the injected noise, in pixel units of [0, 1].
    second_sigma: that of every other run, each by the flip of a coin of its own, so that the S runs
        of a defence mix two noise levels; None for none. (The published code has an even share of
        them at each level: the same expectation.)
    lam, tau, alpha_min, alpha_max, num_steps: as in the module's docstring; num_steps is T.
    curvature: 'jvp' (exact; an evaluation and a tangent), 'finite_difference' (the paper's: two
        evaluations a step, difference delta; jvp is its limit delta -> 0 without the cancellation,
        which in float32 costs digits at delta = 1e-3 and in TF32 or bfloat16 leaves none) or
        'secant' (from the last displacement, Barzilai and Borwein; one evaluation a step, one more
        at the start).
    loop: 'while' leaves as soon as every image of a batch has stopped; 'scan' runs all T steps and
        can be differentiated in reverse, in memory that hardly grows with T. Same image.
    detach_step, straight_through_noise: see attacks.gradients; they change derivatives only.
    """

    score: Score
    sigma: float = static(0.25)
    lam: float = static(0.05)
    tau: float = static(1e-3)
    alpha_min: float = static(1e-5)
    alpha_max: float = static(0.1)
    delta: float = static(1e-3)
    num_steps: int = static(10)
    curvature: str = static("jvp")
    loop: str = static("while")
    checkpoint: bool = static(True)
    detach_step: bool = static(False)
    straight_through_noise: bool = static(False)
    second_sigma: float | None = static(None)

    def __post_init__(self):
        if self.curvature not in CURVATURES:
            raise ValueError(
                f"curvature={self.curvature!r} is unknown; known: {', '.join(CURVATURES)}"
            )
        if self.loop not in LOOPS:
            raise ValueError(f"loop={self.loop!r} is unknown; known: {', '.join(LOOPS)}")
        check_constants(self)
        if not all(0 <= sigma < math.inf for sigma in self._sigmas):
            raise ValueError(f"second_sigma={self.second_sigma} must be at least 0 and finite")

    @property
    def stochastic(self) -> bool:
        return max(self._sigmas) > 0

    @property
    def _sigmas(self) -> tuple[float, ...]:
        return (self.sigma,) if self.second_sigma is None else (self.sigma, self.second_sigma)

    @property
    def _evaluations(self) -> tuple[int, int]:
        """Calls of the score model before the first step, and per step."""
        return (1, 1) if self.curvature == "secant" else (0, 2)

    @property
    def nfe(self) -> int:
        first, per_step = self._evaluations
        return (first + per_step * self.num_steps) * self.score.nfe

    @property
    def nge(self) -> int:
        if self.detach_step and self.curvature != "secant":
            return self.num_steps * self.score.nfe  # the curvature's evaluation is constant
        return self.nfe

    def __call__(self, key: Key, image: Image) -> Image:
        return self.trace(key, image)[0]

    def noised(self, key: Key, image: Image) -> Image:
        """x_0 of the run with this key."""
        sigma: float | Array = self.sigma
        if self.second_sigma is not None:
            coin = jax.random.bernoulli(jax.random.fold_in(key, COIN))
            sigma = jnp.where(coin, self.second_sigma, self.sigma)
        return add_noise(key, image, sigma, straight_through=self.straight_through_noise)

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        """The purified image, and what was done to it."""
        run = self._scan if self.loop == "scan" else self._while
        x, *info = run(self._start(key, image))
        return x, self._told(*info)

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """As purify.types.Stepwise says; after its stop an image is repeated."""
        state = self._start(key, image)

        def body(state, _):
            after, info = self._advance(state)
            return after, (after.x, *info)

        _, (xs, *info) = jax.lax.scan(body, state, None, length=self.num_steps)
        return jnp.concatenate([state.x[None], xs]), self._told(*info)

    def _start(self, key: Key, image: Image) -> _State:
        x = self.noised(key, image)
        h = self.score(x) if self.curvature == "secant" else jnp.zeros_like(x)
        return _State(x, x, h, moved=jnp.array(False), active=jnp.array(True))

    def _told(self, evaluated: Array, alphas: Array, norms: Array) -> Trace:
        first, per_step = self._evaluations
        return Trace(
            steps=jnp.sum(evaluated & (alphas > self.tau)),
            step_sizes=alphas,
            score_norms=norms,
            nfe=(first + per_step * jnp.sum(evaluated)) * self.score.nfe,
        )

    def _advance(self, state: _State) -> tuple[_State, tuple[Array, Array, Array]]:
        """`_step` of an image that may have stopped, and (whether it had not, alpha, rms of h)."""
        after, info = self._step(state)
        alpha, norm = (jnp.where(state.active, a, 0.0) for a in info)
        # A stopped image is carried unchanged, so that it stays stopped.
        after = jax.tree.map(lambda new, old: jnp.where(state.active, new, old), after, state)
        return after, (state.active, alpha, norm)

    def _scan(self, state: _State):
        def body(state, _):
            return self._advance(state)

        def steps(state, length):
            step = jax.checkpoint(body) if self.checkpoint else body
            return jax.lax.scan(step, state, None, length=length)

        if self.num_steps <= SEGMENT or not self.checkpoint:
            state, info = steps(state, self.num_steps)
            return state.x, *info
        # The states between segments are kept, and in the backward pass those of one segment.
        segments, rest = divmod(self.num_steps, SEGMENT)
        segment = jax.checkpoint(lambda state, _: steps(state, SEGMENT))
        state, info = jax.lax.scan(segment, state, None, length=segments)
        state, last = steps(state, rest)
        return state.x, *(jnp.append(a, b) for a, b in zip(info, last, strict=True))

    def _while(self, state: _State):
        def body(carry):
            t, state, info = carry
            after, (alpha, norm) = self._step(state)
            step = (jnp.array(True), alpha, norm)
            # Not .at[t].set, behind vmap a scatter: that takes longer to trace and to compile.
            now = jnp.arange(self.num_steps) == t
            info = tuple(jnp.where(now, v, a) for a, v in zip(info, step, strict=True))
            return t + 1, after, info

        info = (
            jnp.zeros(self.num_steps, bool),
            *(jnp.zeros(self.num_steps, state.x.dtype) for _ in range(2)),
        )
        _, state, info = jax.lax.while_loop(
            lambda carry: (carry[0] < self.num_steps) & carry[1].active, body, (0, state, info)
        )
        return state.x, *info

    def _step(self, state: _State) -> tuple[_State, tuple[Array, Array]]:
        """One step of an active image: the new state, and (alpha, rms of h)."""
        x = state.x
        h, curvature = self._measure(state)
        # Curvature <= 0 is "flat": the longest step. Bounding the denominator first keeps the
        # division finite and the step size continuous.
        alpha = self.lam / jnp.maximum(curvature, self.lam / self.alpha_max)
        alpha = jnp.maximum(alpha, self.alpha_min)
        if self.detach_step:
            alpha = jax.lax.stop_gradient(alpha)
        active = alpha > self.tau
        moved_to = jnp.where(active, jnp.clip(x + alpha * h, 0.0, 1.0), x)
        after = _State(moved_to, x, h, moved=jnp.any(moved_to != x), active=active)
        info = (alpha, jnp.sqrt(jnp.mean(h**2)))
        return after, jax.lax.stop_gradient(info)

    def _measure(self, state: _State) -> tuple[Image, Array]:
        """h(x) and the curvature -<h, J h> / ||h||^2 along it."""
        if self.curvature == "jvp":
            h, push_forward = jax.linearize(self.score, state.x)
            return h, _rayleigh(h, -push_forward(h))
        # By default GPUs and TPUs multiply with 8 to 11 bits: a small difference would drown.
        with jax.default_matmul_precision("highest"):
            return self._measure_by_difference(state)

    def _measure_by_difference(self, state: _State) -> tuple[Image, Array]:
        if self.curvature == "finite_difference":
            h = self.score(state.x)
            return h, _rayleigh(h, h - self.score(state.x + self.delta * h)) / self.delta
        # Secant: one evaluation, at x where x has moved since h was last known, else (at the start,
        # or where every pixel was clipped) a small way along h: a finite difference.
        displacement = jnp.where(state.moved, state.x - state.x_known, self.delta * state.h_known)
        h_there = self.score(state.x_known + displacement)
        h = jnp.where(state.moved, h_there, state.h_known)
        return h, _rayleigh(displacement, state.h_known - h_there)


def check_constants(purifier: Any) -> None:
    """ValueError that names the constant, of those that ADP shares with its published form, which
    is out of range."""
    sigma, lam, delta = purifier.sigma, purifier.lam, purifier.delta
    low, high = purifier.alpha_min, purifier.alpha_max
    for field, good, allowed in (
        ("num_steps", purifier.num_steps >= 1, "at least 1"),
        ("sigma", 0 <= sigma < math.inf, "at least 0 and finite"),
        ("lam", 0 < lam < math.inf, "positive and finite"),
        ("delta", 0 < delta < math.inf, "positive and finite"),
        ("alpha_max", 0 < high < math.inf, "positive and finite"),
        ("alpha_min", 0 < low <= high, f"positive and at most alpha_max={high}"),
        ("tau", math.isfinite(purifier.tau), "finite; negative, no image stops"),
    ):
        if not good:
            raise ValueError(f"{field}={getattr(purifier, field)} must be {allowed}")


def _rayleigh(direction: Array, change: Array) -> Array:
    """<direction, change> / ||direction||^2, and 0 for the zero direction."""
    squared = jnp.sum(direction**2)
    return jnp.sum(direction * change) / jnp.where(squared > 0, squared, 1.0)

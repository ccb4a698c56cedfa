"""The expected loss: penalties, by closed forms, and what the search saw on its way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import ATTACKS
from attacks.ascent import EOTS
from attacks.gradients import draws
from attacks.norms import NORMS
from attacks.objective import NearestWrong, one_search
from attacks.pgd import PGD
from attacks.types import Nearest
from tests.test_ascent import (
    EPS,
    NORMS_OF,
    Recorder,
    compiled_alone,
    distances,
    inputs,
    noisy,
    quick,
    run_keys,
)
from tests.test_attack_contracts import selection_key, small

# Penalties


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("eot", EOTS)
def test_a_penalty_moves_the_optimum_of_a_linear_classifier(name, eot):
    """Of margin w x - v x, the difference of two linear functions, it is at the corner of the ball
    that w - v points to. A draw's noise is in its margin and in its penalty, and cancels: they are
    of the same run, in gradients, in ranking and in what is returned."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 6)).astype(np.float32)
    assert (np.sign(w) != np.sign(w - v)).any()
    image, eps = jnp.asarray(rng.uniform(0.3, 0.7, (2, 3, 1)), jnp.float32), 0.1

    def noise(key):
        return 10 * jax.random.normal(key)

    def logits_fn(key, x):  # of label 1
        return jnp.stack([w @ x.ravel() + noise(key), jnp.float32(0)])

    def penalty_fn(key, x):
        return v @ x.ravel() + noise(key)

    attack = attacks.build(name, eps=eps, num_steps=12, loss="margin", eot=eot, eot_samples=3,
                           **({"step_size": eps / 2} if name == "pgd" else {}))  # fmt: skip
    plain, penalised = (
        quick(lambda key, p=p: attack(key, logits_fn, image, 1, penalty_fn=p))(jax.random.key(0))
        for p in (None, penalty_fn)
    )
    corner = np.ravel(image) + eps * np.sign(w - v)
    np.testing.assert_allclose(np.ravel(penalised.image), corner, atol=1e-6)
    assert penalised.loss == pytest.approx(float((w - v) @ corner), abs=1e-4)
    assert penalised.start_loss == pytest.approx(float((w - v) @ np.ravel(image)), abs=1e-4)
    np.testing.assert_allclose(np.ravel(plain.image), np.ravel(image) + eps * np.sign(w), atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_behind_a_detector_the_image_that_fools_and_passes_most_often_is_chosen(name):
    """Pixel 0 is the margin, pixel 1 the chance that the detector lets the image pass."""
    image = jnp.zeros((1, 2, 1))
    pixels = [(0.9, 0.0), (0.6, 0.5), (0.2, 1.0), (0.3, 1.0), (-0.5, 1.0)]
    candidates = jnp.array(pixels)[:, None, :, None]

    def logits_fn(key, x):  # of label 1
        return jnp.stack([x[0, 0, 0], jnp.float32(0)])

    def passes_fn(key, x):
        return jax.random.uniform(key) < x[0, 1, 0]

    attack = small(name, loss="margin", selection_draws=32)

    def chosen(candidates, **detector):
        args = jax.random.key(0), logits_fn, image, 1, candidates
        found = attack.choose(*args, interim=jnp.array(False), **detector)
        return float(found.image[0, 0, 0]), float(found.loss)

    assert chosen(candidates) == pytest.approx((0.9, 0.9))
    # Of two that always pass, that of higher loss; what does so at times before what never does.
    assert chosen(candidates, passes_fn=passes_fn) == pytest.approx((0.3, 0.3))
    assert chosen(candidates[:2], passes_fn=passes_fn) == pytest.approx((0.6, 0.6))
    # Where nothing evades it, the loss decides, and the clean image is one of them.
    assert chosen(candidates[:1], passes_fn=passes_fn) == pytest.approx((0.9, 0.9))
    assert chosen(candidates[4:], passes_fn=passes_fn) == pytest.approx((0.0, 0.0))
    assert chosen(jnp.full_like(candidates, jnp.nan), passes_fn=passes_fn)[0] != 0.0  # it is seen


@pytest.mark.parametrize(("num_draws", "seldom"), [(1, 0.0), (32, 0.5)])
def test_no_loss_outweighs_one_evasion_more(num_draws, seldom):
    """The largest loss there is, which passes never or in 31 of 32 draws, against the smallest that
    fools and always passes."""
    attack, key = small("pgd", loss="margin", selection_draws=num_draws), jax.random.key(0)
    least = min(int(jax.random.key_data(k)[0]) for k in run_keys(key, num_draws))

    def logits_fn(key, x):  # of label 1
        return jnp.stack([x[0, 0, 0], jnp.float32(0)])

    def passes_fn(key, x):
        but_once = jax.random.key_data(key)[0] > least
        return (x[0, 1, 0] == 1.0) | ((x[0, 1, 0] == 0.5) & but_once)

    @quick
    def choose(candidates):
        args, seen = (key, logits_fn, jnp.zeros((1, 2, 1)), 1, candidates), jnp.array(False)
        return attack.choose(*args, interim=seen, passes_fn=passes_fn)

    found = choose(jnp.array([(50.0, seldom), (0.01, 1.0)])[:, None, :, None])
    assert float(found.loss) == pytest.approx(0.01)


# Interim success


def searched(attack, recorder, base) -> list:
    """(image, logits) of all runs but those that choose at the end, by draws of the key base."""
    choosing = [jax.random.fold_in(k, 0) for k in run_keys(base, attack.selection_draws)]
    apart = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in choosing}
    assert apart <= recorder.runs.keys()
    return [run for k, runs in recorder.runs.items() if k not in apart for run in runs]


@pytest.mark.parametrize("name", ATTACKS)
def test_interim_success_is_one_wrong_answer_of_the_search_inside_the_ball(name):
    """Of a deterministic classifier: that some point it saw there was wrong. Of a random one: that
    one of the runs at some point was. Elsewhere answers do not count."""
    norm = [*NORMS_OF[name]][-1]
    keys, images, _ = inputs(4)
    images = 0.4 + 0.2 * images  # no pixel meets the box
    chosen_by = functools.partial(selection_key, small(name, norm=norm), logits_fn=noisy(), label=0)
    chosen_by, outcomes = quick(chosen_by), []
    for i, (scale, sigma) in enumerate([(0.01, 0.0), (10.0, 0.0), (0.2, 0.2), (0.2, 0.4)]):
        label = int(noisy(sigma=0.0)(keys[i], images[i]).argmax())
        attack = dataclasses.replace(small(name, norm=norm, loss="margin"), eps=scale * EPS[norm])
        recorder = Recorder(noisy(sigma=sigma))
        result = compiled_alone(attack)(keys[i], recorder, images[i], label)
        jax.effects_barrier()
        runs = searched(attack, recorder, chosen_by(keys[i], image=images[i]))
        points = np.array([x for x, _ in runs]).reshape(-1, *images[i].shape)
        inside = distances(norm, points, np.broadcast_to(images[i], points.shape))
        wrong = [logits.argmax() != label for _, logits in runs]
        expected = (np.array(wrong, bool) & (inside <= attack.eps * (1 + 1e-6))).any()
        assert bool(result.interim) == expected
        outcomes.append(bool(expected))
    assert outcomes[:2] == [False, bool(runs)]  # of an attack that asks before it chooses


def test_interim_success_counts_luck():
    """A tenth of the draws is wrong wherever the image is: a search of 32 of them sees one as good
    as ever, and a fresh draw is right nine times in ten."""

    def logits_fn(key, image):
        gap = jnp.where(jax.random.uniform(key) < 0.1, 1.0, -1.0) + 0.0 * image.sum()
        return jnp.stack([gap, jnp.zeros_like(gap)])

    attack = PGD(num_steps=2, eot_samples=32, loss="margin")
    keys = jax.random.split(jax.random.key(0), 100)
    image = jnp.full((2, 2, 1), 0.5)
    result = quick(jax.vmap(lambda key: attack(key, logits_fn, image, 1)))(keys)
    assert np.mean(result.interim) > 0.9  # 1 - 0.9^32 = 0.966
    answers = jax.vmap(lambda key, x: logits_fn(key, x).argmax())(keys, result.image)
    assert np.mean(answers == 1) > 0.8


@pytest.mark.parametrize("eot", ["mean_of_loss", "loss_of_mean"])
@pytest.mark.parametrize(("purpose", "seen"), [(1, True), (3, True), (2, False)])
def test_one_wrong_draw_of_a_gradient_or_of_the_ranking_is_seen(eot, purpose, seen):
    """Of two draws of either the answer is wrong at one; a choice at the end is no search. The keys
    of gradients are folded with 1, of the choice with 2, of the ranking with 3."""
    fold, key, image = jax.random.fold_in, jax.random.key(0), jnp.full((1, 1, 1), 0.5)
    options = dict(eot=eot, eot_samples=2, ranking_draws=2, selection_draws=2)
    attack = PGD(num_steps=1, loss="margin", eps=0.1, **options)
    base = fold(fold(fold(key, 1), 0), 0) if purpose == 1 else fold(key, purpose)
    # Of means each group of draws has a key of its own; else each draw is a group.
    grouped = purpose != 1
    draw = fold(fold(base, 0), 1) if grouped and eot == "loss_of_mean" else fold(base, 1)
    draw = fold(draw, 0) if grouped and eot == "mean_of_loss" else draw
    unlucky = jax.random.key_data(draw)

    def logits_fn(key, x):  # of label 1
        gap = jnp.where((jax.random.key_data(key) == unlucky).all(), 1.0, -1.0) + 0.0 * x.sum()
        return jnp.stack([gap, jnp.zeros_like(gap)])

    found = quick(lambda: attack(key, logits_fn, image, 1))()
    assert bool(found.interim) == seen
    if not seen:  # one of two draws is wrong, by 1 as the other is right
        assert float(found.loss) == pytest.approx(0.0)


# What searches for the nearest boundary offer


def test_a_search_does_not_find_the_clean_image():
    image = jnp.zeros((1, 1, 1))
    found = Nearest.none(image).note(image, jnp.float32(0), wrong=True, interim=False)
    assert np.isinf(found.distance)
    further = found.note(image + 0.5, jnp.float32(0.5), wrong=True, interim=False)
    assert further.distance == 0.5 and further.image == 0.5


@dataclasses.dataclass(frozen=True)
class Found(NearestWrong):
    """A search that has found one image and ended at another."""

    loss: str = "margin"

    def search(self, key, logits_fn, image, label):
        found = Nearest(image.at[0, 0, 0].add(0.2), jnp.float32(0.2), jnp.array(False),
                        image.at[0, 1, 0].add(0.2))  # fmt: skip
        return one_search(found)


@pytest.mark.parametrize(
    ("weights", "expected"), [((3, 1), (0.1, 0.0)), ((1, 3), (0.0, 0.1)), ((-1, -3), (0.0, 0.0))]
)
def test_the_ends_of_both_rays_are_offered(weights, expected):
    """Through the image that was found and through the last one; and the clean image."""

    def logits_fn(key, x):
        return jnp.stack([jnp.float32(0), jnp.asarray(weights, x.dtype) @ x.ravel()])

    image = jnp.full((1, 2, 1), 0.5)
    found = quick(lambda: Found(eps=0.1)(jax.random.key(0), logits_fn, image, 0))()
    np.testing.assert_allclose(np.ravel(found.image - image), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["fab", "fmn", "carlini_wagner", "rays"])
def test_behind_noise_an_attack_goes_beyond_the_boundary_that_it_found(name):
    """There every second answer is right; further along the same ray, in the same ball, fewer."""
    norm = "linf" if name == "rays" else "l2"
    keys, images, _ = inputs(32)
    images = 0.4 + 0.2 * images
    logits_fn = noisy(sigma=0.3)
    labels = jax.vmap(lambda k, x: noisy(sigma=0.0)(k, x).argmax())(keys, images)
    options = dict(eps=3 * EPS[norm], eot_samples=4, selection_draws=32)
    attack = dataclasses.replace(small(name, norm=norm, loss="margin"), **options)

    @quick
    def share_right(images):
        def right(key, image, label):
            answers = draws(logits_fn, 200)(key, image).argmax(-1)
            return jnp.mean(answers == label)

        return jax.vmap(right)(jax.random.split(jax.random.key(9), len(images)), images, labels)

    search = quick(jax.vmap(lambda k, i, y: attack.nearest(k, logits_fn, i, y)))
    found = search(keys, images, labels).image
    boundary = jax.vmap(lambda x, i: NORMS[norm].project(x, i, attack.eps))(found, images)
    result = quick(jax.vmap(lambda k, i, y: attack(k, logits_fn, i, y)))(keys, images, labels)
    assert share_right(result.image).mean() < share_right(boundary).mean() - 0.1

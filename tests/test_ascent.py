"""Ascents: closed-form optima, and exactly what is chosen and counted."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import objective
from attacks.apgd import APGD
from attacks.ascent import EOTS, Best, View
from attacks.losses import cross_entropy, margin
from attacks.norms import NORMS
from attacks.pgd import PGD
from attacks.step_gradient import step_gradient
from tests.oracles import QUICK

SHAPE, CLASSES = (3, 2, 1), 4
EPS = {"linf": 0.1, "l2": 0.3, "l1": 0.4}
ORDER, DUAL = {"linf": np.inf, "l2": 2, "l1": 1}, {"linf": 1, "l2": 2, "l1": np.inf}


def takes(name: str, norm: str) -> bool:
    """Whether the attack is defined under that norm: it is built, or refuses it by name."""
    try:
        attacks.build(name, norm=norm)
    except ValueError as error:
        if f"norm={norm!r}" not in str(error):
            raise
        return False
    return True


NORMS_OF = {name: tuple(norm for norm in NORMS if takes(name, norm)) for name in attacks.ATTACKS}
# These programs are tiny and compiled once each: fast compilation counts, fast code does not.
quick = functools.partial(jax.jit, compiler_options=QUICK)
traces = []  # one entry for every time Noisy is traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy:
    """A small network behind input noise: a randomised classifier with curved losses.

    The noise is a cheap hash of the key, for jax.random compiles ten times as long.
    """

    first: jax.Array
    second: jax.Array
    sigma: float = dataclasses.field(default=0.2, metadata={"static": True})

    def __call__(self, key, image):
        traces.append(image.shape)
        phase = (jax.random.key_data(key) % 1009).sum().astype(image.dtype)
        noise = jnp.sin(phase * jnp.arange(1, image.size + 1, dtype=image.dtype))
        return self.second @ jnp.tanh(self.first @ (2 * (image.ravel() + self.sigma * noise) - 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """logits = weights @ image + bias, whatever the key."""

    weights: jax.Array  # [K, D]
    bias: jax.Array  # [K]

    def __call__(self, key, image):
        return self.weights @ image.ravel() + self.bias


def noisy(seed: int = 0, dtype=np.float32, sigma: float = 0.2) -> Noisy:
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    first, second = rng.normal(size=(8, size)), rng.normal(size=(CLASSES, 8))
    return Noisy(jnp.asarray(first, dtype), jnp.asarray(second, dtype), sigma)


def inputs(n: int, dtype=np.float32, seed: int = 1):
    """Keys, images (a third of the pixels at the border of the box) and labels."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.25, 1.25, (n, *SHAPE)), 0, 1).astype(dtype)
    labels = rng.integers(0, CLASSES, n)
    return jax.random.split(jax.random.key(seed), n), jnp.asarray(images), jnp.asarray(labels)


def compiled(attack, options=QUICK):
    """(keys, logits_fn, images, labels) -> Attacked, for a batch."""
    batched = jax.vmap(lambda *args: attack(*args), (0, None, 0, 0))
    return jax.jit(batched, compiler_options=options)


def compiled_alone(attack):
    """(key, logits_fn, image, label) -> Attacked, where logits_fn is a plain function."""
    return quick(attack, static_argnums=1)


def distances(name: str, images, centers) -> np.ndarray:
    difference = np.asarray(images, np.float64) - np.asarray(centers, np.float64)
    flat = difference.reshape(len(difference), np.prod(difference.shape[1:], dtype=int))
    return np.linalg.norm(flat, ord=ORDER[name], axis=1)


# Closed-form optima of linear classifiers


def box_aware_optimum(norm: str, image: np.ndarray, direction: np.ndarray, eps: float):
    """The point of ball and box that is furthest along a direction; images are flat."""
    if norm == "linf":
        return np.clip(image + eps * np.sign(direction), 0, 1)
    if norm == "l1":  # as far as the box lets it, one pixel after the other
        best, left = image.copy(), eps
        for i in np.argsort(-np.abs(direction)):
            room = 1 - image[i] if direction[i] > 0 else image[i]
            best[i] += np.sign(direction[i]) * min(room, left)
            left -= min(room, left)
        return best

    def moved(t):
        return np.clip(image + t * direction, 0, 1)

    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(moved(middle) - image) < eps else (low, middle)
    return moved(low)


@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in ("pgd", "apgd") for norm in NORMS_OF[name]]
)
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("eps_inside", [True, False])
def test_ascents_reach_the_optimum_of_a_linear_classifier(name, norm, loss, eps_inside):
    rng = np.random.default_rng(0)
    eps, n, size = EPS[norm], 40, 12
    images = rng.uniform(eps, 1 - eps, (n, size))
    if not eps_inside:
        images = np.clip(rng.uniform(-0.5, 1.5, (n, size)), 0, 1)
    images = images.astype(np.float32)
    weights = rng.normal(size=(2, size)).astype(np.float32)
    labels = rng.integers(0, 2, n)
    along = (weights[1 - labels] - weights[labels]).astype(np.float64)
    optimum = [
        box_aware_optimum(norm, image, direction, eps)
        for image, direction in zip(images.astype(np.float64), along, strict=True)
    ]
    options = dict(norm=norm, eps=eps, num_steps=60, loss=loss, selection_draws=1)
    attack = attacks.build(name, **options, **({"step_size": eps / 2} if name == "pgd" else {}))
    result = compiled(attack)(
        jax.random.split(jax.random.key(0), n),
        Linear(jnp.asarray(weights), jnp.zeros(2)),
        jnp.asarray(images.reshape(n, 2, 2, 3)),
        jnp.asarray(labels),
    )
    found = np.asarray(result.image, np.float64).reshape(n, size)
    best, reached = (np.sum(along * (a - images), 1) for a in (np.array(optimum), found))
    # To the rounding of pixels. On a sphere a gain short by 1e-6 is a point off by 1e-3 of eps.
    np.testing.assert_allclose(reached, best, rtol=1e-5)
    np.testing.assert_allclose(
        found, optimum, atol={"linf": 1e-6, "l2": 5e-3 * eps, "l1": 1e-5}[norm]
    )
    without_box = eps * np.linalg.norm(along, DUAL[norm], axis=1)
    if eps_inside:
        np.testing.assert_allclose(best, without_box, rtol=1e-6)
    else:  # the box costs something
        assert (best < 0.99 * without_box).mean() > (0.3 if norm == "l1" else 0.8)


@pytest.mark.parametrize("norm", NORMS_OF["pgd"])
def test_robust_accuracy_of_a_binary_linear_classifier_is_its_closed_form(norm):
    """Right after the attack exactly where the clean margin exceeds eps ||w||_dual."""
    rng = np.random.default_rng(1)
    eps, n, size = {"linf": 0.05, "l2": 0.15}[norm], 500, 12
    images = rng.uniform(eps, 1 - eps, (n, size))
    weights, bias = rng.normal(size=size), 0.1
    score = (images - 0.5) @ weights + bias
    labels = (score > 0).astype(int) ^ (rng.random(n) < 0.1)  # a tenth is wrong to begin with
    clean_margin = np.where(labels == 1, score, -score)
    slack = clean_margin - eps * np.linalg.norm(weights, DUAL[norm])
    robust = slack > 0
    assert 0.2 < robust.mean() < 0.8 and np.abs(slack).min() > 1e-4  # above rounding
    logits_fn = Linear(
        jnp.asarray(np.stack([np.zeros(size), weights]), jnp.float32),
        jnp.asarray([0.0, bias - 0.5 * weights.sum()], jnp.float32),
    )
    attack = PGD(norm, eps, num_steps=20, step_size=eps / 2, selection_draws=1)
    keys = jax.random.split(jax.random.key(0), n)
    images = jnp.asarray(images.reshape(n, 2, 2, 3), jnp.float32)
    attacked = compiled(attack)(keys, logits_fn, images, jnp.asarray(labels)).image
    logits = jax.vmap(logits_fn)(keys, attacked)
    np.testing.assert_array_equal(np.argmax(logits, -1) == labels, robust)


# Expectation over transformation

# Two linear classifiers, drawn with equal chance, that disagree on the first two of three pixels:
# each of the three objectives below has an optimum of its own.
PAIR = np.array([[1.5, 4.0, 2.5], [-3.0, -2.0, 0.0]])
OFFSETS = np.array([3.0, -1.0])
OBJECTIVES = {
    ("mean_of_loss", "logits"): lambda u: np.log1p(np.exp(u)).mean(-1),
    ("loss_of_mean", "logits"): lambda u: np.log1p(np.exp(u.mean(-1))),
    ("loss_of_mean", "softmax"): lambda u: -np.log((1 / (1 + np.exp(u))).mean(-1)),
}


def either(key, image):
    """Logits [0, u] of one of the two classifiers; the label is 0."""
    drawn = jax.random.bernoulli(key).astype(int)
    u = jnp.asarray(PAIR, image.dtype)[drawn] @ (image.ravel() - 0.5)
    return jnp.stack([jnp.zeros_like(u), u + jnp.asarray(OFFSETS, image.dtype)[drawn]])


@pytest.mark.parametrize(("eot", "average"), OBJECTIVES)
def test_eot_finds_the_optimum_of_the_expected_loss_it_is_named_after(eot, average):
    eps = 0.2
    offsets = eps * np.array(list(itertools.product(np.linspace(-1, 1, 9), repeat=3)))
    values = {k: f(offsets @ PAIR.T + OFFSETS) for k, f in OBJECTIVES.items()}
    objective = OBJECTIVES[eot, average]
    best = values[eot, average].max()
    attack = PGD("linf", eps, num_steps=20, step_size=0.05, loss="cross_entropy", eot=eot,
                 eot_samples=256, average=average, restarts=4, selection_draws=1024)  # fmt: skip
    image = jnp.full((3, 1, 1), 0.5)
    result = compiled_alone(attack)(jax.random.key(0), either, image, 0)
    reached = objective((np.ravel(result.image) - 0.5) @ PAIR.T + OFFSETS)
    assert reached == pytest.approx(best, abs=1e-5)
    # The share of each classifier among 1024 selection draws is 1/2 to about 0.016, and no
    # objective changes by more than 4 for each unit of it.
    assert result.loss == pytest.approx(best, abs=0.2)
    for other, value in values.items():
        if other != (eot, average):  # the optimum of another objective would be seen
            assert values[eot, average][value.argmax()] < best - 0.1


def run_keys(key, num_samples: int):
    return [jax.random.fold_in(key, i) for i in range(num_samples)]


def objective_by_hand(eot: str, average: str, logits_fn, keys, image, label, loss_fn=cross_entropy):
    """The two EOT objectives written as loops over the runs."""
    runs = [logits_fn(key, image) for key in keys]
    if eot == "mean_of_loss":
        return sum(loss_fn(logits, label) for logits in runs) / len(runs)
    if average == "softmax":
        return loss_fn(jnp.log(sum(jax.nn.softmax(r) for r in runs) / len(runs)), label)
    return loss_fn(sum(runs) / len(runs), label)


@pytest.mark.parametrize(("eot", "average"), OBJECTIVES)
def test_gradient_and_losses_are_those_of_the_runs_computed_one_by_one(eot, average, x64):
    """One L2 step from the clean image moves along the gradient; the losses returned are those on
    the selection keys. Keys: fold_in(key, 1) for gradients and 2 for selection."""
    runs, draws = 3, 7
    attack = PGD("l2", 0.3, num_steps=1, step_size=0.1, eot=eot, eot_samples=runs,
                 average=average, random_start=False, selection_draws=draws)  # fmt: skip
    logits_fn, fold = noisy(0, np.float64), jax.random.fold_in
    keys, images, labels = inputs(1, np.float64)
    key, image, label = keys[0], 0.2 + 0.6 * images[0], labels[0]  # the step stays in the box

    def objective(keys, x):
        return objective_by_hand(eot, average, logits_fn, keys, x, label)

    gradient_keys = run_keys(fold(fold(fold(key, 1), 0), 0), runs)
    gradient = quick(jax.grad(objective, argnums=1))(gradient_keys, image)
    group = runs if eot == "loss_of_mean" else 1
    groups = [run_keys(k, group) for k in run_keys(fold(key, 2), -(-draws // group))]

    @quick
    def selection(x):
        return sum(objective(keys, x) for keys in groups) / len(groups)

    result = quick(attack)(key, logits_fn, image, label)
    ahead = image + 0.1 * gradient / jnp.linalg.norm(gradient.ravel())
    expected = ahead if selection(ahead) > selection(image) else image
    np.testing.assert_allclose(result.image, expected, atol=1e-9)
    assert np.abs(result.image - image).max() > 0.01  # here, the step pays
    assert result.loss == pytest.approx(float(selection(expected)), rel=1e-9)
    assert result.start_loss == pytest.approx(float(selection(image)), rel=1e-9)


def test_a_chunk_of_runs_is_computed_once_for_its_losses_and_gradients():
    """asinh stands in a run and, unlike what it is differentiated to, nowhere else."""

    def logits_fn(key, x):
        return jnp.tanh(jnp.asinh(x.ravel()[:CLASSES]))

    _, (image,), (label,) = inputs(1)
    for chunk, programs in ((None, 1), (2, 1), (3, 2)):  # a last chunk of another size is another
        attack = attacks.build("pgd", eps=0.1, step_size=0.1, eot_samples=4, chunk=chunk)
        gradient = step_gradient(attack, logits_fn, None, image, label, None)
        assert str(jax.make_jaxpr(gradient)(jax.random.key(0), image)).count(" asinh ") == programs


@pytest.mark.parametrize("eot", EOTS)
def test_chunks_change_memory_but_not_the_result(eot, x64):
    keys, images, labels = inputs(1, np.float64)
    size = int(np.prod(SHAPE))

    def wide(key, image):  # 40 kB of activations a run
        phase = jax.random.key_data(key)[0] % 1009
        weights = jnp.sin(phase + jnp.arange(5000.0 * size)).reshape(5000, size)
        return jnp.tanh(weights @ image.ravel()).reshape(CLASSES, -1).sum(1)

    attack = PGD(eps=0.1, num_steps=2, loss="margin", eot=eot, eot_samples=16, selection_draws=64)
    results, memory = [], []
    for chunk in (None, 4):
        program = (
            compiled_alone(dataclasses.replace(attack, chunk=chunk))
            .lower(keys[0], wide, images[0], labels[0])
            .compile()
        )
        results.append(program(keys[0], images[0], labels[0]))
        memory.append(program.memory_analysis().temp_size_in_bytes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *results)
    assert memory[1] < memory[0] / 2


# What is selected, and what it costs


@dataclasses.dataclass(eq=False)
class Recorder:
    """A logits_fn that notes every run of another one: runs[key][i] = (image, logits)."""

    logits_fn: object
    runs: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def __call__(self, key, image):
        logits = self.logits_fn(key, image)
        jax.debug.callback(self.note, jax.random.key_data(key), image, logits)
        return logits

    def note(self, key, image, logits):
        self.runs[tuple(np.asarray(key).tolist())].append((np.asarray(image), np.asarray(logits)))

    def at(self, key):
        return self.runs[tuple(np.asarray(jax.random.key_data(key)).tolist())]


def recorded(attack, logits_fn=None):
    recorder = Recorder(logits_fn or noisy())
    keys, images, labels = inputs(1)
    result = compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    return recorder, keys[0], images[0], labels[0], result


@pytest.mark.parametrize("eot", EOTS)
def test_queries_are_counted_and_choices_share_no_key_with_gradients(eot):
    attack = PGD(eps=0.1, num_steps=3, loss="margin", eot=eot, eot_samples=2, restarts=2,
                 selection_draws=5)  # fmt: skip
    recorder, *_ = recorded(attack)
    uses = collections.Counter(len(runs) for runs in recorder.runs.values())
    draws = 6 if eot == "loss_of_mean" else 5  # three whole means of two
    scored = 2 * attack.restarts + 1
    # Each gradient run has a key of its own; a ranking key serves every iterate of every restart,
    # and a selection key every candidate.
    iterates = attack.restarts * attack.num_steps
    assert uses == {1: attack.gradient_queries, iterates: 4, scored: draws}
    assert (attack.gradient_queries, attack.selection_queries) == (12, 24 + scored * draws)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("eot", EOTS)
def test_of_a_deterministic_classifier_one_run_a_step_is_gradient_and_ranking(name, eot):
    options = dict(eps=0.1, num_steps=6, loss="margin", eot=eot, restarts=2, selection_draws=1)
    twice = attacks.build(name, **options)
    once = dataclasses.replace(twice, remeasure=False)
    _, *_, expected = recorded(twice, noisy(sigma=0.0))
    recorder, *_, result = recorded(once, noisy(sigma=0.0))
    runs = sum(map(len, recorder.runs.values()))
    assert runs == once.gradient_queries + once.selection_queries
    if eot in objective.EOTS:
        assert runs == 2 * 6 + 2 * 2 + 1
    # The same but for rounding, which a sign step can make as large as its length: not here.
    np.testing.assert_allclose(result.image, expected.image, rtol=0, atol=1e-6)
    assert result.interim == expected.interim


def test_the_image_returned_is_the_candidate_of_highest_selection_loss():
    """Candidates: of every restart the last iterate, and of those before it the one of highest
    loss on the ranking keys, fold_in(key, 3), which are the same for all."""
    attack = PGD(eps=0.2, num_steps=5, step_size=0.1, eot_samples=2, restarts=3,
                 loss="margin", selection_draws=6, ranking_draws=3)  # fmt: skip
    recorder, key, image, label, result = recorded(attack)
    fold = jax.random.fold_in
    rankings = collections.defaultdict(list)  # iterate -> its losses on the ranking keys
    for draw in run_keys(fold(key, 3), attack.ranking_draws):
        for x, logits in recorder.at(fold(draw, 0)):
            rankings[x.tobytes()].append(float(margin(jnp.asarray(logits), label)))
    assert {len(losses) for losses in rankings.values()} == {attack.ranking_draws}
    candidates, starts = [], []
    for restart in range(attack.restarts):
        iterates = []
        for step in range(attack.num_steps):
            keys = run_keys(fold(fold(fold(key, 1), restart), step), attack.eot_samples)
            iterates.append(recorder.at(keys[0])[0][0])
        candidates.append(max(iterates, key=lambda x: np.mean(rankings[x.tobytes()])))
        starts.append(iterates[0])
    assert len({x.tobytes() for x in [*starts, np.asarray(image)]}) == attack.restarts + 1
    losses = collections.defaultdict(list)  # image -> its losses on the selection keys
    for draw in run_keys(fold(key, 2), attack.selection_draws):
        for x, logits in recorder.at(fold(draw, 0)):
            losses[x.tobytes()].append(float(margin(jnp.asarray(logits), label)))
    means = {x: np.mean(values) for x, values in losses.items()}
    assert all(candidate.tobytes() in means for candidate in candidates)
    clean = np.asarray(image).tobytes()
    assert means[clean] == pytest.approx(float(result.start_loss), rel=1e-5)
    assert len(means) > attack.restarts + 1  # the best and the last iterate differ somewhere
    assert max(means, key=means.get) == np.asarray(result.image).tobytes()
    assert max(means.values()) == pytest.approx(float(result.loss), rel=1e-5)


def test_signs_are_voted_on_one_by_one(x64):
    """One Linf step along the sum of the single gradients' signs; a tie moves nothing."""
    attack = PGD("linf", 0.3, num_steps=1, step_size=0.1, eot="sign_vote", eot_samples=4,
                 random_start=False, keep="last", selection_draws=1)  # fmt: skip
    logits_fn, fold = noisy(0, np.float64, sigma=2.0), jax.random.fold_in
    keys, images, labels = inputs(1, np.float64)
    key, image, label = keys[0], 0.2 + 0.6 * images[0], labels[0]
    single = quick(jax.grad(lambda k, x: cross_entropy(logits_fn(k, x), label), argnums=1))
    runs = run_keys(fold(fold(fold(key, 1), 0), 0), 4)
    gradients = [np.asarray(single(k, image)) for k in runs]
    votes = np.sum(np.sign(gradients), axis=0)
    assert (np.sign(votes) != np.sign(np.sum(gradients, axis=0))).any()  # another direction
    result = quick(attack)(key, logits_fn, image, label)
    np.testing.assert_allclose(result.image, image + 0.1 * np.sign(votes), atol=1e-12)


def test_the_last_iterate_is_kept_where_that_is_asked_for():
    """Steps of 0.3 over a peak at 0.6 from 0.5: 0.8, 0.5, 0.8; the best iterate is the start."""

    def logits_fn(key, image):
        return jnp.stack([jnp.float32(0), -20 * jnp.abs(image - 0.6).sum()])

    attack = PGD(eps=0.5, num_steps=3, step_size=0.3, loss="margin", random_start=False,
                 selection_draws=1)  # fmt: skip
    for keep, expected in (("best", 0.5), ("last", 0.8)):
        kept = dataclasses.replace(attack, keep=keep)
        result = compiled_alone(kept)(jax.random.key(0), logits_fn, jnp.full((1, 1, 1), 0.5), 0)
        assert float(result.image[0, 0, 0]) == pytest.approx(expected, abs=1e-6)


def test_an_overshooting_attack_returns_its_best_iterate_not_its_last():
    """Of margin -20 |x - peak| steps of 0.3 jump over the peak again and again."""
    peak = jnp.asarray([0.61, 0.38]).reshape(1, 2, 1)

    def logits_fn(key, image):
        return jnp.stack([jnp.float32(0), -20 * jnp.abs(image - peak).sum()])

    attack = PGD(eps=0.5, num_steps=8, step_size=0.3, loss="margin", restarts=3, selection_draws=1)
    recorder = Recorder(logits_fn)
    result = compiled_alone(attack)(jax.random.key(0), recorder, jnp.full((1, 2, 1), 0.5), 0)
    jax.effects_barrier()
    losses = [float(logits[1]) for runs in recorder.runs.values() for _, logits in runs]
    assert result.loss == pytest.approx(max(losses), rel=1e-6)
    assert result.loss > np.mean(losses) + 1


def test_from_the_clean_image_a_deterministic_classifier_never_gets_less_fooled():
    """One selection draw is enough for it, and its loss is exactly that of the image returned."""
    logits_fn = noisy(sigma=0.0)
    attack = PGD("l2", 2.0, num_steps=3, step_size=2.0, random_start=False, selection_draws=1)
    keys, images, labels = inputs(64)
    result = compiled(attack)(keys, logits_fn, images, labels)
    loss = quick(jax.vmap(lambda key, x, y: cross_entropy(logits_fn(key, x), y)))
    np.testing.assert_allclose(result.loss, loss(keys, result.image, labels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.start_loss, loss(keys, images, labels), rtol=1e-4, atol=1e-5)
    assert (result.loss >= result.start_loss).all()


def test_more_restarts_never_lower_the_loss_on_the_same_selection_keys(x64):
    keys, images, labels = inputs(16, np.float64)
    one, four = (
        compiled(PGD("linf", 0.2, num_steps=2, step_size=0.04, restarts=restarts))(
            keys, noisy(0, np.float64), images, labels
        )
        for restarts in (1, 4)
    )
    gain = np.asarray(four.loss - one.loss)
    assert (gain >= -1e-12).all() and (gain > 1e-3).any()
    np.testing.assert_allclose(four.start_loss, one.start_loss, rtol=1e-12)


# Estimated gradients


@pytest.mark.parametrize("estimate", ["spsa", "nes"])
def test_ascents_climb_without_gradients_and_count_what_they_ask(estimate):
    attack = PGD("l2", 0.5, num_steps=4, step_size=0.2, loss="margin", estimate=estimate,
                 directions=16, eot_samples=2, selection_draws=5)  # fmt: skip
    keys, images, labels = inputs(16)
    result = compiled(attack)(keys, noisy(), images, labels)
    assert np.mean(result.loss - result.start_loss) > 0.5
    no_gradient = jax.custom_jvp(lambda x: x)
    no_gradient.defjvp(lambda primals, tangents: pytest.fail("something was differentiated"))
    recorder, *_ = recorded(attack, lambda key, x: noisy()(key, no_gradient(x)))
    uses = collections.Counter(len(runs) for runs in recorder.runs.values())
    # Either side of every direction has keys of its own; ranking and selection keys are shared.
    assert uses == {1: 4 * 16 * 2 * 2, 4: 4, 3: 5}
    assert attack.gradient_queries == 0
    assert attack.selection_queries == sum(map(len, recorder.runs.values()))


# Momentum and targets


def test_momentum_adds_up_gradients_of_l1_norm_1(x64):
    """Dong et al. (2018), equations 6 and 7, under L2, as a loop."""
    logits_fn, mu = noisy(0, np.float64, sigma=0.0), 0.7
    keys, images, labels = inputs(1, np.float64)
    image, label = 0.3 + 0.4 * images[0], labels[0]
    gradient = quick(jax.grad(lambda x: cross_entropy(logits_fn(keys[0], x), label)))
    x, along = image, jnp.zeros_like(image)
    for _ in range(4):
        g = gradient(x)
        along = mu * along + g / jnp.sum(jnp.abs(g))
        x = x + 0.05 * along / jnp.linalg.norm(along.ravel())
    attack = PGD("l2", 1.0, num_steps=4, step_size=0.05, momentum=mu, random_start=False,
                 keep="last", selection_draws=1)  # fmt: skip
    result = quick(attack)(keys[0], logits_fn, image, label)
    np.testing.assert_allclose(result.image, x, atol=1e-9)


def test_targets_are_the_likeliest_wrong_classes_of_the_mean_logits():
    """Without steps to speak of; which target won is seen by where the image went."""
    logits = jnp.array([3.0, 1.0, 5.0, 2.0])

    def logits_fn(key, image):  # a step towards class k raises pixel k
        return logits + 1e-3 * image.ravel()

    attack = APGD(eps=0.1, num_steps=3, loss="margin", targets=2, selection_draws=1, eot_samples=2)
    recorder = Recorder(logits_fn)
    compiled_alone(attack)(jax.random.key(0), recorder, jnp.full((2, 2, 1), 0.5), 2)
    jax.effects_barrier()
    lasts = {
        tuple(np.round(x.ravel() - 0.5, 2)) for runs in recorder.runs.values() for x, _ in runs
    }
    raised = {k for k in range(4) for x in lasts if x[k] == 0.1 and x[2] == -0.1}
    assert {0, 3} <= raised  # of classes 0, 1 and 3 the two of largest logit
    assert attack.gradient_queries == 2 * 3 * 2
    assert attack.selection_queries == sum(map(len, recorder.runs.values())) - 12


def test_more_targets_than_wrong_classes_are_refused():
    attack = APGD(targets=CLASSES, num_steps=1, selection_draws=1)
    keys, images, labels = inputs(1)
    with pytest.raises(ValueError, match="targets=4 must be less than the 4 classes there are"):
        attack(keys[0], noisy(), images[0], labels[0])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="l3"), "norm='l3' is unknown; known: linf, l2"),
        (dict(loss="hinge"), "loss='hinge' is unknown; known: cross_entropy, margin, dlr"),
        (dict(eot="vote"), "eot='vote' is unknown; known: mean_of_loss, loss_of_mean"),
        (dict(average="vote"), "average='vote' is unknown; known: logits, softmax"),
        (dict(num_steps=0), "num_steps=0 must be at least 1"),
        (dict(eot_samples=0), "eot_samples=0 must be at least 1"),
        (dict(restarts=0), "restarts=0 must be at least 1"),
        (dict(selection_draws=0), "selection_draws=0 must be at least 1"),
        (dict(chunk=0), "chunk=0 must be None or at least 1"),
        (dict(eps=0.0), "eps=0.0 must be positive"),
        (dict(eps=float("nan")), "eps=nan must be positive"),
        (dict(step_size=-0.1), "step_size=-0.1 must be positive"),
        (dict(momentum=1.5), "momentum=1.5 must be from 0 to 1"),
        (dict(delta=0.0), "delta=0.0 must be positive"),
        (dict(estimate="spsa", eot="sign_vote"), "eot='sign_vote' needs gradients"),
        (dict(estimate="nes", eot="selective", loss="dlr"), "eot='selective' needs gradients"),
        (dict(eot="selective"), "margin or dlr, not loss='cross_entropy'"),
        (dict(selectivity=0.0), "selectivity=0.0 must be positive"),
        (dict(selection_steps=0), "selection_steps=0 must be at least 1"),
        (dict(targets=-1), "targets=-1 must not be negative"),
        (dict(norm="l1"), "norm='l1': .* use apgd"),
        (dict(step=0.1, steps=3), "pgd has no option step, steps; known: average, chunk, delta,"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.build("pgd", **options)


def test_an_unknown_attack_lists_those_there_are():
    with pytest.raises(ValueError, match="attack 'fgsm' is unknown; known: pgd"):
        attacks.build("fgsm")


def test_build_passes_its_options_on():
    assert attacks.build("pgd", norm="l2", eps=0.5) == PGD(norm="l2", eps=0.5)


# Given starts


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("targets", [0, 2])
def test_given_points_are_climbed_from_and_kept_where_nothing_is_higher(name, targets):
    """A step away from a corner that is already the optimum leads nowhere higher: it is the best
    iterate of the run that starts there, and so what comes back; nothing else gets there."""
    options = dict(num_steps=1, restarts=1, loss="margin", selection_draws=1, targets=targets)
    if name == "pgd":
        options["step_size"] = 0.01
    rng = np.random.default_rng(3)
    image = jnp.full(SHAPE, 0.5)
    logits_fn = Linear(jnp.asarray(rng.normal(size=(CLASSES, image.size)), jnp.float32),
                       jnp.zeros(CLASSES))  # fmt: skip
    label = int(logits_fn(None, image).argmax())
    corners = image[None] + 0.1 * np.array(
        list(itertools.product((-1, 1), repeat=image.size))
    ).reshape(-1, *SHAPE)
    losses = jax.vmap(lambda x: margin(logits_fn(None, x), label))(corners)
    starts = corners[jnp.argsort(-losses)[jnp.array([40, 0, 60])]]
    attack = attacks.build(name, eps=0.1, given_starts=3, **options)
    key = jax.random.key(0)
    found = quick(attack)(key, logits_fn, image, label, starts=starts)
    np.testing.assert_allclose(found.image, corners[losses.argmax()], atol=1e-6)
    without = attacks.build(name, eps=0.1, **options)
    if name == "pgd":  # APGD's first step, of 2 eps, gets there by itself
        assert quick(without)(key, logits_fn, image, label).loss < found.loss - 1e-3
    assert attack.gradient_queries == 4 * without.gradient_queries
    with pytest.raises(ValueError, match="given_starts=3, but 0 starts were given"):
        attack(key, logits_fn, image, label)


def test_every_given_point_is_climbed_from_towards_every_target():
    """Runs 2 and 3 from the first point, 4 and 5 from the second, after those of the restart."""
    attack = APGD(eps=0.1, num_steps=1, loss="margin", given_starts=2, targets=2, selection_draws=1)
    recorder, fold = Recorder(noisy()), jax.random.fold_in
    keys, images, labels = inputs(1)
    image = 0.2 + 0.6 * images[0]
    starts = jnp.stack([image + 0.05, image - 0.05])
    compiled_alone(lambda key, fn, x, y: attack(key, fn, x, y, starts=starts))(
        keys[0], recorder, image, labels[0]
    )
    jax.effects_barrier()
    for run in range(2, 6):
        (draw,) = run_keys(fold(fold(fold(keys[0], 1), run), 0), 1)
        np.testing.assert_allclose(recorder.at(draw)[0][0], starts[run // 2 - 1], atol=1e-6)


def test_of_equal_losses_the_first_stays_the_best():
    best = Best(jnp.zeros(1), jnp.float32(1.0), jnp.zeros(1))
    for loss, expected in ((1.0, 0.0), (1.5, 2.0)):
        assert best.or_higher(jnp.full(1, 2.0), View(jnp.float32(loss), jnp.ones(1))).x == expected


def test_a_given_point_that_no_iterate_is_ranked_above_is_offered_for_selection():
    """No more is promised where answers are random: what its run ranks higher can be weaker on the
    selection draws. Steps of 0.45 jump over this peak, which draws shift a little, and not back."""
    peak = jnp.asarray([0.61, 0.38, 0.5]).reshape(1, 3, 1)

    def logits_fn(key, image):
        shift = 0.02 * jnp.sin((jax.random.key_data(key) % 1009).sum().astype(image.dtype))
        return jnp.stack([jnp.float32(0), -20 * jnp.abs(image - peak - shift).sum()])

    attack = PGD(eps=0.5, num_steps=5, step_size=0.45, loss="margin", eot_samples=2, given_starts=3,
                 selection_draws=4)  # fmt: skip
    image = jnp.full((1, 3, 1), 0.5)
    compiled = quick(lambda starts: attack(jax.random.key(0), logits_fn, image, 0, starts=starts))
    starts = jnp.stack([peak, image, 0.0 * image])
    for turn in range(3):
        np.testing.assert_array_equal(compiled(jnp.roll(starts, turn, axis=0)).image, peak)
    assert np.abs(compiled(jnp.stack([image] * 3)).image - peak).max() > 0.01

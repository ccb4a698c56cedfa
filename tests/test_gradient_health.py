"""The gradient health report: what is sound passes, and every planted fault fails.

On real digits, with a small network trained here.
"""

import dataclasses
import functools
import json
import re

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from attacks.apgd import APGD
from attacks.losses import cross_entropy
from purify.defense import Defense
from purify.evals import gradients
from purify.evals.core.store import Store
from purify.evals.gradients import check
from purify.evals.gradients.checks import (
    CHECKS,
    FAIL,
    NOT_INFORMATIVE,
    PASS,
    Budget,
    Finding,
    LittleLeft,
    Measured,
    NotAbove,
    as_predicted,
    attack_rows,
    beats_random,
    doubled,
    equals_differences,
    has_gradient,
    judge,
)
from purify.evals.gradients.measure import CURED, STILL_FAIL, exact
from purify.evals.gradients.probes import (
    NUM_DIRECTIONS,
    NUM_KEYS,
    STEP,
    Local,
    Probe,
    derivative_errors,
    probe_batch,
)
from purify.purifiers import Identity, NoiseOnly, Schedule
from purify.random import image_keys
from purify.runtime import compilation
from tests.oracles import QUICK, GaussianScore, LinearClassifier, QuadraticClassifier, near

SIGMA, EPS = 0.25, 0.15
NUM_TRAINED, NUM_CHECKED = 1000, 50
BUDGET = Budget(eps=EPS, num_steps=8, eot_samples=2, num_draws=2, proposals=200, directions=4)

BLIND, BPDA, SQUARE, LOCAL, SAME, DERIVATIVE, IN_BALL = (
    next(name for name in CHECKS if part in name)
    for part in ("blind", "BPDA", "Square", "random", "the defence", "differences", "box")
)


@flax.struct.dataclass
class Perceptron:
    """A classifier of one hidden layer."""

    hidden: jax.Array  # [h, n]
    bias: jax.Array  # [h]
    output: jax.Array  # [K, h]

    def __call__(self, image):
        return self.output @ jax.nn.relu(self.hidden @ (image.ravel() - 0.5) + self.bias)


@flax.struct.dataclass
class Changed:
    """A classifier of changed images, or of changed answers."""

    classifier: object
    before: object = flax.struct.field(pytree_node=False, default=lambda image: image)
    after: object = flax.struct.field(pytree_node=False, default=lambda logits: logits)

    def __call__(self, image):
        return self.after(self.classifier(self.before(image)))


@functools.cache
def digits():
    """(images float32 [1797, 8, 8, 1] in [0, 1], labels)."""
    found = load_digits()
    return (found.images[..., None] / 16).astype(np.float32), found.target


@functools.cache
def trained_network(steps: int = 0) -> Perceptron:
    """Trained on the first NUM_TRAINED digits; steps: of PGD, for images attacked as it learns."""
    images, labels = (jnp.asarray(a[:NUM_TRAINED]) for a in digits())
    rng = np.random.default_rng(0)
    network = Perceptron(
        jnp.asarray(rng.normal(0, 1 / 8, (64, 64)), jnp.float32),
        jnp.zeros(64),
        jnp.asarray(rng.normal(0, 1 / 8, (10, 64)), jnp.float32),
    )

    def loss(network, images):
        logits = jax.vmap(network)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimiser = optax.adam(1e-2)

    def attacked(network):
        def ascend(_, x):
            x = x + EPS / 3 * jnp.sign(jax.grad(loss, argnums=1)(network, x))
            return jnp.clip(x, jnp.maximum(images - EPS, 0), jnp.minimum(images + EPS, 1))

        return jax.lax.fori_loop(0, steps, ascend, images)

    def update(carry, _):
        network, state = carry
        gradient = jax.grad(loss)(network, attacked(network))
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(network, updates), state), None

    (network, _), _ = jax.jit(
        lambda carry: jax.lax.scan(update, carry, length=150)
    )((network, optimiser.init(network)))  # fmt: skip
    return network


def held_out():
    """Digits that the networks did not see."""
    return tuple(array[NUM_TRAINED : NUM_TRAINED + NUM_CHECKED] for array in digits())


def report(defense, images=None, labels=None, **options) -> dict[str, str]:
    """check -> verdict, of BUDGET on these digits, by default the first held-out ones."""
    if images is None:
        images, labels = held_out()
    return {v.check: v.verdict for v in check(defense, images, labels, BUDGET, **options)}


def failures(verdicts: dict[str, str]) -> list[str]:
    return [name for name, verdict in verdicts.items() if verdict.startswith(FAIL)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Programs here run for a moment only."""
    monkeypatch.setattr(compilation, "compiler_options", lambda: QUICK)


# Planted faults


@flax.struct.dataclass
class Stopped:
    """A purifier through which no gradient passes."""

    purifier: object
    stochastic = True
    nfe = nge = 0

    def __call__(self, key, image):
        return jax.lax.stop_gradient(self.purifier(key, image))

    def trace(self, key, image):
        return jax.lax.stop_gradient(self.purifier.trace(key, image))


@flax.struct.dataclass
class DetachedScore:
    """A score model whose own derivative is silently left out."""

    score: object
    nfe = 1

    def predict_noise(self, image, sigma):
        return jax.lax.stop_gradient(self.score.predict_noise(image, sigma))


def denoising() -> Schedule:
    """Towards the mean digit, by the best score for a Gaussian of the digits' mean and variance."""
    images = digits()[0][:NUM_TRAINED]
    score = GaussianScore(
        jnp.asarray(images.mean(0)), float(images.std(0).mean()), jnp.full(1, SIGMA)
    )
    return Schedule(score, num_steps=3)


def quantised():
    return Defense(Identity(), Changed(trained_network(), before=to_eighths), num_runs=1), exact


def stopped():
    return Defense(Stopped(NoiseOnly(0.1)), trained_network(), num_runs=2), exact


def saturated():
    return Defense(Identity(), Changed(trained_network(), after=times_10000), num_runs=1), exact


def detached_score():
    def attacked(defense):
        purifier = exact(defense).purifier
        purifier = dataclasses.replace(purifier, score=DetachedScore(purifier.score))
        return dataclasses.replace(defense, purifier=purifier)

    return Defense(denoising(), trained_network(), num_runs=2), attacked


def other_sigma():
    def attacked(defense):
        return dataclasses.replace(defense, purifier=NoiseOnly(0.2))

    return Defense(NoiseOnly(SIGMA), trained_network(), num_runs=2), attacked


def counted():
    def attacked(defense):
        counts = Changed(defense.classifier, after=one_hot)
        return dataclasses.replace(defense, classifier=counts)

    return Defense(NoiseOnly(0.1), trained_network(), num_runs=3, average="vote"), attacked


def to_eighths(image):
    return jnp.round(8 * image) / 8


def times_10000(logits):
    return 1e4 * logits


def one_hot(logits):
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])


# What each must make FAIL, at least.
FAULTS = {
    quantised: (LOCAL, SQUARE),
    stopped: (LOCAL, DERIVATIVE, BPDA, BLIND),
    saturated: (LOCAL, SQUARE),
    detached_score: (DERIVATIVE,),
    other_sigma: (DERIVATIVE, SAME),
    counted: (LOCAL, SAME, BPDA, BLIND),
}


@pytest.mark.parametrize(
    "fault",
    [quantised, *(pytest.param(f, marks=pytest.mark.slow) for f in FAULTS if f is not quantised)],
    ids=lambda fault: fault.__name__,
)
def test_a_planted_fault_fails(fault):
    """Where attacks are compared it still does with twice the budget."""
    defense, attacked_fn = fault()
    verdicts = report(defense, attacked_fn=attacked_fn)
    for name in FAULTS[fault]:
        expected = STILL_FAIL if name in (SQUARE, BPDA, BLIND) else FAIL
        assert verdicts[name] == expected, (name, verdicts)


# Sound controls


@pytest.mark.slow
def test_sound_defences_pass_what_the_faults_fail():
    """The faulty ones' own defences, attacked as they should be."""
    for fault in (detached_score, other_sigma, counted):
        verdicts = report(fault()[0])
        assert not failures(verdicts), (fault.__name__, verdicts)
        assert {verdicts[name] for name in (LOCAL, DERIVATIVE, SAME)} == {PASS}


SOUND = {
    "undefended": lambda: Defense(Identity(), trained_network(), num_runs=1),
    "adversarially trained": lambda: Defense(Identity(), trained_network(3), num_runs=1),
    "noise_only": lambda: Defense(NoiseOnly(SIGMA), trained_network(), num_runs=2),
}


@pytest.mark.slow
def test_sound_defences_fail_once_in_20_seeds_at_most():
    """Each seed has other images and other keys."""
    images, labels = (array[NUM_TRAINED:] for array in digits())
    failed = []
    for seed in range(20):
        at = np.random.default_rng(seed).permutation(len(labels))[:NUM_CHECKED]
        for name, make in SOUND.items():
            verdicts = report(make(), images[at], labels[at], seed=seed)
            assert {verdicts[name] for name in (DERIVATIVE, SAME, IN_BALL)} == {PASS}
            failed += [(seed, name, check) for check in failures(verdicts)]
    assert len(failed) <= 1, failed


# The report


def test_a_failure_that_twice_the_budget_cures_says_so(tmp_path):
    """Two steps of eps / 4 do not reach the edge of the ball, four do."""
    budget = dataclasses.replace(BUDGET, num_steps=2)
    with Store(tmp_path, "check_gradients", {}) as store:
        verdicts = check(SOUND["undefended"](), *held_out(), budget, store=store)
        assert len(store.records("defense-square_doubled")) == NUM_CHECKED
    assert {v.check: v.verdict for v in verdicts}[SQUARE] == CURED


@pytest.mark.slow
def test_an_interrupted_report_goes_on(tmp_path):
    defense = SOUND["noise_only"]()

    def again():
        with Store(tmp_path, "check_gradients", {}) as store:
            verdicts = check(defense, *held_out(), BUDGET, store=store)
            return verdicts, store.folder / "images.jsonl"

    verdicts, file = again()
    whole = file.read_text().splitlines(keepends=True)
    assert again() == (verdicts, file) and file.read_text() == "".join(whole)
    file.write_text("".join(whole[::2]))
    for verdict, before in zip(again()[0], verdicts, strict=True):
        assert verdict._asdict() == near(before._asdict())
    assert len(file.read_text().splitlines()) == len(whole)


@pytest.mark.slow
def test_the_command_prints_and_writes_verdicts(trained, tmp_path, capsys):
    trained.copied_into(tmp_path)
    small = dict(num_images=6, num_steps=2, eot_samples=2, num_draws=2, proposals=2, directions=1)
    options = {f"check__{name}": value for name, value in small.items()}
    config = trained.config(defense__purifier="noise_only", **options)
    gradients.run(config, tmp_path)
    shown = capsys.readouterr().out
    (file,) = tmp_path.glob("check_gradients/*/results.json")
    results = json.loads(file.read_text())
    assert [entry["check"] for entry in results["checks"]] == list(CHECKS)
    for entry in results["checks"]:
        assert re.search(rf"{re.escape(entry['check'])} +{entry['verdict']}", shown), entry
    assert results["defense"]["options"]["sigma"] == 0.25
    assert results["surrogate"]["name"] == "one_step"
    assert results["budget"]["eps"] == 0.15 and results["config"]["check"]["num_images"] == 6
    assert str(file) in shown and re.fullmatch(r"[0-9a-f]{40}\+?|unknown", results["commit"])
    said = "the checks of noise_only on 6 images: at most"
    assert said in shown and "was done before" not in shown
    gradients.run(config, tmp_path)
    assert "all of it was done before, nothing is computed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("check__attack", "fly", "config.check.attack 'fly' is unknown"),
        ("check__attack", "autoattack_rand", "has no eps, loss, norm of its own"),
        ("check__surrogate", "wall", "config.check.surrogate 'wall' is unknown"),
        ("check__num_steps", 1, "config.check: num_steps=1 must be at least 2"),
        ("check__num_images", 0, "config.check.num_images=0 must be from 1"),
        ("defense__purifier", "wall", "config.defense.purifier 'wall' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(trained, field, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        gradients.run(trained.config(**{field: value}), trained.workdir)
    assert not (trained.workdir / "check_gradients").exists()


# Rows and checks, by hand


def rows(defense, budget=BUDGET, surrogate=None):
    return attack_rows(defense, exact(defense), surrogate, budget, num_images=7)


def test_all_gradients_have_one_budget_and_less_is_half_of_it():
    noisy = Defense(denoising(), None, num_runs=2)
    planned = rows(noisy, surrogate=noisy)
    attacks = {name: row.attack for name, row in planned.items()}
    assert attacks["exact"] == attacks["bpda"] == attacks["surrogate"]
    assert attacks["blind"] == dataclasses.replace(
        attacks["exact"], eot_samples=1, selection_draws=1
    )  # which sees no noise: all samples would be the same
    changes = {
        "half_steps": dict(num_steps=4),
        "more_restarts": dict(restarts=2),
        "half_eot": dict(eot_samples=1),
        "far": dict(eps=0.5, step_size=0.125),
        "wide": dict(eps=(EPS * 0.5) ** 0.5, step_size=(EPS * 0.5) ** 0.5 / 4),
    }
    for name, change in changes.items():
        assert attacks[name] == dataclasses.replace(attacks["exact"], **change)
    assert {row.num_draws for row in planned.values()} == {BUDGET.num_draws}
    twice = doubled(planned["exact"])
    assert (twice.attack.num_steps, twice.attack.eot_samples, twice.attack.restarts) == (16, 4, 1)
    assert twice.name != planned["exact"].name
    assert doubled(planned["blind"]).attack.eot_samples == 1


def test_rows_that_would_be_others_are_left_out():
    undefended = Defense(Identity(), None, num_runs=1)
    left_out = {"blind", "bpda", "surrogate", "half_eot"}
    planned = rows(undefended, surrogate=undefended)
    assert (
        planned.keys() == rows(Defense(denoising(), None), surrogate=undefended).keys() - left_out
    )
    l1 = rows(undefended, dataclasses.replace(BUDGET, norm="l1", eps=4.0))
    assert l1.keys() == planned.keys() - {"square", "wide"}
    assert isinstance(l1["exact"].attack, APGD) and l1["far"].attack.norm == "linf"


def measured(*, correct=None, stochastic=True, **local) -> Measured:
    fields = dict.fromkeys(Local._fields, np.zeros(1)) | {k: np.array(v) for k, v in local.items()}
    return Measured(correct or {}, Local(**fields), np.zeros(1), 10, stochastic)


def test_a_comparison_of_attacks_by_hand():
    weak, strong = np.zeros((12, 2), bool), np.zeros((12, 2), bool)
    weak[:8] = True
    compare = NotAbove("exact", "bpda")
    found = compare(measured(correct={"exact": weak, "bpda": strong}))
    assert found.numbers == {"exact": pytest.approx(2 / 3), "bpda": 0.0}
    assert found.p == pytest.approx(2**-8)
    assert compare(measured(correct={"exact": strong, "bpda": weak})).p == pytest.approx(1)
    for same in (np.zeros((12, 2), bool), np.ones((12, 2), bool)):
        nothing = compare(measured(correct={"exact": same, "bpda": same}))
        assert (nothing.verdict, nothing.p) == (NOT_INFORMATIVE, None)


@pytest.mark.parametrize(
    ("right", "stochastic", "expected"),
    [
        (0, True, PASS),
        (4, True, NOT_INFORMATIVE),  # 8 % of 50: its interval reaches above 1 in 10
        (40, True, FAIL),
        (0, False, PASS),
        (1, False, FAIL),
    ],
)
def test_what_a_ball_with_mid_grey_leaves(right, stochastic, expected):
    correct = np.repeat(np.arange(50)[:, None] < right, 2, axis=1)
    finding = LittleLeft("far")(measured(correct={"far": correct}, stochastic=stochastic))
    (verdict,) = judge({"far": finding})
    assert verdict.verdict == expected


def test_one_draw_of_each_image_is_compared_with_a_constant_answer():
    """Of 50 images, 9 in the first of two draws; nothing in the second."""
    correct = np.zeros((50, 2), bool)
    correct[:9, 0] = True
    expected = binomtest(9, 50, 0.1, alternative="greater").pvalue
    assert LittleLeft("far")(measured(correct={"far": correct})).p == pytest.approx(expected)


def test_a_derivative_may_be_apart_at_one_image():
    for apart, verdict in ((1, PASS), (2, FAIL)):
        errors = np.where(np.arange(16) < apart, 1.0, 1e-9)
        found = equals_differences(dataclasses.replace(measured(), derivative_errors=errors))
        assert found.verdict == verdict and found.numbers["apart"] == apart


def test_a_probe_of_a_linear_classifier_is_its_closed_form(x64):
    """Under Linf the margin grows by step |w|_1 along its gradient, and by step <w, signs> along
    others; keys do not matter."""
    rng = np.random.default_rng(0)
    weights, image, key = rng.normal(size=(2, 6)), jnp.full((2, 3, 1), 0.5), jax.random.key(0)
    linear = Defense(Identity(), LinearClassifier(jnp.asarray(weights)), num_runs=1)
    local = Probe(linear, linear, eps=0.2)(jax.random.key(1), key, image, 0)
    step, w = STEP * 0.2, weights[1] - weights[0]
    signs = np.sign(jax.random.normal(key, (NUM_DIRECTIONS, *image.shape))).reshape(-1, 6)
    expected = Local(
        *(step * np.abs(w).sum(),) * 2,
        random_gain=step * np.max(signs @ w),
        resolution=1e-5 * np.abs(weights @ np.ravel(image)).max(),
        gap=0.0,
        cosine=1.0,
    )
    np.testing.assert_allclose(local, expected, rtol=1e-9, atol=1e-12)


def test_the_cosine_is_the_mean_over_pairs_of_runs_of_the_first_draw(x64):
    """Of gradients that depend on the noise: the first NUM_KEYS runs of that draw."""
    rng, image, key = np.random.default_rng(0), jnp.full((2, 3, 1), 0.5), jax.random.key(1)
    classifier = QuadraticClassifier(jnp.asarray(rng.normal(size=(3, 6))))
    noisy = Defense(NoiseOnly(sigma=0.3), classifier, num_runs=2)
    found = Probe(noisy, noisy)(key, jax.random.key(0), image, 0).cosine
    runs = [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(NUM_KEYS)]
    gradient = jax.grad(lambda x, run: cross_entropy(noisy.run(run, x), 0))
    units = [g / np.linalg.norm(g) for g in (np.ravel(gradient(image, run)) for run in runs)]
    pairs = [units[i] @ units[j] for i in range(NUM_KEYS) for j in range(i)]
    assert float(found) == pytest.approx(np.mean(pairs), rel=1e-9) and np.ptp(pairs) > 0.1


def test_the_derivative_of_noise_equals_its_differences_and_another_does_not():
    noisy = Defense(NoiseOnly(sigma=0.1), None, num_runs=1)
    assert np.sum(derivative_errors(noisy, exact, seed=0) > 1e-5) <= 1
    halved = functools.partial(dataclasses.replace, purifier=Halved())
    assert np.median(derivative_errors(noisy, halved, seed=0)) == pytest.approx(0.5, abs=0.1)


@flax.struct.dataclass
class Halved:
    """Noise whose derivative is half of its own."""

    def __call__(self, key, image):
        noisy = NoiseOnly(sigma=0.1)(key, image)
        return 0.5 * noisy + 0.5 * jax.lax.stop_gradient(noisy)


def test_what_rounding_may_be_counts_neither_way_and_half_a_gain_is_too_little():
    found = measured(
        gain=[0.04, 0.2, 0.1999],
        random_gain=[0.0, 0.2005, 0.2],
        predicted=[0.1, 5e-4, 0.1],
        resolution=[1e-3] * 3,
    )
    assert beats_random(found).numbers == {"ahead": 1, "behind": 0, "of": 3}
    assert as_predicted(found).numbers["of"] == 2 and as_predicted(found).numbers["within"] == 1


def test_single_points_by_hand():
    gain, random_gain, predicted = [0.4, 0.1, 1.0, 0.2], [0.1, 0.2, 1.0, 0.1], [0.3, 0.1, 0.2, 0.0]
    found = measured(gain=gain, random_gain=random_gain, predicted=predicted, resolution=[1e-3] * 4)
    assert beats_random(found).numbers == {"ahead": 2, "behind": 1, "of": 4}  # the third is a tie
    assert beats_random(found).p == pytest.approx(7 / 8)
    assert as_predicted(found).numbers["within"] == 2 and as_predicted(found).p == pytest.approx(
        7 / 8
    )
    still = measured(gain=[0.0], random_gain=[0.0], predicted=[0.0], resolution=[1e-3])
    assert beats_random(still).verdict == as_predicted(still).verdict == NOT_INFORMATIVE


def test_a_loss_that_cannot_move_fails_a_check():
    """Of answers so large that the cross-entropy is exactly zero, and so is its gradient."""
    images, labels = (jnp.asarray(array[:20]) for array in held_out())
    keys = image_keys(0, np.arange(20), stream="defense")
    found = {}
    for scale in (1.0, 1e4):
        network = Changed(trained_network(), after=lambda logits, by=scale: by * logits)
        defense = Defense(Identity(), network, num_runs=1)
        local = probe_batch(Probe(defense, exact(defense), eps=EPS), keys, keys, images, labels)
        found[scale] = has_gradient(measured(**jax.device_get(local)._asdict()))
    assert found[1.0].verdict == PASS and found[1.0].numbers == {"without": 0, "of": 20}
    assert found[1e4].verdict == FAIL and found[1e4].numbers["without"] > 10


@pytest.mark.parametrize(("flat", "verdict"), [(0, PASS), (1, PASS), (2, FAIL), (10, FAIL)])
def test_a_tenth_of_the_images_may_lie_where_the_loss_is_flat(flat, verdict):
    values = [0.0] * flat + [0.1] * (10 - flat)
    assert has_gradient(measured(gain=values, predicted=values)).verdict == verdict
    step = [0.0, 0.1] * 5  # a gain alone may be lost in rounding
    assert has_gradient(measured(gain=[0.0] * 10, predicted=step)).verdict == FAIL
    assert has_gradient(measured(gain=[0.0] * 10, predicted=[0.1] * 10)).verdict == PASS


def test_checks_share_one_level():
    """0.004 alone would be a FAIL, as one of four it is not."""
    findings = {
        name: Finding({}, p) for name, p in zip("abcd", (0.004, 0.5, 0.002, 0.9), strict=True)
    }
    findings["e"] = Finding({}, verdict=NOT_INFORMATIVE)
    verdicts = judge(findings)
    assert [v.verdict for v in verdicts] == [PASS, PASS, FAIL, PASS, NOT_INFORMATIVE]
    assert [v.p for v in verdicts] == pytest.approx([0.012, 1.0, 0.008, 1.0, None])

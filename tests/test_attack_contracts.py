"""The contract of every attack in the table, and of every option that changes its program.

As a script it attacks batches that are split over four devices, and writes the results to a file.
"""

import contextlib
import dataclasses
import functools
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks import ATTACKS
from attacks.ascent import EOTS, Ascent
from attacks.losses import LOSSES
from attacks.norms import NORMS
from attacks.objective import Expected
from attacks.types import Attacked
from purify.runtime import parallel
from purify.runtime.compilation import trace_without_pauses
from tests.command import on_devices
from tests.oracles import QUICK, THOROUGH, double_precision, few_optimisations
from tests.test_ascent import (
    CLASSES,
    EPS,
    NORMS_OF,
    SHAPE,
    distances,
    inputs,
    noisy,
    objective_by_hand,
    run_keys,
    traces,
)

N = 8  # images of a batch: two for each of four devices

# A few steps of every attack, so that they can also be taken one operation after the other. Of one
# that is not named here see few.
SMALL = {
    "pgd": dict(num_steps=3, restarts=2),
    "apgd": dict(num_steps=5, restarts=2),
    "fab": dict(num_steps=4, targets=2, restarts=2),
    "fmn": dict(num_steps=6),
    "carlini_wagner": dict(num_steps=8, searches=2, learning_rate=0.3, first_c=10.0),
    "square": dict(num_steps=8, restarts=2),
    "rays": dict(num_steps=25, eot_samples=3),
}
# id -> (name, options, arguments by keyword): every option that has a program of its own. Left out
# is keep='last', which promises no loss at all.
OPTIONS = {
    "pgd-l2": ("pgd", dict(norm="l2", loss="dlr", eot="loss_of_mean")),
    "pgd-sign_vote": ("pgd", dict(eot="sign_vote")),
    "pgd-selective": ("pgd", dict(norm="l2", loss="margin", eot="selective")),
    "pgd-spsa": ("pgd", dict(loss="margin", estimate="spsa", directions=4)),
    "pgd-nes": ("pgd", dict(norm="l2", estimate="nes", directions=4)),
    "pgd-mim": ("pgd", dict(loss="margin", momentum=1.0)),
    "pgd-direction_fn": ("pgd", dict(loss="margin"), "direction_fn"),
    "pgd-penalty_fn": ("pgd", dict(norm="l2", loss="margin"), "penalty_fn"),
    "pgd-starts": ("pgd", dict(loss="margin", given_starts=2), "starts"),
    "apgd-l2": ("apgd", dict(norm="l2", loss="margin", eot="selective")),
    "apgd-l1": ("apgd", dict(norm="l1", loss="dlr", eot="sign_vote")),
    "apgd-softmax": ("apgd", dict(norm="l1", eot="loss_of_mean", average="softmax"), "penalty_fn"),
    "apgd-targeted": ("apgd", dict(loss="dlr", targets=2)),
    "apgd-starts": ("apgd", dict(norm="l2", loss="margin", given_starts=2, targets=3), "starts"),
    "apgd-once": ("apgd", dict(loss="margin", remeasure=False)),
    "fab-l2": ("fab", dict(norm="l2", eot="loss_of_mean", average="softmax")),
    "fab-l1": ("fab", dict(norm="l1", loss="dlr")),
    "fmn-l2": ("fmn", dict(norm="l2", eot="loss_of_mean", average="softmax")),
    "fmn-l1": ("fmn", dict(norm="l1", loss="cross_entropy")),
    "square-l2": ("square", dict(norm="l2", loss="cross_entropy", eot="loss_of_mean")),
}


def every_program() -> dict[str, tuple]:
    """OPTIONS, and every entry of the attacks' own table: as it is, in each norm, and of an ascent
    by each way to go along the gradients of several runs."""
    cases = {}
    for name, attack in ATTACKS.items():
        first, *others = NORMS_OF[name]
        cases[name] = (name, dict(norm=first))
        cases |= {f"{name}-{norm}": (name, dict(norm=norm)) for norm in others}
        told = {options.get("eot") for of, options, *_ in OPTIONS.values() if of == name}
        others = [eot for eot in EOTS[1:] if issubclass(attack, Ascent) and eot not in told]
        cases |= {f"{name}-{eot}": (name, dict(eot=eot, loss="margin")) for eot in others}
    return cases | OPTIONS


CASES = every_program()
every_case = pytest.mark.parametrize("case", CASES)
every_attack = pytest.mark.parametrize("case", ATTACKS)
# What takes long is asked of an option only where there is time.
every_attack_first = pytest.mark.parametrize(
    "case",
    [case if case in ATTACKS else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)


def few(name: str) -> dict:
    """What an attack itself counts, such as steps or restarts, by its defaults but eight at most,
    and of targets no more than there are."""
    shared = {field.name for field in dataclasses.fields(Expected)}
    own = [field for field in dataclasses.fields(ATTACKS[name]) if field.name not in shared]
    counts = {field.name: field.default for field in own if type(field.default) is int}
    return {name: min(n, CLASSES - 1 if name == "targets" else 8) for name, n in counts.items()}


def small(name: str, **options):
    """The attack on its few steps, in the ball of EPS."""
    options = {"norm": NORMS_OF[name][0]} | options
    eps = EPS[options["norm"]]
    options |= {"step_size": eps / 2} if name == "pgd" else {}
    shared = dict(eps=eps, selection_draws=4, eot_samples=2)
    return attacks.build(name, **shared | (SMALL.get(name) or few(name)) | options)


def make(case: str):
    name, options, *_ = CASES[case]
    return small(name, **options)


def phase(key):  # never a pixel of the box's border, where signs would hang on rounding
    return (jax.random.key_data(key) % 7).sum() / 7.3 + 0.01


def along(weights, key, image):
    """A direction_fn that depends on the key and on the image."""
    return weights * (image - phase(key))


def penalty(weights, key, image):
    """A penalty_fn that does."""
    return phase(key).astype(image.dtype) * jnp.sum(weights * image)


def batch(case: str, dtype=np.float32, seed: int = 1):
    """Keys, images and labels, what else there is for each image, and what is the same for all."""
    keys, images, labels = inputs(N, dtype, seed)
    rng = np.random.default_rng(seed)
    each, common = {}, {"logits_fn": noisy(seed - 1, dtype)}
    for name in CASES[case][2:]:
        weights = jnp.asarray(rng.normal(size=SHAPE), dtype)
        if name == "starts":  # also from out of the ball and the box
            reach = 2 * make(case).eps * rng.uniform(-1, 1, (N, 2, *SHAPE))
            each[name] = images[:, None] + jnp.asarray(reach, dtype)
        else:
            function = {"direction_fn": along, "penalty_fn": penalty}[name]
            common[name] = jax.tree_util.Partial(function, weights)
    return (keys, images, labels, each), common


def run(attack, each, common) -> Attacked:
    """The attack on a batch."""

    def one(key, image, label, own):
        return attack(key, image=image, label=label, **own, **common)

    return jax.vmap(one)(*each)


# As for real runs, and quickly; an attack is a key of what is compiled, by its options alone.
compiled, quickly = (
    jax.jit(run, static_argnums=0, compiler_options=options) for options in (THOROUGH, QUICK)
)


def call(case: str, *args) -> Attacked:
    """A fresh attack on a batch: as for real runs where it is an entry of the table."""
    return jax.device_get((compiled if case in ATTACKS else quickly)(make(case), *args))


@functools.cache
def result(case: str) -> Attacked:
    return call(case, *batch(case))


@functools.cache
def in_double(case: str) -> Attacked:
    """In double precision: in single, a sign step could turn rounding into another image."""
    with double_precision():
        return jax.device_get(quickly(make(case), *batch(case, np.float64)))


# The image


@every_case
def test_images_keep_shape_and_dtype_and_lie_in_the_ball_and_the_box(case):
    attack, found, (_, images, _, _) = make(case), result(case), batch(case)[0]
    assert found.image.shape == images.shape and found.image.dtype == images.dtype
    assert found.loss.shape == found.start_loss.shape == found.interim.shape == (N,)
    assert found.interim.dtype == bool
    assert all(np.isfinite(leaf).all() for leaf in found)
    assert (distances(attack.norm, found.image, images) <= attack.eps + 1e-6).all()
    assert found.image.min() >= 0 and found.image.max() <= 1
    # Some go a good part of the way, so that there was something to keep in.
    assert distances(attack.norm, found.image, images).max() > 0.5 * attack.eps


@every_case
def test_the_key_decides_the_image_and_a_second_call_does_not_retrace(case):
    first, (each, common), traced = result(case), batch(case), len(traces)
    jax.tree.map(np.testing.assert_array_equal, call(case, each, common), first)
    changed = [((jax.random.split(jax.random.key(9), N), *each[1:]), common)]
    # Nor does what it attacks and is given compile anew: those are arguments.
    (*_, own), others = batch(case, seed=4)
    changed += [(each, common | {name: other}) for name, other in others.items()]
    changed += [((*each[:3], own), common)] if own else []
    for args in changed:
        assert (call(case, *args).image != first.image).any()
    assert len(traces) == traced


@every_attack
def test_it_is_one_program_that_asks_the_host_for_nothing(case):
    """And that does not grow with its steps, if it has any."""
    attack = make(case)
    more = {"num_steps": 2 * attack.num_steps} if hasattr(attack, "num_steps") else {}
    operations, longer = (
        str(compiled.trace(each, *batch(case)).jaxpr)
        for each in (attack, dataclasses.replace(attack, **more))
    )
    assert operations.count(" = ") == longer.count(" = ")
    assert "callback" not in operations and "infeed" not in operations


@every_case
def test_in_one_batch_shape_neighbours_and_position_change_no_bit(case):
    (each, common), (others, _) = batch(case), batch(case, seed=2)
    moved = call(case, jax.tree.map(lambda a, b: b.at[2].set(a[0]), each, others), common)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b[0]), moved, result(case))


@every_attack_first
def test_a_nan_is_returned_and_not_hidden(case):
    """Where the gradient breaks down the attack would be weak without a sign of it."""
    attack, (each, common) = make(case), batch(case)
    if not attack.gradient_queries:
        pytest.skip("it takes no gradient")

    def broken(key, image):
        return noisy()(key, image) + jnp.sqrt(image - image).sum()

    attack = dataclasses.replace(attack, eot_samples=1)
    found = quickly(attack, each, common | {"logits_fn": jax.tree_util.Partial(broken)})
    assert np.isnan(found.image).any((1, 2, 3)).all() and np.isnan(found.loss).all()


# Never weaker than where it started


class Chosen(Exception):
    """In the place of a choice; its argument is the key."""


def selection_key(attack, key, **arguments):
    """The key of the draws by which an attack chooses at the end, as it gives it to `choose`."""

    def choose(self, key, *args, **kwargs):
        raise Chosen(key)

    with mock.patch.object(type(attack), "choose", choose), pytest.raises(Chosen) as chosen:
        attack(key, **arguments)
    return chosen.value.args[0]


def on_selection_draws(attack, base, logits_fn, image, label, penalty_fn=None):
    """The loss of an image on the draws by which one is chosen, as loops over the runs."""
    eot = "loss_of_mean" if attack.eot == "loss_of_mean" else "mean_of_loss"
    group = attack.eot_samples if eot == "loss_of_mean" else 1
    losses = []
    for draw in run_keys(base, -(-attack.selection_draws // group)):
        args = eot, attack.average, logits_fn, run_keys(draw, group), image, label
        losses.append(objective_by_hand(*args, LOSSES[attack.loss]))
        if penalty_fn is not None:
            losses[-1] -= sum(penalty_fn(key, image) for key in run_keys(draw, group)) / group
    return sum(losses) / len(losses)


@every_case
def test_no_image_is_weaker_than_the_clean_one_on_the_selection_draws(case):
    """Both losses that are returned are those of these images, and the clean one is a candidate."""
    attack, found, ((keys, images, labels, own), common) = make(case), result(case), batch(case)

    @jax.jit  # nothing that it returns depends on the candidates, so they are not computed
    def chosen_by(keys, images, labels, own):
        def one(key, image, label, own):
            return selection_key(attack, key, image=image, label=label, **own, **common)

        return jax.vmap(one)(keys, images, labels, own)

    bases = chosen_by(keys, images, labels, own)

    def losses(images):
        kept = {name: fn for name, fn in common.items() if name != "direction_fn"}
        fn = functools.partial(on_selection_draws, attack, **kept)
        return jax.vmap(lambda k, x, y: fn(k, image=x, label=y))(bases, images, labels)

    np.testing.assert_allclose(found.loss, losses(jnp.asarray(found.image)), atol=2e-5)
    np.testing.assert_allclose(found.start_loss, losses(images), atol=2e-5)
    assert (found.loss > found.start_loss + 1e-2).any()  # it attacks
    for i in range(8):  # what was attacked before is hard to beat
        assert (found.loss >= found.start_loss).all()
        again = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        found = call(case, (again, jnp.asarray(found.image), labels, own), common)


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("-starts")])
def test_given_starts_are_never_lost_where_answers_are_not_random(case):
    """Then the losses of ranking and selection are the same. A targeted run climbs another loss,
    but where all classes are aimed at, the margin is the largest of theirs."""
    attack, common = make(case), {"logits_fn": noisy(sigma=0.0)}
    assert attack.targets in (0, CLASSES - 1) and attack.loss == "margin"
    keys, images, labels, _ = batch(case)[0]
    weak = dataclasses.replace(attack, num_steps=1, restarts=1)

    def found(attack, start):
        starts = jnp.stack([images, start], 1)
        return quickly(attack, (keys, images, labels, {"starts": starts}), common)

    best = found(attack, images)
    assert (found(weak, images).loss < best.loss - 1e-3).any()  # a step alone is not enough
    assert (found(weak, best.image).loss >= best.loss - 1e-5).all()


# The same compiled, batched, alone and on several devices


def assert_same_outcome(ours: Attacked, theirs: Attacked, case: str) -> None:
    """In single precision: the loss to rounding, and the answers on fresh draws. One image of the
    batch may differ: where a sign or a comparison turns on the last bit, its search does."""
    (_, _, labels, _), common = batch(case)
    draws = jax.random.split(jax.random.key(7), 16)

    def right(images):
        logits_fn = jax.vmap(common["logits_fn"], (0, None))
        logits = jax.vmap(logits_fn, (None, 0))(draws, jnp.asarray(images))
        return np.asarray(logits.argmax(-1) == labels[:, None])

    differ = np.abs(ours.loss - theirs.loss) > 1e-5
    differ |= (right(ours.image) != right(theirs.image)).any(1)
    assert differ.sum() <= 1


@every_attack_first
def test_compiled_and_batched_it_takes_the_steps_it_takes_alone_and_eagerly(case):
    with double_precision(), jax.disable_jit():
        each, common = batch(case, np.float64)
        key, image, label, own = jax.tree.map(lambda a: a[1], each)
        alone = make(case)(key, image=image, label=label, **own, **common)
    assert alone.image.dtype == np.float64
    for a, b in zip(alone, in_double(case), strict=True):
        np.testing.assert_allclose(a, b[1], atol=1e-9)


@every_attack
def test_compiled_it_has_the_outcome_it_has_uncompiled(case):
    with few_optimisations():
        uncompiled = jax.device_get(run(make(case), *batch(case)))
    assert_same_outcome(uncompiled, result(case), case)


def write_sharded(path: str, *names: str) -> None:
    """Results of batches split over four devices; names: '<case> <dtype>'."""
    arrays = {}
    for name in names:
        case, dtype = name.split()
        with double_precision() if dtype == "float64" else contextlib.nullcontext():
            each, common = batch(case, dtype)
            found = quickly(make(case), parallel.shard(each), parallel.replicate(common))
            assert {s.data.shape[0] for s in found.image.addressable_shards} == {N // 4}
            arrays |= {f"{name} {k}": np.asarray(v) for k, v in found._asdict().items()}
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def four_devices(request, tmp_path_factory):
    """(case, dtype) -> the result, of the cases that are asked for."""
    path = tmp_path_factory.mktemp("sharded") / "attacked.npz"
    asked = [item for item in request.session.items if "four_devices" in item.fixturenames]
    cases = {item.callspec.params["case"] for item in asked if item.path == request.path}
    names = [f"{case} {dtype}" for case in sorted(cases) for dtype in ("float64", "float32")]
    names = [name for name in names if name.split()[0] in ATTACKS or name.endswith("64")]
    command = [sys.executable, __file__, str(path), *names]
    done = subprocess.run(command, env=on_devices(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arrays = np.load(path)
    return lambda case, dtype: Attacked(*(arrays[f"{case} {dtype} {k}"] for k in Attacked._fields))


@every_attack_first
def test_four_devices_take_the_steps_that_one_takes(case, four_devices):
    spread = four_devices(case, "float64")
    assert spread.image.dtype == np.float64
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), spread, in_double(case))


@every_attack
def test_four_devices_have_the_outcome_that_one_has(case, four_devices):
    assert_same_outcome(four_devices(case, "float32"), result(case), case)


# The cases


def test_new_attacks_norms_losses_and_options_join_the_contract():
    """What is told here of attacks is of such as there are; of others their own table tells it."""
    assert set(SMALL) | {name for name, *_ in OPTIONS.values()} <= set(ATTACKS) <= set(CASES)
    assert set(EPS) == set(NORMS) and all(NORMS_OF.values())
    made = [(name, small(name, **options)) for name, options, *_ in CASES.values()]
    for name in ATTACKS:
        assert {attack.norm for of, attack in made if of == name} == set(NORMS_OF[name])
    ascents = [(name, attack) for name, attack in made if isinstance(attack, Ascent)]
    for name in {name for name, _ in ascents}:
        assert {attack.eot for of, attack in ascents if of == name} == set(EOTS)
    for field, known in Ascent.choices().items():
        assert {getattr(attack, field) for _, attack in ascents} == set(known) - {"last"}


if __name__ == "__main__":
    trace_without_pauses()
    write_sharded(*sys.argv[1:])

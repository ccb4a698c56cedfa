"""Training: options, the step against hand-written oracles, and runs cut off in every way."""

import functools
import importlib
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from purify import models
from purify.data import datasets
from purify.models.networks import Classifier, Score
from purify.random import stream_key
from purify.saving.checkpoint import Checkpoints, load_score, weight_hash
from purify.saving.jsonl import read_lines
from purify.training import train_classifier, train_score
from purify.training.loop import TrainingDiverged, fit, init_state, make_train_step
from purify.training.options import SCHEDULES, TrainOptions
from purify.training.train_score import name_by_sigma
from tests.command import ROOT, on_devices
from tests.oracles import QUICK

SEED, SHAPE = 3, (2, 2, 1)
traces = []  # one entry for every time a loss is traced


# Options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_steps=0), "num_steps=0 must be at least 1"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(log_every=0), "log_every=0 must be at least 1"),
        (dict(checkpoint_every=-1), "checkpoint_every=-1 must be at least 1"),
        (dict(accumulate=0), "accumulate=0 must be at least 1"),
        (dict(accumulate=3), "accumulate=3 must divide batch_size=2"),
        (dict(algorithm="lion"), "algorithm='lion' is unknown; known: adam, sgd"),
        (dict(precision="int8"), "precision='int8' is unknown; known: float32, bfloat16"),
        (dict(schedule="step"), "schedule='step' is unknown; known: constant, cosine"),
        (dict(learning_rate=0.0), "learning_rate=0.0 must be positive"),
        (dict(learning_rate=float("nan")), "learning_rate=nan must be positive"),
        (dict(clip_norm=-1.0), "clip_norm=-1.0 must be at least 0 and finite"),
        (dict(ema_decay=1.0), "ema_decay=1.0 must be at least 0 and below 1"),
        (dict(ema_decay=-0.1), "ema_decay=-0.1 must be at least 0 and below 1"),
        (dict(beta1=1.0), "beta1=1.0 must be at least 0 and below 1"),
        (dict(warmup_steps=-1), "warmup_steps=-1 must be at least 0"),
        (dict(weight_decay=-0.1), "weight_decay=-0.1 must be at least 0"),
    ],
)
def test_an_impossible_option_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**dict(num_steps=10, batch_size=2, learning_rate=0.1) | changes)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_learning_rate_warms_up_linearly_and_then_follows_its_schedule(schedule, warmup):
    options = TrainOptions(12, 2, 0.3, warmup_steps=warmup, schedule=schedule)
    for step in range(12):
        progress = (step - warmup) / (12 - warmup)
        after = 0.3 * (0.5 * (1 + np.cos(np.pi * progress)) if schedule == "cosine" else 1)
        expected = 0.3 * (step + 1) / warmup if step < warmup else after
        # A float32 cosine, near 0 at the end.
        assert float(options.learning_rate_at(step)) == pytest.approx(expected, rel=1e-5)


# One step


def small_options(**changes) -> TrainOptions:
    base = dict(
        num_steps=7,
        batch_size=4,
        learning_rate=0.05,
        warmup_steps=2,
        beta1=0.8,
        weight_decay=0.01,
        clip_norm=0.5,
        ema_decay=0.7,
        log_every=1,
        checkpoint_every=3,
    )
    return TrainOptions(**base | changes)  # fmt: skip


def small_loss(variables, key, image, label):
    """A loss that uses everything a step hands out, and a statistic of the whole batch."""
    traces.append(image.shape)
    noise = jax.random.normal(key, image.shape)
    params, mean = variables["params"], jax.lax.pmean(image.mean(), "batch")
    error = params["scale"] * image + params["shift"] * noise - 0.1 * label
    stats = {"batch_stats": 0.9 * variables["batch_stats"] + 0.1 * mean}
    return jnp.sum(error**2), {"mean_label": (label.astype(jnp.float32), jnp.ones(()))}, stats


def small_variables():
    return {"params": small_params(), "batch_stats": jnp.float32(0.5)}


def small_params():
    return {"scale": jnp.array([[[0.5], [2.0]], [[-1.0], [0.1]]]), "shift": jnp.float32(0.3)}


def small_step(options: TrainOptions, augment=lambda key, image: image):
    return make_train_step(
        small_loss,
        options.optimizer(),
        ema_decay=options.ema_decay,
        augment=augment,
        accumulate=options.accumulate,
    )


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (18, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, 3, 18).astype(np.int32)
    return datasets.Dataset(images, labels, ("a", "b", "c"), "small", "train")


def test_optimizer_is_adam_with_decoupled_decay_on_clipped_gradients(x64):
    """Written out: clip to norm 0.5, moments, their corrections, decay, rate of the step."""
    options = small_options()
    optimizer = options.optimizer()
    params = np.array([0.5, -2.0, 1.0])
    state, m, v = optimizer.init(jnp.asarray(params)), np.zeros(3), np.zeros(3)
    rng = np.random.default_rng(0)
    for step, scale in enumerate([0.1, 1e6, 1e-3, 5.0]):
        gradient = scale * rng.normal(size=3)
        updates, state = optimizer.update(jnp.asarray(gradient), state, jnp.asarray(params))
        gradient *= min(1, 0.5 / np.linalg.norm(gradient))
        m = 0.8 * m + 0.2 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - 0.8 ** (step + 1))
        direction /= np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
        rate = float(options.learning_rate_at(step))
        expected = -rate * (direction + 0.01 * params)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)  # of the rate, a float32
        params = params + np.asarray(updates)


def test_a_step_averages_single_images_and_reports_sums_and_counts(dataset):
    """Each image has its own key, of the step and its dataset index, split for its augmentation."""
    options = small_options()

    def augment(key, image):
        return image + 0.1 * jax.random.uniform(key)

    step = small_step(options, augment)
    indices = np.array([17, 5])
    batch = (indices, dataset.images[indices], dataset.labels[indices])
    params, key = small_params(), jax.random.key(2)
    state = init_state(small_variables(), options.optimizer()).replace(step=jnp.asarray(4))

    def by_hand(params):
        total = mean = 0.0
        alone = jax.vmap(small_loss, (None, None, 0, None), (0, 0, None), axis_name="batch")
        for index, image, label in zip(*batch, strict=True):
            own = jax.random.fold_in(jax.random.fold_in(key, 4), index)
            augment_key, loss_key = jax.random.split(own)
            image = augment(augment_key, image.astype(np.float32) / 255)
            variables = {"params": params, "batch_stats": 0.0}
            total += alone(variables, loss_key, image[None], jnp.asarray(label))[0][0]
            mean += image.mean()
        return total / 2, mean / 2

    (loss, mean), gradient = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(params)
    after, metrics = step(state, key, *batch)
    assert int(after.step) == 5
    updates, _ = options.optimizer().update(gradient, options.optimizer().init(params), params)
    expected = jax.tree.map(jnp.add, params, updates)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(compare, after.params, expected)
    assert after.stats["batch_stats"] == pytest.approx(0.9 * 0.5 + 0.1 * float(mean), rel=1e-5)
    assert metrics["loss"] == (pytest.approx(float(loss), rel=1e-5), 1)
    assert metrics["mean_label"] == (dataset.labels[indices].sum(), 2)
    for name, tree in (("gradient_norm", gradient), ("weight_norm", expected)):
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
        assert metrics[name] == (pytest.approx(norm, rel=1e-5), 1)  # before clipping


def test_sgd_is_nesterovs_with_decay_in_the_gradient(x64):
    """Written out: clip, add decay, velocity, and one more look ahead along it."""
    options = small_options(algorithm="sgd", clip_norm=100.0)
    optimizer = options.optimizer()
    params, velocity = np.array([0.5, -2.0, 1.0]), np.zeros(3)
    state, rng = optimizer.init(jnp.asarray(params)), np.random.default_rng(0)
    for step in range(4):
        gradient = rng.normal(size=3)
        updates, state = optimizer.update(jnp.asarray(gradient), state, jnp.asarray(params))
        gradient = gradient + 0.01 * params
        velocity = 0.8 * velocity + gradient
        rate = float(options.learning_rate_at(step))
        np.testing.assert_allclose(updates, -rate * (gradient + 0.8 * velocity), rtol=1e-6)
        params = params + np.asarray(updates)


def test_an_accumulated_gradient_is_that_of_the_whole_batch(dataset):
    indices = np.arange(8)
    batch = (indices, dataset.images[indices], dataset.labels[indices])
    results = []
    for accumulate in (1, 4):
        options = small_options(batch_size=8, accumulate=accumulate)
        state = init_state(small_variables(), options.optimizer())
        results.append(small_step(options)(state, jax.random.key(2), *batch))
    (whole, whole_metrics), (parts, part_metrics) = results
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(compare, (parts.params, part_metrics), (whole.params, whole_metrics))
    # Statistics move once a part, by its own mean.
    assert float(parts.stats["batch_stats"]) != pytest.approx(float(whole.stats["batch_stats"]))


@pytest.mark.parametrize(
    "arch", ["unet", pytest.param("ncsnv2", marks=pytest.mark.slow), "resnet", "cifar_resnet"]
)
def test_bfloat16_is_the_arithmetic_of_the_network_and_of_nothing_else(arch):
    options = {"num_classes": 3} if "resnet" in arch else {}
    small = {"unet": {"widths": (4, 8)}, "ncsnv2": {"features": 4}, "cifar_resnet": {"depth": 8}}
    network = models.build(arch, **options, **small.get(arch, {}))
    wrapper = Classifier if options else Score
    image = jnp.asarray(np.random.default_rng(0).random((8, 8, 1)), jnp.float32)
    variables = jax.jit(network.init, compiler_options=QUICK)(jax.random.key(0), image[None])
    exact, coarse = (
        wrapper(variables, network, precision=precision) for precision in ("float32", "bfloat16")
    )
    text = str(jax.make_jaxpr(lambda x: coarse(x))(image))
    convolutions = re.findall(r"(\w+)\[[\d,]+\] = conv2d", text)
    assert convolutions and set(convolutions) == {"bf16"}
    ours, theirs = (
        jax.jit(lambda x, net=net: net(x), compiler_options=QUICK)(image) for net in (coarse, exact)
    )
    assert ours.dtype == theirs.dtype == jnp.float32
    # Eight bits of mantissa, over a dozen layers.
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()
    assert np.any(ours != theirs)
    gradient = jax.grad(lambda v: (wrapper(v, network, precision="bfloat16")(image) ** 2).sum())
    shapes = jax.eval_shape(gradient, variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


# A run


class Interrupted(Exception):
    pass


class Spy:
    """A training step that notes what passes through it, and stops or spoils the run."""

    def __init__(self, step, *, stop_at: int | None = None, spoil=None, spoil_at: int = 4):
        self._step, self._stop_at, self._spoil, self._spoil_at = step, stop_at, spoil, spoil_at
        self.batches, self.states = [], []

    def __call__(self, state, key, indices, images, labels):
        at = int(state.step)
        if at == self._stop_at:
            raise Interrupted
        state, metrics = self._step(state, key, indices, images, labels)
        self.batches.append((at, np.asarray(indices)))
        variables = {"params": state.params, **state.stats}
        self.states.append(jax.tree.map(np.array, (variables, state.ema)))
        if self._spoil and at == self._spoil_at:
            metrics = metrics | {self._spoil[0]: (jnp.asarray(self._spoil[1]), jnp.ones(()))}
        return state, metrics


def run(folder, dataset, options=None, **spying):
    """The final state and the spy of a run in `folder`, from where it stands."""
    options = options or small_options()
    spy = Spy(small_step(options), **spying)
    state = init_state(small_variables(), options.optimizer())
    folder.mkdir(exist_ok=True)
    with Checkpoints(folder, training=True) as checkpoints:
        own = dict(seed=SEED, checkpoints=checkpoints, name_metrics=dict)
        return fit(state, spy, dataset, options, **own), spy


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("uninterrupted")
    state, spy = run(folder, dataset)
    return folder, state, spy


def test_the_average_follows_its_recursion(uninterrupted):
    """ema <- 0.7 ema + 0.3 variables after every step, from the initial weights."""
    expected = small_variables()
    for variables, ema in uninterrupted[2].states:
        expected = jax.tree.map(lambda e, p: 0.7 * e + 0.3 * p, expected, variables)
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(compare, ema, expected)
    difference = jax.tree.map(lambda e, p: np.abs(e - p).max(), ema, variables)
    assert min(jax.tree.leaves(difference)) > 1e-3  # it is not the weights themselves


def test_batches_follow_from_seed_and_step_alone(uninterrupted):
    steps, batches = zip(*uninterrupted[2].batches, strict=True)
    assert steps == tuple(range(7))
    for step, indices in zip(steps, batches, strict=True):
        np.testing.assert_array_equal(indices, datasets.batch_indices(SEED, step, 4, 18))


def test_one_compilation_serves_a_run_and_its_resumption(tmp_path, dataset):
    options = small_options()
    step, before = small_step(options), len(traces)
    for stop_at in (4, None):
        spy = Spy(step, stop_at=stop_at)
        state = init_state(small_variables(), options.optimizer())
        try:
            with Checkpoints(tmp_path, training=True) as checkpoints:
                own = dict(seed=SEED, checkpoints=checkpoints, name_metrics=dict)
                fit(state, spy, dataset, options, **own)
        except Interrupted:
            pass
    assert len(traces) == before + 1
    assert [at for at, _ in spy.batches] == [3, 4, 5, 6]


def visible_events(folder) -> dict:
    """{(tag, step): value} that TensorBoard shows: a restart hides its step and later ones.

    A record of an event file is its length, a checksum, that many bytes, another checksum.
    """
    visible = {}
    for path in sorted((folder / "events").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            if event.HasField("session_log"):
                visible = {k: v for k, v in visible.items() if k[1] < event.step}
            for value in event.summary.value:
                visible[value.tag, event.step] = value.simple_value
    return visible


@pytest.mark.parametrize("stop_at", [2, 5])
def test_an_interrupted_run_ends_in_the_same_bits_and_the_same_metrics(
    uninterrupted, tmp_path, dataset, stop_at
):
    """Before the first checkpoint, at step 3, and after it."""
    with pytest.raises(Interrupted):
        run(tmp_path, dataset, stop_at=stop_at)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == stop_at
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # cut off while it was written
    (events,) = (tmp_path / "events").iterdir()
    events.rename(events.with_name("0"))  # file names have a resolution of one second
    state, spy = run(tmp_path, dataset)
    assert spy.batches[0][0] == (0 if stop_at < 3 else 3)
    folder, expected, _ = uninterrupted
    assert weight_hash(state) == weight_hash(expected)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines == (folder / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert [record["step"] for record in records] == list(range(1, 8))
    events = visible_events(tmp_path)
    assert events == visible_events(folder)
    assert events == {
        (name, record["step"]): np.float32(value)
        for record in records
        for name, value in record.items()
        if name != "step"
    }


def test_a_finished_run_is_left_as_it_is(uninterrupted, tmp_path, dataset):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    state, spy = run(tmp_path, dataset)
    assert spy.batches == [] and weight_hash(state) == weight_hash(uninterrupted[1])


def test_metrics_are_means_over_the_steps_since_the_last_report(uninterrupted, tmp_path, dataset):
    """Also where log_every does not divide checkpoint_every; how often changes no weight."""
    state, _ = run(tmp_path, dataset, small_options(log_every=2, checkpoint_every=5))
    assert weight_hash(state) == weight_hash(uninterrupted[1])
    single = {line["step"]: line for line in read_lines(uninterrupted[0] / "metrics.jsonl")}
    reports = read_lines(tmp_path / "metrics.jsonl")
    assert [report["step"] for report in reports] == [2, 4, 5, 6, 7]
    first = 1
    for report in reports:
        steps = range(first, report["step"] + 1)
        for name in ("loss", "mean_label", "gradient_norm", "weight_norm"):
            mean = np.mean([single[step][name] for step in steps])
            assert report[name] == pytest.approx(mean, rel=1e-5)
        assert report["learning_rate"] == single[report["step"]]["learning_rate"]
        first = report["step"] + 1
    rates = [float(small_options().learning_rate_at(number)) for number in range(7)]
    assert [single[step]["learning_rate"] for step in range(1, 8)] == pytest.approx(rates, rel=1e-6)
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    "spoil", [("loss", np.nan), ("gradient_norm", np.inf), ("weight_norm", np.nan)]
)
def test_a_run_that_diverges_stops_with_step_rate_and_an_intact_checkpoint(
    uninterrupted, tmp_path, dataset, spoil
):
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, dataset, small_options(log_every=2), spoil=spoil)
    assert str(caught.value) == (
        f"{spoil[0]} became {spoil[1]} at step 5 with learning rate 0.05; last good checkpoint: "
        f"{tmp_path}/checkpoints/3; lower learning_rate, or lower clip_norm"
    )
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2, 3, 4]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        restored = checkpoints.restore()
    variables, ema = uninterrupted[2].states[2]
    assert weight_hash(restored["params"]) == weight_hash(variables["params"])
    assert weight_hash(restored["ema"]) == weight_hash(ema)
    state, _ = run(tmp_path, dataset)  # and it goes on from there
    assert weight_hash(state) == weight_hash(uninterrupted[1])


def test_a_learning_rate_that_overflows_stops_before_anything_is_saved(tmp_path, dataset):
    with pytest.raises(TrainingDiverged, match=r"with learning rate 2e\+37; .*: none was written"):
        run(tmp_path, dataset, small_options(learning_rate=4e37))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None


def test_a_damaged_checkpoint_stops_a_run_which_goes_on_without_it(
    uninterrupted, tmp_path, dataset
):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints/7"
    next(newest.glob("state/d/*")).write_bytes(b"")
    with pytest.raises(ValueError, match=f"checkpoint {newest} cannot be read .*damaged: state/d/"):
        run(tmp_path, dataset)
    shutil.rmtree(newest)
    state, spy = run(tmp_path, dataset)
    assert [at for at, _ in spy.batches] == [6]
    assert weight_hash(state) == weight_hash(uninterrupted[1])


def test_the_loss_of_a_noise_level_nobody_drew_is_left_out():
    sigmas = np.geomspace(0.8, 0.1, 8)
    by_level = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, 7.0, 8.0])
    named = name_by_sigma(sigmas, {"loss": 2.0, "loss_by_level": by_level}, num_bins=4)
    centres = np.sqrt(sigmas[::2] * sigmas[1::2])
    expected = dict(zip(centres[[0, 1, 3]], [1.0, 4.0, 7.5], strict=True))
    assert named == {"loss": 2.0} | {f"loss_by_sigma/{k:.3g}": v for k, v in expected.items()}


# The score model of the digits config, by its mode

SMALL = {
    "score.network.widths": (4,),
    "score.network.blocks": 0,
    "score.num_levels": 8,
    "score.train.batch_size": 8,
    "score.train.warmup_steps": 5,
    "score.train.augment": "flip",
    "score.train.schedule": "constant",  # one program, compiled once, for runs of any length
}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.load("digits8x8", "train", data_dir=folder)
    return folder


def small_config(tfds_dir, **train):
    config = importlib.import_module("configs.digits").get_config()
    config.update_from_flattened_dict(SMALL | {f"score.train.{k}": v for k, v in train.items()})
    config.data.dir = str(tfds_dir)
    return config


def final_state(workdir) -> dict:
    with Checkpoints(workdir / "score") as checkpoints:
        return checkpoints.restore()


def start(workdir, tfds_dir, *arguments: str, devices: int = 1, **train) -> subprocess.Popen:
    """python main.py --mode=train in a process of its own."""
    overrides = SMALL | {f"score.train.{k}": v for k, v in train.items()}
    command = ["--config=configs/digits.py", "--mode=train", f"--workdir={workdir}", *arguments]
    command += [f"--config.{field}={value}" for field, value in overrides.items()]
    return subprocess.Popen(
        [sys.executable, "main.py", *command],
        cwd=ROOT,
        env=on_devices(devices) | {"TFDS_DATA_DIR": str(tfds_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output = process.communicate()[0]
    assert process.returncode == 0, output


SHORT = dict(num_steps=8, checkpoint_every=4, log_every=1)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory, tfds_dir):
    """The workdir of a run on one device, in this process."""
    workdir = tmp_path_factory.mktemp("short")
    train_score.run(small_config(tfds_dir, **SHORT), workdir)
    return workdir


def test_a_run_traces_its_step_once_for_the_check_and_the_work(tmp_path, tfds_dir, monkeypatch):
    seen, dsm = [], train_score.dsm
    monkeypatch.setattr(
        train_score, "dsm", lambda *given, **named: (seen.append(1), dsm(*given, **named))[1]
    )
    train_score.run(small_config(tfds_dir, num_steps=2), tmp_path)
    assert len(seen) == 1


def test_four_devices_train_the_same_model_as_one(tmp_path, tfds_dir, short_run):
    """To rounding, for the mean over a batch is summed in another order, and in two parts; and what
    four devices saved, one can load. Compared by what the weights do: the biases in front of a
    group norm have no effect and a gradient of pure rounding, which Adam turns into full steps."""
    finish(start(tmp_path, tfds_dir, devices=4, **SHORT, accumulate=2))
    reports = [read_lines(folder / "score/metrics.jsonl") for folder in (short_run, tmp_path)]
    for ours, theirs in zip(*reports, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)  # measured: 1e-6 after twelve steps
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    one, other = (
        np.asarray(jax.jit(jax.vmap(load_score(folder)))(images))
        for folder in (short_run, tmp_path)
    )

    assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize(
    "sizes, said",
    [
        (dict(batch_size=6), "batch_size=6"),
        (dict(batch_size=12, accumulate=2), "batch_size / accumulate=6"),
    ],
)
def test_a_batch_that_cannot_be_split_over_the_devices_is_refused(tmp_path, tfds_dir, sizes, said):
    process = start(tmp_path, tfds_dir, devices=4, **sizes)
    output = process.communicate()[0].strip()
    expected = f"config.score.train.{said} must be a positive multiple of the 4 devices"
    assert (process.returncode, output) == (2, f"error: {expected}")


def test_resuming_with_other_settings_is_refused_by_field_but_reporting_may_change(
    short_run, tmp_path, tfds_dir, capsys
):
    shutil.copytree(short_run, tmp_path, dirs_exist_ok=True)
    other = small_config(tfds_dir, **SHORT, learning_rate=0.5, ema_decay=0.5)
    other.score.sigma_max = 0.7
    other.score.perturbation = "dct"  # of the default, Gaussian noise, nothing is recorded
    other.seed = 1
    with pytest.raises(ValueError, match="was made with other settings: ") as caught:
        train_score.run(other, tmp_path)
    fields = str(caught.value).split("settings: ")[1].split("; choose")[0].split("; ")
    assert fields == [
        "perturbation: None -> {'name': 'dct', 'power': 1.0}",
        "seed: 0 -> 1",
        "sigma_max: 0.6 -> 0.7",
        "train.ema_decay: 0.999 -> 0.5",
        "train.learning_rate: 0.002 -> 0.5",
    ]
    shutil.rmtree(tmp_path / "score/checkpoints/8")
    reporting = SHORT | dict(log_every=3, checkpoint_every=5)
    train_score.run(small_config(tfds_dir, **reporting), tmp_path)
    assert re.search(r"score: [\d,]+ parameters, 8 steps, in .*/score\n$", capsys.readouterr().out)
    assert weight_hash(final_state(tmp_path)) == weight_hash(final_state(short_run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score.train.augment": "mirror"}, "augment 'mirror' is unknown; known: none, flip,"),
        ({"score.train.batch_size": 1198}, "batch_size=1198 exceeds the 1197 images of digits8x8"),
        ({"score.train.ema_decay": 1.0}, "ema_decay=1.0 must be at least 0 and below 1"),
        ({"score.network.arch": "mlp"}, "arch 'mlp' is unknown; known: "),
        (
            {"score.network.arch": "resnet"},
            "arch 'resnet' is a classifier's network: it needs num_",
        ),
        ({"score.network.widths": (8, 8, 8, 8, 8)}, "image side 1 x 1 cannot be halved"),
        ({"score.perturbation": "blur"}, "perturbation 'blur' is unknown; known: gaussian, dct"),
        ({"score.head": "foo"}, "head='foo' is unknown; known: score, energy"),
        ({"score.sigma_min": 0.7}, "noise levels need 0 < sigma_min <= sigma_max"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(tmp_path, tfds_dir, changes, message):
    config = small_config(tfds_dir)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        train_score.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_classifier_is_refused_images_of_one_class(tmp_path, tfds_dir):
    config = small_config(tfds_dir)
    images, labels = np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, int)
    others = {"test_images": images[:2], "test_labels": [1, 0]}
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, **others)
    config.data.update(name="npz", path=str(tmp_path / "a.npz"))
    config.classifier.train.batch_size = 8
    with pytest.raises(ValueError, match="npz 'train' has images of the class '0' alone"):
        train_classifier.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_that_does_not_exist_lists_those_there_are(tmp_path, tfds_dir):
    config = small_config(tfds_dir)
    with config.unlocked():
        config.score.train.momentum = 0.9
    with pytest.raises(ValueError, match="config.score.train has no option momentum; known: acc"):
        train_score.run(config, tmp_path)


def test_keys_of_training_depend_on_the_seed(dataset, tmp_path):
    """Through the noise of the loss: the same batch, another seed, other weights."""
    options = small_options()
    step, batch = small_step(options), (np.arange(4), dataset.images[:4], dataset.labels[:4])
    hashes = {
        weight_hash(
            step(
                init_state(small_variables(), options.optimizer()),
                stream_key(seed, "train"),
                *batch,
            )[0]
        )
        for seed in (0, 0, 1)
    }
    assert len(hashes) == 2


# kill -9


def kill_once(process: subprocess.Popen, condition, delay: float = 0.0) -> None:
    """kill -9 from outside, `delay` seconds after the condition came true."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, f"it was over before it was killed: {output}"


def saved_steps(workdir) -> list[int]:
    folder = workdir / "score/checkpoints"
    return sorted(int(item.name) for item in folder.glob("*") if item.name.isdigit())


def assert_same_run(workdir, reference) -> None:
    ours, expected = final_state(workdir), final_state(reference)
    assert int(ours["step"]) == int(expected["step"])
    for part in ("params", "stats", "ema", "opt_state"):
        assert weight_hash(ours[part]) == weight_hash(expected[part])
    metrics = (folder / "score/metrics.jsonl" for folder in (workdir, reference))
    assert len({path.read_text() for path in metrics}) == 1


@pytest.mark.slow
def test_kill_9_and_the_same_command_again_end_in_the_same_bits(tmp_path, tfds_dir):
    """Killed once before the first checkpoint and once at some moment after it."""
    options = dict(num_steps=1000, checkpoint_every=100, log_every=50)
    reference = start(tmp_path / "reference", tfds_dir, **options)
    workdir = tmp_path / "killed"
    launch = functools.partial(start, workdir, tfds_dir, **options)
    kill_once(launch(), (workdir / "score/metrics.jsonl").exists)
    assert saved_steps(workdir) == []
    kill_once(launch(), lambda: saved_steps(workdir), np.random.default_rng().uniform(0, 0.5))
    assert 100 <= saved_steps(workdir)[-1] < 1000
    finish(launch())
    finish(reference)
    assert_same_run(workdir, tmp_path / "reference")
    # What is said about the run, once it is done.
    line = read_lines(workdir / "score/metrics.jsonl")[-1]
    levels = {name: value for name, value in line.items() if name.startswith("loss_by_sigma/")}
    assert len(levels) == 8 and np.isfinite(list(levels.values())).all()
    assert min(levels.values()) <= line["loss"] <= max(levels.values())
    assert {f"loss_by_sigma/{s:.3g}" for s in np.geomspace(0.6, 0.01, 8)} == set(levels)


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_saves_included_ends_in_the_same_bits(tmp_path, tfds_dir):
    options = dict(num_steps=150, checkpoint_every=1, log_every=1)
    reference = start(tmp_path / "reference", tfds_dir, **options)
    workdir, rng = tmp_path / "killed", np.random.default_rng()
    launch = functools.partial(start, workdir, tfds_dir, **options)
    for _ in range(10):
        before = saved_steps(workdir)
        kill_once(launch(), lambda b=before: saved_steps(workdir) != b, rng.uniform(0, 0.6))
    finish(launch())
    finish(reference)
    assert_same_run(workdir, tmp_path / "reference")

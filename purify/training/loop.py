"""Training: one jitted step for classifiers and score models, resumable to the bit."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from purify import models
from purify.data import datasets
from purify.data.classes import check_order
from purify.options import check_options, choose
from purify.random import check_seed, index_keys, stream_key
from purify.runtime import parallel
from purify.runtime.compilation import compiler_options
from purify.runtime.messages import counted
from purify.runtime.progress import progress
from purify.saving.checkpoint import Checkpoints, image_hash, run_folder
from purify.saving.settings import claim, read_settings
from purify.training.augment import AUGMENTATIONS
from purify.training.losses import Metrics
from purify.training.metrics import MetricWriter
from purify.training.options import TrainOptions
from purify.types import Array, Image, Key, PyTree

# Options that change what is reported and kept, not what is learnt: a resumed run may change them.
REPORTING = ("log_every", "checkpoint_every")
# (variables, key, image, label) -> (loss, metrics, running statistics), for one image of a batch
# that is the axis named 'batch' of a vmap; the statistics are the same for all of them
LossFn = Callable[[PyTree, Key, Image, Array], tuple[Array, Metrics, PyTree]]


class TrainingDiverged(ValueError):
    """The loss or the weights stopped being finite."""


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, updates done; stats: running statistics of batch normalisation, empty
    without it; ema: the averaged variables, {'params': ..., **stats}."""

    step: Array
    params: PyTree
    stats: PyTree
    ema: PyTree
    opt_state: PyTree


def init_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    stats = dict(variables)
    params = stats.pop("params")
    # A copy, because the step donates its state and may not donate one buffer twice.
    ema = jax.tree.map(jnp.copy, dict(variables))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, ema, optimizer.init(params))


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    augment: Callable[[Key, Image], Image],
    accumulate: int = 1,
) -> Callable:
    """The compiled step (state, key, indices, images, labels) -> (state, metrics); donates state.

    indices int [B], images uint8 [B, H, W, C], labels int [B], split over the devices. Each image
    has its own key, folded from the step and its dataset index. metrics: (sum, count) pairs.
    accumulate: see TrainOptions; it divides B.
    """

    def one(variables, key, image, label):
        augment_key, loss_key = jax.random.split(key)
        image = augment(augment_key, image.astype(jnp.float32) / 255.0)
        return loss_fn(variables, loss_key, image, label)

    batched = jax.vmap(one, (None, 0, 0, 0), (0, 0, None), axis_name="batch")

    def mean_loss(params, stats, batch):
        loss, metrics, stats = batched({"params": params, **stats}, *batch)
        return loss.mean(), (jax.tree.map(lambda m: m.sum(0), metrics), stats)

    def part(params, stats, batch):
        """(stats, what adds up over the parts of a batch)."""
        grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (metrics, stats)), gradient = grad_fn(params, stats, batch)
        return stats, (loss / accumulate, metrics, jax.tree.map(lambda g: g / accumulate, gradient))

    def train_step(state, key, indices, images, labels):
        keys = index_keys(jax.random.fold_in(key, state.step), indices)
        batch = (keys, images, labels)
        if accumulate == 1:
            stats, total = part(state.params, state.stats, batch)
        else:
            # Every part has images of every device.
            parts = jax.tree.map(
                lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), batch
            )

            def add(carry, batch):
                stats, new = part(state.params, carry[0], batch)
                return (stats, jax.tree.map(jnp.add, carry[1], new)), None

            first = jax.tree.map(lambda a: a[0], parts)
            shapes = jax.eval_shape(part, state.params, state.stats, first)[1]
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            (stats, total), _ = jax.lax.scan(add, (state.stats, zeros), parts)
        loss, metrics, gradient = total
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update({"params": params, **stats}, state.ema, 1.0 - ema_decay)
        norms = {"gradient_norm": gradient, "weight_norm": params}
        scalars = {"loss": loss} | {k: optax.tree.norm(v) for k, v in norms.items()}
        metrics |= {name: (value, jnp.ones(())) for name, value in scalars.items()}
        return TrainState(state.step + 1, params, stats, ema, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=parallel.replicated(),
        compiler_options=compiler_options(),
    )


def fit(
    state: TrainState,
    train_step: Callable,
    dataset: datasets.Dataset,
    options: TrainOptions,
    *,
    seed: int,
    checkpoints: Checkpoints,
    name_metrics: Callable[[dict], dict],
) -> TrainState:
    """Train from the newest of the checkpoints, if there is one, to num_steps.

    A run that is killed and started again ends in the same bits: batches, keys and learning rate
    are functions of the step alone. Raises TrainingDiverged where the loss or the weights are no
    longer finite; the last checkpoint was written before that.
    """
    parallel.check_batch_size("batch_size", options.batch_size)
    key = parallel.replicate(stream_key(seed, "train"))
    state = parallel.replicate(state)
    if checkpoints.latest_step is not None:
        abstract = jax.tree.map(_abstract, state)
        state = checkpoints.restore(abstract)
    first = int(state.step)
    if first >= options.num_steps:
        print(f"{checkpoints.folder.name}: all {counted(first, 'step')} were done before")
    writer = MetricWriter(checkpoints.folder, first_step=first)
    pending = []  # metrics still on the device, one entry a step
    steps = progress(
        range(first, options.num_steps),
        initial=first,
        total=options.num_steps,
        desc=f"train {checkpoints.folder.name}",
        unit="step",
    )
    for step in steps:
        indices = datasets.batch_indices(seed, step, options.batch_size, len(dataset.labels))
        batch = (indices, dataset.images[indices], dataset.labels[indices])
        state, metrics = train_step(state, key, *parallel.shard(batch))
        pending.append(metrics)
        done = step + 1
        save = done % options.checkpoint_every == 0 or done == options.num_steps
        if save or done % options.log_every == 0:
            report = _collect(pending, done, options, checkpoints)
            writer.write(done, {k: float(v) for k, v in name_metrics(report).items()})
            steps.set_postfix(loss=f"{report['loss']:.4g}")
            pending = []
        if save:
            checkpoints.save(done, state)
    return state


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    """Shape, dtype and placement, as Orbax wants them for restoring."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _collect(pending: list[dict], step: int, options: TrainOptions, checkpoints) -> dict:
    """Fetch the metrics of the last steps, check that all are finite, and average them."""
    fetched = parallel.fetch(pending)
    for at, metrics in enumerate(fetched, start=step - len(fetched)):
        for name in ("loss", "gradient_norm", "weight_norm"):
            if not math.isfinite(metrics[name][0]):
                good = checkpoints.latest_path or "none was written yet"
                clip = "lower clip_norm" if options.clip_norm else "set clip_norm, now 0 (none)"
                raise TrainingDiverged(
                    f"{name} became {metrics[name][0]} at step {at + 1} with learning rate "
                    f"{float(options.learning_rate_at(at)):.3g}; last good checkpoint: {good}; "
                    f"lower learning_rate, or {clip}"
                )
    totals = jax.tree.map(lambda *m: np.sum(m, axis=0), *fetched)
    # A noise level that no image has drawn has no mean.
    means = {k: np.where(n > 0, s / np.maximum(n, 1), np.nan) for k, (s, n) in totals.items()}
    return means | {"learning_rate": np.asarray(options.learning_rate_at(step - 1))}


def run_training(
    role: str,
    config,
    workdir: Path,
    make_loss_fn: Callable[[nn.Module], LossFn],
    *,
    extra_settings: dict,
    name_metrics: Callable[[dict], dict] = dict,
) -> TrainState:
    """Train the network of a role ('classifier' or 'score') into <workdir>/<role>, and say so.

    make_loss_fn: network -> loss function.
    extra_settings: what beside network, data and options makes the weights what they are.
    name_metrics: turns a report with arrays in it into one of scalars.
    """
    check_seed(config.seed, "config.seed")
    cfg = config[role].to_dict()
    check_options(f"config.{role}.train", TrainOptions, cfg["train"])
    options = TrainOptions(**cfg["train"])
    augment = choose("augment", AUGMENTATIONS, options.augment)
    dataset = _training_data(role, config.data, options)
    shape = dataset.images.shape[1:]
    network_settings = dict(cfg["network"])
    if role == "classifier":
        network_settings["num_classes"] = dataset.num_classes
    network = models.build(**network_settings)
    settings = _settings(role, config, dataset, network_settings) | extra_settings
    folder = run_folder(workdir, role)

    init_key = stream_key(config.seed, "init")
    variables = jax.jit(network.init)(init_key, jnp.zeros((1, *shape)))
    optimizer = options.optimizer()
    train_step = make_train_step(
        make_loss_fn(network),
        optimizer,
        ema_decay=options.ema_decay,
        augment=augment,
        accumulate=options.accumulate,
    )
    state, key = parallel.replicate((init_state(variables, optimizer), init_key))
    # Whatever does not fit together says so here, before anything is written; arguments that lie on
    # the devices as those of `fit` make it find this trace.
    first = np.arange(options.batch_size)
    example = parallel.shard((first, dataset.images[first], dataset.labels[first]))
    jax.eval_shape(train_step, state, key, *example)
    if role == "classifier" and (folder / "settings.json").exists():
        check_order(str(folder), dataset.class_names, read_settings(folder))
    with Checkpoints(folder, lock=claim(workdir, settings, role)) as checkpoints:
        state = fit(
            state,
            train_step,
            dataset,
            options,
            seed=config.seed,
            checkpoints=checkpoints,
            name_metrics=name_metrics,
        )
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{role}: {counted(count, 'parameter')}, {counted(int(state.step), 'step')}, in {folder}")
    return state


def _settings(role: str, config, dataset: datasets.Dataset, network: Mapping) -> dict:
    """What makes weights what they are, and what their labels mean."""
    trained = config[role].train.to_dict()
    return {
        "network": network,
        "image_shape": dataset.images.shape[1:],
        "num_classes": dataset.num_classes,
        "data": {k: config.data[k] for k in ("name", "path", "train_split")},
        "images": image_hash(dataset.images, dataset.labels),
        "seed": config.seed,
        "train": {k: v for k, v in trained.items() if k not in REPORTING},
        **({"class_names": dataset.class_names} if role == "classifier" else {}),
    }


def _training_data(role: str, cfg, options: TrainOptions) -> datasets.Dataset:
    """The training split; ValueError where batches cannot be made of it or split over devices, or
    a classifier has nothing to tell apart."""
    field = f"config.{role}.train.batch_size"
    parallel.check_batch_size(field, options.batch_size)
    if options.accumulate > 1:
        parallel.check_batch_size(f"{field} / accumulate", options.batch_size // options.accumulate)
    dataset = datasets.load(cfg.name, cfg.train_split, data_dir=cfg.dir, path=cfg.path)
    if options.batch_size > len(dataset.labels):
        raise ValueError(
            f"{field}={options.batch_size} exceeds the {len(dataset.labels)} images of {cfg.name} "
            f"{cfg.train_split!r}"
        )
    if role == "classifier" and len(seen := np.unique(dataset.labels)) < 2:
        raise ValueError(
            f"{cfg.name} {cfg.train_split!r} has images of the class "
            f"{dataset.class_names[seen[0]]!r} alone: a classifier needs two classes or more"
        )
    return dataset

"""Published PyTorch weights, by their names, into the networks of this project."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from purify import models
from purify.options import choose
from purify.runtime.errors import FileError
from purify.runtime.messages import few, printable, shown
from purify.saving.arrays import load_npz
from purify.saving.tensors import MAX_NAME, read_tensors
from purify.types import PyTree

# What wrappers put before every name, one inside the other: those that spread or average, and a
# Sequential that holds the network as its first, second, ... part. Weights whose name has one of
# AVERAGED are the moving average of those without.
PREFIX = re.compile(r"(module|model|model_state_dict|state_dict|net|network|\d+)\.")
AVERAGED = ("ema.", "ema_model.", "model_ema.", "ema_state_dict.", "state_dict_ema.", "shadow.")
# What wrappers of single modules put anywhere: torch.compile, FSDP and activation checkpointing.
INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# A part of such a Sequential, or of a wrapper, that normalises images before the network.
NORMALISER = re.compile(r"(^|\.)(?P<mean>mean|mu|new_mean)$|(^|\.)(?P<std>std|sigma|new_std)$")
LISTED = 20  # problems in a message
# No weights: counters, and the noise levels by which the published NCSNv2 divides its output.
IGNORED = re.compile(r"(^|\.)(num_batches_tracked|sigmas)$")
# PyTorch's name of a leaf -> (collection, Flax's name), by the number of axes of the weight
LEAVES = {
    ("weight", 4): ("params", "kernel"),
    ("weight", 2): ("params", "kernel"),
    ("weight", 1): ("params", "scale"),
    ("bias", 1): ("params", "bias"),
    ("running_mean", 1): ("batch_stats", "mean"),
    ("running_var", 1): ("batch_stats", "var"),
    **{(name, 1): ("params", name) for name in ("alpha", "gamma", "beta")},
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published network: its role here, its options for models.build, and its images."""

    role: str
    network: Mapping
    image_shape: tuple[int, int, int] = (32, 32, 3)


_CIFAR10 = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

ARCHITECTURES = {
    "ncsnv2": Architecture("score", dict(arch="ncsnv2", features=128)),
    "ncsnv2_28": Architecture("score", dict(arch="ncsnv2", features=128), (28, 28, 1)),
    # The classifier of the paper's code, and RobustBench's 'Standard', which normalises nothing.
    "wrn28_10": Architecture(
        "classifier", dict(arch="wide_resnet", depth=28, widen=10, form="meliketoy", **_CIFAR10)
    ),
    "wrn28_10_standard": Architecture(
        "classifier", dict(arch="wide_resnet", depth=28, widen=10, form="robustbench")
    ),
    "wrn70_16_standard": Architecture(
        "classifier", dict(arch="wide_resnet", depth=70, widen=16, form="robustbench")
    ),
    "resnet20": Architecture("classifier", dict(arch="cifar_resnet", depth=20, **_IMAGENET)),
    "resnet56": Architecture("classifier", dict(arch="cifar_resnet", depth=56, **_IMAGENET)),
}


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """name -> array of a .safetensors or .npz file, without the prefixes of wrappers; the moving
    average where the file has weights and their average.

    Raises ValueError for another kind of file (pickles are never loaded), FileError for damaged
    ones.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".npz"):
        raise ValueError(
            f"'{shown(path)}' must be .safetensors or .npz: other files of weights can run code "
            "when they are read; the README shows the two lines that turn a .pt or .th file into "
            "one"
        )
    if not path.exists():
        raise ValueError(f"'{shown(path)}' does not exist")
    read = load_npz if suffix == ".npz" else read_tensors
    weights = read(path, f"'{shown(path)}' cannot be read: it")
    if long := [name for name in weights if len(name) > MAX_NAME]:
        raise FileError(f"'{shown(path)}' has names of more than {MAX_NAME} letters: {few(long)}")
    # A wrapper's counters have no prefix, which would hide that all weights have one.
    weights = {
        INSIDE.sub("", name): weight
        for name, weight in weights.items()
        if weight.ndim or NORMALISER.search(name)
    }
    weights = _unwrap(weights)
    averaged = {
        name.removeprefix(prefix): w
        for name, w in weights.items()
        for prefix in AVERAGED
        if name.startswith(prefix)
    }
    return _unwrap(averaged) if averaged else weights


def _unwrap(weights: dict) -> dict:
    """Without the prefixes that all names share, but for those of a normaliser beside them."""
    while True:
        names = [name for name in weights if not NORMALISER.search(name)]
        shared = PREFIX.match(names[0]) if names else None
        if not shared or not all(name.startswith(shared[0]) for name in names):
            return weights
        weights = {name.removeprefix(shared[0]): w for name, w in weights.items()}


def import_weights(arch: str, weights: Mapping[str, np.ndarray]) -> tuple[dict, PyTree]:
    """(network settings, variables) of a published architecture with these weights.

    The number of classes is that of the weights, and a classifier normalises as its wrapper did
    where that is among them. Raises ValueError that lists, by PyTorch's names and shapes, every
    shape that differs, all that are not floating-point, and every name that is unknown or missing.
    """
    architecture = choose("arch", ARCHITECTURES, arch)
    _check_floating(weights)
    settings = dict(architecture.network)
    if architecture.role == "classifier":
        weights, constants = _take_normaliser(weights, architecture.image_shape[-1])
        settings |= constants | {"num_classes": _num_classes(architecture, weights)}
    expected = _expected(architecture, settings)
    paths = jax.tree.leaves_with_path(expected)
    given, shapes, unknown, missing = {}, [], [], []
    for name, weight in weights.items():
        if IGNORED.search(name):
            continue
        module, _, leaf = name.rpartition(".")
        if (leaf, weight.ndim) not in LEAVES:
            unknown.append(f"{name} {weight.shape} is no weight of this network")
            continue
        # A list's entries follow its name: layer1.0.conv1 -> layer1_0.conv1
        module = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", module)
        given[module, *LEAVES[leaf, weight.ndim]] = name, _to_channels_last(weight)
    leaves = []
    for path, leaf in paths:
        collection, *modules, kind = (key.key for key in path)
        where = ".".join(modules)
        name, weight = given.pop((where, collection, kind), (None, None))
        if weight is None:
            missing.append(f"{_published_name(where, collection, kind)} is missing")
        elif weight.shape != leaf.shape:
            differs = f"has shape {weights[name].shape}, expected {_published_shape(leaf.shape)}"
            shapes.append(f"{name} {differs}")
        leaves.append(weight)
    unknown += [f"{name} is no weight of this network" for name, _ in given.values()]
    if problems := shapes + unknown + missing:
        counts = f"{len(shapes)} of another shape, {len(unknown)} unknown, {len(missing)} missing"
        listed = few(problems, "\n  ", limit=LISTED)
        raise ValueError(f"these are not the weights of {arch}: {counts}\n  {listed}")
    leaves = [np.asarray(weight, np.float32) for weight in leaves]
    return settings, jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _expected(architecture: Architecture, settings: Mapping) -> PyTree:
    """Shapes and types of the network's variables."""
    image = jnp.zeros((1, *architecture.image_shape))
    return jax.eval_shape(models.build(**settings).init, jax.random.key(0), image)


def _num_classes(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> int:
    """Of the last layer's bias, whose shape no transposition changes, else of its weight; 10 where
    neither is there, which is an error of its own."""
    expected = _expected(architecture, {**architecture.network, "num_classes": 10})
    (layer,) = (name for name, leaves in expected["params"].items() if _is_dense(leaves))
    for name, ndim in ((f"{layer}.bias", 1), (f"{layer}.weight", 2)):
        if name in weights and weights[name].ndim == ndim and len(weights[name]):
            return len(weights[name])
    return 10


def _is_dense(leaves: Mapping) -> bool:
    return "kernel" in leaves and getattr(leaves["kernel"], "ndim", 0) == 2


def _take_normaliser(weights: Mapping[str, np.ndarray], channels: int) -> tuple[dict, dict]:
    """(the weights without the mean and the std of a normalising wrapper, these two by name).

    ValueError unless both are there, or neither, each one value for all channels or one a channel
    of images in [0, 1].
    """
    rest, found = dict(weights), {}
    for name, value in weights.items():
        if kind := NORMALISER.search(name):
            del rest[name]
            key = "mean" if kind["mean"] else "std"
            fits = _is_real(value.dtype) and value.size in (1, channels)
            fits = fits and key not in found and _all_within(value, key == "mean")
            if not fits:
                said = printable(value[:9].tolist() if value.ndim else value)
                raise ValueError(
                    f"{printable(name)} must be the one {key} of a normaliser of images in [0, 1], "
                    f"1 or {channels} values, but is {said}"
                )
            found[key] = tuple(float(part) for part in value.ravel())
    if len(found) == 1:
        raise ValueError(f"the weights have the {[*found][0]} of a normaliser alone")
    return rest, found


def _is_real(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or dtype.kind in "iu"


def _all_within(value: np.ndarray, or_zero: bool) -> bool:
    """Whether all values are above 0, or that, and at most 1; NaN is not."""
    return bool((((value >= 0) if or_zero else (value > 0)) & (value <= 1)).all())


def _check_floating(weights: Mapping[str, np.ndarray]) -> None:
    """ValueError where weights stand for others, as quantised ones do."""
    listed = [
        f"{name} has dtype {weight.dtype}"
        for name, weight in weights.items()
        if name.rpartition(".")[2] in {leaf for leaf, _ in LEAVES}
        and not (jnp.issubdtype(weight.dtype, jnp.floating) and weight.dtype.itemsize > 1)
    ]
    if listed:
        raise ValueError(
            f"{len(listed)} weights are no floating-point numbers of 16, 32 or 64 bits; save them "
            "as float32, from before they were quantised\n  " + few(listed, "\n  ", limit=LISTED)
        )


def _published_name(module: str, collection: str, kind: str) -> str:
    """PyTorch's name of a leaf: layer1_0.conv1, params, kernel -> layer1.0.conv1.weight."""
    leaf = next(name for (name, _), here in LEAVES.items() if here == (collection, kind))
    return re.sub(r"_(\d+)(?=\.|$)", r".\1", module) + "." + leaf


def _published_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of what _to_channels_last does to a shape."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
    return tuple(shape[axis] for axis in axes)


def _to_channels_last(weight: np.ndarray) -> np.ndarray:
    """Convolutions [O, I, h, w] -> [h, w, I, O], matrices [O, I] -> [I, O]."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(weight.ndim)
    return weight if axes is None else np.transpose(weight, axes)

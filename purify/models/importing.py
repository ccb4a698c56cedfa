"""Published PyTorch weights, by their names, into the networks of this project."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from purify import models
from purify.tables import choose
from purify.types import PyTree

# What a parallel or averaging wrapper puts before every name; weights whose name has one of
# AVERAGED are the moving average of those without.
PREFIXES = ("module.", "model.", "state_dict.", "net.")
AVERAGED = ("ema.", "ema_model.", "shadow.")
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

    Raises ValueError for another kind of file (pickles are never loaded) and for damaged ones.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(
            f"'{path}' must be .safetensors or .npz: other files of weights can run code when they "
            "are read; the README shows the two lines that turn a .pt or .th file into one"
        )
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                weights = {name: arrays[name] for name in arrays.files}
        else:
            weights = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist") from None
    except (SafetensorError, BadZipFile, ValueError, OSError, KeyError) as error:
        raise ValueError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None
    # A wrapper's counters have no prefix, which would hide that all weights have one.
    weights = {name: w for name, w in weights.items() if w.ndim}
    weights = _unwrap(weights, PREFIXES)
    averaged = {name: w for name, w in weights.items() if name.startswith(AVERAGED)}
    return _unwrap(_unwrap(averaged, AVERAGED), PREFIXES) if averaged else weights


def _unwrap(weights: dict, prefixes: tuple[str, ...]) -> dict:
    """Without the prefixes that all names share, one inside the other."""
    for prefix in prefixes:
        if weights and all(name.startswith(prefix) for name in weights):
            return _unwrap({name[len(prefix) :]: w for name, w in weights.items()}, prefixes)
    return weights


def import_weights(arch: str, weights: Mapping[str, np.ndarray]) -> tuple[dict, PyTree]:
    """(network settings, variables) of a published architecture with these weights.

    The number of classes is that of the weights. Raises ValueError that lists, by PyTorch's names
    and shapes, every shape that differs and every name that is unknown or missing.
    """
    architecture = choose("arch", ARCHITECTURES, arch)
    height, width, channels = architecture.image_shape
    settings = dict(architecture.network)
    if architecture.role == "classifier":
        heads = [w.shape[0] for name, w in weights.items() if w.ndim == 2 and "weight" in name]
        settings["num_classes"] = heads[-1] if heads else 10
    network = models.build(**settings)
    image = jnp.zeros((1, height, width, channels))
    expected = jax.eval_shape(network.init, jax.random.key(0), image)
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
        listed = "\n  ".join(problems)
        raise ValueError(f"these are not the weights of {arch}: {counts}\n  {listed}")
    leaves = [np.asarray(weight, np.float32) for weight in leaves]
    return settings, jax.tree.unflatten(jax.tree.structure(expected), leaves)


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

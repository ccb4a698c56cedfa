"""--mode=import_weights: weights from a file, as a checkpoint like those of training."""

import os
from pathlib import Path

import jax
import numpy as np

from purify.models.importing import ARCHITECTURES, import_weights, read_weights
from purify.options import choose
from purify.runtime.errors import FileError
from purify.runtime.messages import counted, shown
from purify.saving import weight_files
from purify.saving.checkpoint import Checkpoints, weight_hash
from purify.saving.files import make_folders, making
from purify.saving.settings import claim
from purify.types import PyTree


def run(
    config, workdir: Path | None, input: str | None, output: str | None, arch: str | None
) -> None:
    """Write the weights in `input` to <workdir>/<role>, or to the folder `output`.

    input: .safetensors or .npz with PyTorch's names, of the published architecture `arch`; or a
        file of --mode=export_weights, which says itself what it is.
    Raises ValueError for files and weights that do not fit, and where a checkpoint exists already.
    """
    if not input:
        raise ValueError("--mode=import_weights needs --input=FILE; see --help")
    if not Path(input).is_file():
        raise ValueError(f"'{shown(input)}' does not exist, or is no file")
    own = weight_files.is_own(Path(input))
    if bool(arch) == own:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(
            f"'{shown(input)}' says itself what its weights are; leave --arch out"
            if own
            else f"--mode=import_weights needs --arch=..., one of {known}"
        )
    if not (output or workdir):
        raise ValueError("--mode=import_weights needs --workdir, --output or --config")
    settings, variables = read_file(input, arch)
    role = "score" if "head" in settings else "classifier"
    folder = Path(output) if output else workdir / role
    if os.path.lexists(folder):
        raise ValueError(
            f"'{shown(folder)}' exists already; choose another --workdir, or move it elsewhere"
        )
    origin = {"arch": arch, "file": Path(input).name, "weights": weight_hash(variables)}
    make_folders(folder.parent)
    # Under its name only when it is whole, so that a command that was killed can be given again.
    with making(folder) as partial:
        step = settings.pop("step", 0)  # 0: unknown, a training has none
        claim(partial, settings | {"imported": origin})
        with Checkpoints(partial, training=True) as checkpoints:
            checkpoints.save(step, {"ema": variables})
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    print(
        f"{role}: {counted(count, 'parameter')} of {arch or shown(Path(input).name)}, in "
        f"{shown(folder)}"
    )
    if arch and role == "classifier":
        mean, std = ([round(v, 4) for v in settings["network"].get(k, ())] for k in ("mean", "std"))
        how = f"mean {mean} and std {std}" if mean else "nothing: it takes values in [0, 1]"
        print(f"it normalises images by {how}")


def read_file(input: str, arch: str | None) -> tuple[dict, PyTree]:
    """(settings, variables) of a file of weights: of the published `arch`, or, without one, of
    --mode=export_weights. ValueError where they do not fit."""
    if not arch:
        settings, variables = weight_files.load(Path(input))
    else:
        architecture = choose("--arch", ARCHITECTURES, arch)
        weights = read_weights(input)
        try:
            network, variables = import_weights(arch, weights)
        except ValueError as error:
            raise FileError(f"'{shown(input)}': {error}") from None
        settings = {"network": network, "image_shape": architecture.image_shape}
        settings |= {"head": "score"} if architecture.role == "score" else {}
    _check_values(input, variables)
    return settings, variables


def _check_values(input: str, variables: PyTree) -> None:
    """ValueError where weights are not finite, or a running variance is none: of either the network
    makes NaN."""
    for path, leaf in jax.tree.leaves_with_path(variables):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not np.all(np.isfinite(leaf)):
            raise ValueError(f"'{shown(input)}' has values in {where} that are not finite")
        if where.startswith("batch_stats/") and where.endswith("/var") and not np.all(leaf >= 0):
            raise ValueError(
                f"'{shown(input)}' has a variance of {np.min(leaf):.3g} in {where}, and none is "
                "negative"
            )

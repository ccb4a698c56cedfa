"""--mode=import_weights: published weights, as a checkpoint like those of training."""

from pathlib import Path

import jax
import numpy as np

from purify.checkpoint import Checkpoints, claim, weight_hash
from purify.models.importing import ARCHITECTURES, import_weights, read_weights
from purify.tables import choose


def run(
    config, workdir: Path | None, input: str | None, output: str | None, arch: str | None
) -> None:
    """Write the weights in `input` (.safetensors or .npz, PyTorch's names) to <workdir>/<role>, or
    to the folder `output`; the role is the architecture's.

    Raises ValueError for files and weights that do not fit, and where a checkpoint exists already.
    """
    for name, value in (("input", input), ("arch", arch)):
        if not value:
            raise ValueError(f"--mode=import_weights needs --{name}=...; see --help")
    if not (output or workdir):
        raise ValueError("--mode=import_weights needs --workdir, --output or --config")
    role = choose("--arch", ARCHITECTURES, arch).role
    settings, variables = import_weights(arch, read_weights(input))
    folder = Path(output) if output else workdir / role
    if folder.exists():
        raise ValueError(f"'{folder}' exists already; choose another --workdir, or delete it")
    about = {
        "network": settings,
        "image_shape": ARCHITECTURES[arch].image_shape,
        "imported": {"arch": arch, "file": Path(input).name, "weights": weight_hash(variables)},
    }
    claim(folder, about | ({"head": "score"} if role == "score" else {}))
    with Checkpoints(folder, training=True) as checkpoints:
        checkpoints.save(0, {"ema": variables})
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    print(f"{role}: {count:,} parameters of {arch}, in {folder}")

"""--mode=export_weights: the averaged weights of a training run as one file."""

from pathlib import Path

import jax
import numpy as np

from purify.runtime.messages import shown
from purify.saving import weight_files
from purify.saving.checkpoint import load_run


def run(config, workdir: Path | None, input: str | None, output: str | None) -> None:
    """Write the averaged (EMA) weights of the run in folder `input`, such as runs/cifar10/score, to
    the file `output` (.safetensors), with the settings that made them and, where it is known, the
    step of their training."""
    for name, value in (("input", input), ("output", output)):
        if not value:
            raise ValueError(f"--mode=export_weights needs --{name}=PATH")
    if Path(output).suffix.lower() != ".safetensors":
        raise ValueError(f"--output={shown(output)} must end in .safetensors")
    folder = Path(input)
    variables, settings, step = load_run(folder.parent, folder.name)
    settings = settings | ({"step": step} if step else {})
    weight_files.save(Path(output), settings, jax.tree.map(np.asarray, variables))
    print(f"{shown(output)}: {Path(output).stat().st_size / 1e6:.2f} MB")

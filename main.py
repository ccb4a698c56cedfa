"""Adversarial purification with score-based generative models.

  python main.py --config=configs/digits.py --mode=MODE [--workdir=DIR] [--config.FIELD=VALUE ...]

Modes, in the order in which they are needed:

  train_classifier  train the classifier that is to be defended
  train             train the energy-based model's score, by denoising score matching
  eval_robust       attack the defence and its baselines, and print a table; with --input=adv.npz,
                    score given images (arrays images, labels) instead of attacking
  purify            purify the images in --input (a folder of PNG or JPEG files, .npy, .npz) and
                    write the same form to --output

Checkpoints and results go to --workdir (default: runs/<config name>). A run that was cut off goes
on where it stopped when the same command is given again.
"""

import importlib
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

# mode -> the module whose run(config, workdir, **files) does it
MODES = {
    "train_classifier": "purify.train_classifier",
    "train": "purify.train_score",
    "eval_robust": "purify.evals.robust",
    "purify": "purify.evals.purify_files",
}
FILES = {"eval_robust": ("input",), "purify": ("input", "output")}

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "What to run.")
_MODE = flags.DEFINE_enum("mode", None, list(MODES), "What to do; see above.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; default runs/<config name>.")
_INPUT = flags.DEFINE_string("input", None, "Images to read, for purify and eval_robust.")
_OUTPUT = flags.DEFINE_string("output", None, "Where purify writes; must not exist.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")


def default_workdir(config_file: str) -> Path:
    """configs/cifar10.py:tiny -> runs/cifar10_tiny."""
    path, _, variant = config_file.partition(":")
    name = "_".join(filter(None, [Path(path).stem, variant]))
    return Path("runs") / re.sub(r"[^\w.-]", "_", name)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    mode = _MODE.value
    files = {"input": _INPUT.value, "output": _OUTPUT.value}
    for name in files:
        if files[name] and name not in FILES.get(mode, ()):
            raise app.UsageError(f"--{name} has no meaning for --mode={mode}")
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(_WORKDIR.value or default_workdir(config_file))

    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # Orbax tells its whole day at the default level
    # Imported here, so that --help and a mistyped flag answer at once.
    from purify.checkpoint import MissingCheckpoint

    try:
        run = importlib.import_module(MODES[mode]).run
        run(_CONFIG.value, workdir, **{name: files[name] for name in FILES.get(mode, ())})
    except MissingCheckpoint as error:
        command = f"python main.py --config={config_file} --mode={error.mode} --workdir={workdir}"
        sys.exit(f"error: {error}\nrun: {command}")
    except (ValueError, OSError) as error:
        if _TRACEBACK.value:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)

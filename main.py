"""Adversarial purification with score-based generative models.

  python main.py --config=configs/digits.py --mode=MODE [--workdir=DIR] [--config.FIELD=VALUE ...]

Modes, in the order in which they are needed:

  train_classifier  train the classifier that is to be defended
  train             train the energy-based model's score, by denoising score matching
  eval_robust       attack the defence and its baselines, and print a table; with --input=adv.npz,
                    score given images (arrays images, labels) instead of attacking; with
                    --max_images=N stop after N images of each row, for a first look: the same
                    command with a larger N, or without it, goes on from there
  eval_corruptions  score the defences on common corruptions of the images at five severities (those
                    of CIFAR-10-C), and print a table; with --input=DIR, on the corrupted images in
                    that folder, CIFAR-10-C's own, of TFDS or in their form; --max_images as
                    of eval_robust
  check_gradients   whether attacks on the configured defence see its gradient: attacks that know
                    less, or do less, must not beat the exact gradient's, and a step along it must
                    gain what it says; a verdict for each check
  certify           L2 radii within which the answer of the smoothed defence does not change, by
                    randomised smoothing; --max_images as above
  detect            how well score norm, reconstruction error, energy and change of prediction tell
                    attacked images from natural ones, for attackers who know of them and for those
                    who do not: ROC curves, AUROC, rates at a threshold; --max_images as above
  sample            draw images from the score model by annealed Langevin dynamics, and show the way
                    of chosen images through purifiers step by step; with --input=adv.npz, of given
                    images (arrays images, labels); --max_images as of eval_robust
  ablate            evaluate the configured defence with one factor at a time at other values, each
                    as eval_robust would, and print a table; what either has done is not done
                    again; --max_images as of eval_robust
  compare           pair the rows that two evaluations share, image by image:
                    --input=RUN_A,RUN_B, and --output=FILE.json to write it too
  report            write one HTML file of finished evaluations, to be read without a network: of
                    --input=RUN[,RUN...], their folders or workdirs, by default all in --workdir;
                    to --output=FILE.html, by default report.html in the workdir
  purify            purify the images in --input (a folder of PNG or JPEG files, .npy, .npz) and
                    write the same form to --output
  import_weights    make a checkpoint of published PyTorch weights: --input=FILE.safetensors or
                    .npz, --arch=ncsnv2 | wrn28_10 | resnet20 ...; or of a file of export_weights
  export_weights    write the averaged weights of a run, --input=DIR/score, to one file,
                    --output=FILE.safetensors

--distributed spreads train_classifier, train and eval_robust over the devices of several processes:
the same command in each, with a --workdir that all can reach. Clusters (Slurm, Open MPI, TPU pods,
Kubernetes) are found by themselves; elsewhere, as on two machines with GPUs or on CPUs, add
--coordinator_address=HOST:PORT --num_processes=N --process_id=0 (1, ... N - 1 in the others).

compare and report, and import_weights and export_weights where the flags say where to read and
write, need no --config. Of a flag that is given twice the last value counts. A path may begin with
~ and have any characters; a ',' in one of several, as RUN_A,RUN_B, belongs to it where the parts
alone do not exist.

A --config FILE.py is run as Python, with all that you may do: of others' files give only those that
you have read.

Checkpoints and results go to --workdir (default: runs/<config name>). A run that was cut off goes
on where it stopped when the same command is given again. Exit codes: 0 done, 2 refused or failed
with a line that says why, 1 a defect of this program with its traceback, 130, 143, 129 and 141
ended by SIGINT, SIGTERM, SIGHUP or a reader that left, as `| head`.
"""

import signal

if __name__ == "__main__":  # signals wait until there is something that answers them
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

from purify.runtime import ending, processes

if __name__ == "__main__":
    ending.catch_signals()  # before anything that takes its time is imported

import importlib
import inspect
import io
import math
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

# mode -> the module whose run(config, workdir, **options) does it
MODES = {
    "train_classifier": "purify.training.train_classifier",
    "train": "purify.training.train_score",
    "eval_robust": "purify.evals.robust",
    "eval_corruptions": "purify.evals.corruptions",
    "check_gradients": "purify.evals.gradients",
    "certify": "purify.evals.certify",
    "detect": "purify.evals.detect",
    "sample": "purify.evals.sample",
    "ablate": "purify.evals.ablate",
    "compare": "purify.evals.compare",
    "report": "purify.evals.report.page",
    "purify": "purify.evals.purify_files",
    "import_weights": "purify.saving.import_weights",
    "export_weights": "purify.saving.export_weights",
}
# What they write is whole at the end or not there: nothing for the next command to go on from.
KEEPING_NOTHING = ("compare", "report", "purify", "import_weights", "export_weights")
DISTRIBUTED = ("train_classifier", "train", "eval_robust")
WITHOUT_CONFIG = ("compare", "report", "import_weights", "export_weights")
# Beside this file, from where the user stands.
CONFIGS = sorted(
    file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    for file in (Path(__file__).absolute().parent / "configs").glob("*.py")
    if file.stem != "base"
)
# mode -> the flags below that it takes
OPTIONS = {
    "eval_robust": ("input", "max_images"),
    "certify": ("max_images",),
    "detect": ("max_images",),
    "eval_corruptions": ("input", "max_images"),
    "sample": ("input", "max_images"),
    "ablate": ("max_images",),
    "compare": ("input", "output"),
    "report": ("input", "output"),
    "purify": ("input", "output"),
    "import_weights": ("input", "output", "arch"),
    "export_weights": ("input", "output"),
}


class _ConfigFile(flags.ArgumentParser):
    """--config=FILE[:VARIANT] -> the config as its file has it, kept for `unknown_field`."""

    config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        if self.config is not None:
            fail("--config is given twice; only its fields may be, of which the last value counts")
        self.config = read_config(argument)
        return self.config.lock()


class _Tuple(flags.ArgumentParser):
    """Not a TupleParser, for which ml_collections joins the values of a flag that is repeated:
    here the last one counts, as of every other flag."""

    def parse(self, argument: str) -> tuple:
        value = TupleParser().parse(argument)
        if value == (argument,) and argument.lstrip().startswith(("(", "[")):
            raise ValueError(f"{argument} is no tuple: write names in quotes, numbers in digits")
        return value


config_flags.register_flag_parser_for_type(tuple, _Tuple())
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, such as configs/digits.py; it is run as Python; see above."
)
_FILE = flags.FLAGS["config"].parser = _ConfigFile()
_MODE = flags.DEFINE_enum("mode", None, list(MODES), "What to do; see above.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; default runs/<config name>.")
_INPUT = flags.DEFINE_string("input", None, "What to read: images, weights, a run; see above.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write it; must not exist.")
_ARCH = flags.DEFINE_string("arch", None, "What network import_weights reads the weights of.")
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", None, "Stop after so many images of each row; see above.", lower_bound=1
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Work with other processes; see above.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Of --distributed: HOST:PORT.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of --distributed: how many.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Of --distributed: which one this is, from 0.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")


def expand(path: str) -> str:
    """How every path of the command line is read: '~' is the home, all else stands for itself.

    Of several in one --input it is the first alone; the others are expanded where they are split.
    """
    return os.path.expanduser(path)


def split_config(argument: str) -> tuple[str, str]:
    """'FILE[:VARIANT]' -> (file, variant, '' for none); a ':' may be in the file's own name."""
    parts = argument.split(":")
    for n in range(1, len(parts) + 1):
        if os.path.isfile(path := expand(":".join(parts[:n]))):
            return path, ":".join(parts[n:])
    return expand(parts[0]), ":".join(parts[1:])


def default_workdir(config_file: str) -> Path:
    """configs/cifar10.py:tiny -> runs/cifar10_tiny."""
    path, variant = split_config(config_file)
    name = "_".join(filter(None, [Path(path).stem, variant]))
    return Path("runs") / re.sub(r"[^\w.-]", "_", name)


def config_of(workdir: Path) -> str:
    """The config whose default workdir has that name; 'FILE' where there is none."""
    for path in CONFIGS:
        variant = workdir.name.removeprefix(path.stem).removeprefix("_")
        config_file = f"{path}:{variant}" if variant else str(path)
        try:
            if default_workdir(config_file).name == workdir.name:
                runpy.run_path(str(path))["get_config"](variant)
                return config_file
        except ValueError:  # no such variant
            continue
    return "FILE"


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it is one line on stderr and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError):  # how ml_collections says that a field does not exist
        fail(unknown_field(_FILE.config, argv))
    except (flags.Error, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fail(": ".join([lines[0], lines[-1]][: len(lines)]))
    for name in ("config", "mode"):
        if flags.FLAGS[name].value is None and flags.FLAGS["mode"].value not in WITHOUT_CONFIG:
            fail(f"--{name} is missing; see --help")
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options begin with --")
    return rest


def read_config(argument: str) -> ConfigDict:
    """The config FILE[:VARIANT] as its file has it."""
    path, variant = split_config(argument)
    known = f"there are {', '.join(map(str, CONFIGS))}"
    if not Path(path).is_file():
        fail(f"--config={path} does not exist; {known}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        fail(f"--config={path} has no get_config(); {known}")
    if variant and not inspect.signature(get_config).parameters:
        fail(f"--config={path}:{variant}: that config has no variants")
    try:
        return get_config(*filter(None, [variant]))
    except ValueError as error:
        fail(f"--config={path}:{variant}: {error}")


def expand_runs(config: ConfigDict) -> None:
    """The same for the paths of a config that nothing else expands: the workdirs of variants."""
    for changes in config.get("variants", {}).values():
        for role in ("classifier", "score"):
            if isinstance(changes.get(role), str):
                changes[role] = expand(changes[role])


def check_numbers(config: ConfigDict, field: str = "config") -> None:
    """End where a number of the config is NaN or infinite: no field means that."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            check_numbers(value, f"{field}.{name}")
            continue
        if any(map(_is_not_finite, value if isinstance(value, tuple | list) else (value,))):
            fail(f"--{field}.{name}={value} must be finite")


def _is_not_finite(value) -> bool:
    """Whether it is such a number, or the word for it, as it comes within a tuple's flag."""
    try:
        return isinstance(value, float | str) and not math.isfinite(float(value))
    except ValueError:  # another word
        return False


def unknown_field(config: ConfigDict | None, argv: list[str]) -> str:
    """Which of the --config.a.b overrides names no field of the config, and what it could be."""
    if config is None:
        return "a --config override names no field; write --config=FILE for the fields it has"
    for option in (arg.lstrip("-").partition("=")[0] for arg in argv if arg.startswith("-")):
        value = config
        for key in option.split(".")[1:]:
            if not isinstance(value, ConfigDict) or key not in value:
                known = ", ".join(value) if isinstance(value, ConfigDict) else "nothing below it"
                return f"--{option}: there is no field {key!r}; known: {known}"
            value = value[key]
    return "a --config override names no field of the config"


def join_processes(mode: str) -> None:
    """Connect to the other processes of --distributed; only the first of them will talk."""
    if mode not in DISTRIBUTED:
        fail(f"--distributed has no meaning for --mode={mode}; it has for {', '.join(DISTRIBUTED)}")
    processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    import jax

    if jax.process_index() > 0:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def fail(message: str) -> NoReturn:
    raise ending.Refused(message)


def less_memory() -> str:
    """What the user can do where memory does not suffice."""
    if role := {"train": "score", "train_classifier": "classifier"}.get(flags.FLAGS["mode"].value):
        options = f"--config.{role}.train"
        return f"raise {options}.accumulate or lower {options}.batch_size, in another --workdir"
    return "lower --config.eval.batch_size, --config.defense.chunk or the attack's chunk"


def main(argv: list[str]) -> None:
    del argv
    mode = _MODE.value
    ending.keeps = mode not in KEEPING_NOTHING
    options = {
        "input": _INPUT.value and expand(_INPUT.value),
        "output": _OUTPUT.value and expand(_OUTPUT.value),
        "arch": _ARCH.value,
        "max_images": _MAX_IMAGES.value,
    }
    for name, value in options.items():
        if value and name not in OPTIONS.get(mode, ()):
            fail(f"--{name} has no meaning for --mode={mode}")
    has_config = flags.FLAGS["config"].value is not None
    config_file = config_flags.get_config_filename(flags.FLAGS["config"]) if has_config else None
    if has_config:
        check_numbers(_CONFIG.value)
        expand_runs(_CONFIG.value)
    workdir = expand(_WORKDIR.value or "") or (config_file and default_workdir(config_file))

    if flags.FLAGS.verbosity == 0:  # as app.run leaves it; Orbax then tells its whole day
        logging.set_verbosity(logging.WARNING)
        ending.hush_libraries()
    if _DISTRIBUTED.value:
        join_processes(mode)
    elif _COORDINATOR.value or _PROCESSES.value is not None or _PROCESS.value is not None:
        fail("--coordinator_address, --num_processes and --process_id belong to --distributed")
    # Imported here, so that --help and a mistyped flag answer at once.
    from purify.runtime.compilation import trace_without_pauses
    from purify.runtime.messages import printable_lines
    from purify.saving.checkpoint import NeedsMode

    trace_without_pauses()
    try:
        run = importlib.import_module(MODES[mode]).run
        taken = {name: options[name] for name in OPTIONS.get(mode, ())}
        run(_CONFIG.value, Path(workdir) if workdir else None, **taken)
    except NeedsMode as error:
        if not config_file or error.workdir != Path(workdir):
            config_file = config_of(error.workdir)
        arguments = [f"--config={config_file}", f"--mode={error.mode}"]
        command = ["python", sys.argv[0], *arguments, f"--workdir={error.workdir}"]
        fail(printable_lines(f"{error}\nrun: {shlex.join(command)}"))
    processes.leave()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks is escaped, as in stderr, and ends no finished run.
        sys.stdout.reconfigure(errors="backslashreplace")
    ending.run(
        lambda: app.run(main, flags_parser=parse_flags),
        show_traceback=lambda: flags.FLAGS.is_parsed() and _TRACEBACK.value,
        lower=less_memory,
    )

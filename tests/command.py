"""main.py as a user runs it, on a budget that a test can afford."""

import dataclasses
import importlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Small enough for seconds, large enough that every part does something.
TINY = {
    "classifier.network.widths": (8,),
    "classifier.train.num_steps": 120,
    "classifier.train.warmup_steps": 10,
    "classifier.train.learning_rate": 2e-2,
    "classifier.train.ema_decay": 0.9,
    "classifier.train.augment": "none",
    "score.network.widths": (8,),
    "score.train.num_steps": 150,
    "score.train.warmup_steps": 10,
    "score.train.ema_decay": 0.9,
    "eval.defenses": ("identity", "noise_only", "one_step", "schedule", "adp"),  # of one workdir
    "defense.num_runs": 2,
    "adp.num_steps": 3,
    "eval.num_images": 10,
    "eval.num_draws": 3,
    "eval.batch_size": 4,
    "attacks.blind.num_steps": 5,
    "attacks.bpda.defenses": ("adp",),
    "attacks.bpda.num_steps": 3,
    "attacks.bpda.eot_samples": 2,
    "attacks.exact.defenses": ("adp",),
    "attacks.exact.num_steps": 3,
    "attacks.exact.eot_samples": 2,
    "attacks.exact.num_images": 6,
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A workdir and the TFDS folder that goes with it."""

    workdir: Path
    tfds: Path

    def copied_into(self, folder: Path) -> Path:
        """The folder, made a workdir of its own with the trained networks in it."""
        for role in ("classifier", "score"):
            shutil.copytree(self.workdir / role, folder / role)
        return folder

    def main(self, *arguments: str, devices: int = 1, **run_options):
        """`python main.py` on digits with the TINY budget; arguments come last, and win."""
        return main(*self._flags(arguments), tfds=self.tfds, devices=devices, **run_options)

    def start(self, *arguments: str) -> subprocess.Popen:
        """The same, not waited for."""
        return subprocess.Popen(
            [sys.executable, "main.py", *self._flags(arguments)],
            cwd=ROOT,
            env=_environment(self.tfds, devices=1),
            stderr=subprocess.DEVNULL,
        )

    def _flags(self, arguments) -> list[str]:
        budget = (f"--config.{field}={value}" for field, value in TINY.items())
        return ["--config=configs/digits.py", *budget, f"--workdir={self.workdir}", *arguments]

    def config(self, **changes):
        """The same config as an object; changes: field with '.' as '__' -> value."""
        config = importlib.import_module("configs.digits").get_config()
        config.update_from_flattened_dict(TINY)
        config.data.dir = str(self.tfds)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config

    def score_only(self) -> tuple[str, ...]:
        """Arguments of an evaluation without attacks."""
        return ("--mode=eval_robust", "--config.eval.attacks=()")


def main(*arguments: str, tfds: Path | None = None, devices: int = 1, **run_options):
    """`python main.py ARGUMENTS` from the project's root; returns the completed process."""
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=_environment(tfds, devices),
        capture_output=True,
        text=True,
        **run_options,
    )


def main_in_processes(
    *arguments: str, tfds: Path, count: int = 2
) -> list[subprocess.CompletedProcess]:
    """The same in `count` processes of one CPU device each, joined by --distributed."""
    processes = start_processes(*arguments, tfds=tfds, count=count)
    outputs = [process.communicate(timeout=600) for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def start_processes(*arguments: str, tfds: Path, count: int = 2) -> list[subprocess.Popen]:
    """The same, not waited for.

    Their rounding is that of one process with `count` devices: the threads are as many.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = ("--distributed", f"--coordinator_address={address}", f"--num_processes={count}")
    return [
        subprocess.Popen(
            [sys.executable, "main.py", *arguments, *joined, f"--process_id={i}"],
            cwd=ROOT,
            env=_environment(tfds, devices=1) | _threads(count),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def _environment(tfds: Path | None, devices: int) -> dict[str, str]:
    environment = on_devices(devices)
    return environment | ({"TFDS_DATA_DIR": str(tfds)} if tfds else {})


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process that can import this project and sees one device or, on CPU,
    several."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    ours = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    several = {"JAX_PLATFORMS": "cpu"} | _threads(count)
    return os.environ | ours | (several if count > 1 else {})


def _threads(devices: int) -> dict[str, str]:
    """Variables that give the CPU devices of a process enough threads.

    They share one pool, whose size follows the machine's cores, and each that waits in a sum over
    devices holds a thread of it: on two cores none may be left for the device that is waited for,
    and XLA ends the process after a minute.
    """
    return {"NPROC": str(4 * devices)}

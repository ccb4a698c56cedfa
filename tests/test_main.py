"""The commands of the README, and what they say when something is wrong with them."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from purify.evals.robust_report import results_table
from tests.command import ROOT, main

BASE = ("--config=configs/digits.py",)


def test_help_explains_every_mode():
    text = main("--help").stdout
    modes = re.sub(r"\s", "", re.search(r"--mode:\s*<([^>]*)>", text).group(1)).split("|")
    assert set(modes) == {
        "train_classifier",
        "train",
        "eval_robust",
        "eval_corruptions",
        "check_gradients",
        "certify",
        "detect",
        "sample",
        "ablate",
        "compare",
        "report",
        "purify",
        "import_weights",
        "export_weights",
    }
    for mode in modes:
        assert re.search(rf"^  {mode}  +\w", text, re.MULTILINE), mode


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "--config is missing"),
        (BASE, "--mode is missing"),
        (("--config=configs/nope.py", "--mode=train"), "configs/digits.py"),
        (("--config=configs/digits.py:tiny", "--mode=train"), "full"),
        (("--config=configs/nope.py", "--mode=train", "--config.adp.sigma=1"), "does not exist"),
        (
            ("--config=configs/base.py", "--mode=train"),
            "no get_config(); there are configs/cifar10",
        ),
        (("--config", "configs/cifar10.py:huge", "--mode=train"), "known: reference, resnet20"),
        ((*BASE, "--mode=train", "--config.score.network.arch=resnet"), "it needs num_classes"),
        ((*BASE, "--mode=fly"), "train_classifier|train|eval_robust|eval_corruptions|"),
        ((*BASE, "--mode=train", "--config.adp.sgima=1"), "known: alpha_max, alpha_min"),
        (
            (*BASE, "--mode=train", "--config.nope.x=1"),
            "known: ablate, adp, adp_reference, ",
        ),
        ((*BASE, "--mode=train", "--config.adp.sigma=big"), "could not convert"),
        ((*BASE, "--mode=train", "--config.adp.num_steps=1.5"), "invalid literal"),
        ((*BASE, "--mode=train", "--fast"), "fast"),
        ((*BASE, "--mode=train", "now"), "'now'"),
        ((*BASE, "--mode=train", "--input=x"), "--input has no meaning"),
        ((*BASE, "--mode=eval_robust", "--max_images=0"), "not a positive integer"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_a_mistake_in_the_command_is_one_line(arguments, said, tmp_path):
    result = main(*arguments)
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_a_variant_of_a_config_that_has_none_is_one_line_too(tmp_path):
    (tmp_path / "own.py").write_text("from configs.base import base as own\n\n"
                                     "def get_config():\n    return own()\n")  # fmt: skip
    result = main(f"--config={tmp_path}/own.py:tiny", "--mode=train")
    assert result.stderr == f"error: --config={tmp_path}/own.py:tiny: that config has no variants\n"


def test_a_mistake_in_the_config_is_one_line_too(trained):
    before = sorted(trained.workdir.rglob("*"))
    result = trained.main("--mode=eval_robust", "--config.eval.defenses=('wall',)")
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "noise_only" in lines[0]
    assert sorted(trained.workdir.rglob("*")) == before


@pytest.mark.parametrize("missing", ["classifier", "score"])
def test_without_a_checkpoint_eval_robust_says_which_command_makes_it(trained, tmp_path, missing):
    if missing == "score":
        (tmp_path / "classifier").symlink_to(trained.workdir / "classifier")
    result = trained.main("--mode=eval_robust", f"--workdir={tmp_path}")
    mode = {"classifier": "train_classifier", "score": "train"}[missing]
    assert result.returncode == 2
    command = f"python main.py --config=configs/digits.py --mode={mode} --workdir={tmp_path}"
    assert result.stderr.strip().splitlines()[-1] == f"run: {command}"


def test_without_the_classifier_of_a_variant_eval_robust_says_so_too(trained, tmp_path):
    other = tmp_path / "digits_pgd_at"
    variant = f"--config.variants.pgd_at.classifier={other}"
    result = trained.main("--mode=eval_robust", variant, "--config.eval.defenses=('pgd_at',)")
    assert result.returncode == 2
    said, command = result.stderr.strip().splitlines()
    assert said.startswith(f"error: no classifier checkpoint in {other}/classifier: make it with")
    flags = f"--config=configs/digits.py:pgd_at --mode=train_classifier --workdir={other}"
    assert command == f"run: python main.py {flags}"


def test_the_default_workdir_is_named_after_the_config_and_leads_back_to_it():
    workdirs = ["runs/cifar10_tiny", "runs/cifar10_huge", "elsewhere/cifar100", "other"]
    script = f"""
import main, pathlib
print(main.default_workdir("configs/cifar10.py:tiny"))
print([main.config_of(pathlib.Path(name)) for name in {workdirs}])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.splitlines() == [
        "runs/cifar10_tiny",
        str(["configs/cifar10.py:tiny", "FILE", "configs/cifar100.py", "FILE"]),
    ]


def test_purify_writes_the_same_form_back(trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    np.save(tmp_path / "in.npy", images)
    for name in ("in", "in.npy"):
        output = tmp_path / name.replace("in", "out")
        command = ("--mode=purify", f"--input={tmp_path / name}", f"--output={output}")
        result = trained.main(*command)
        assert result.returncode == 0, result.stderr
        again = trained.main(*command)
        assert again.returncode == 2 and "exist" in again.stderr  # nothing is overwritten
    purified = np.load(tmp_path / "out.npy")
    assert purified.shape == images.shape and purified.dtype == np.uint8
    assert np.abs(purified.astype(int) - images).max() > 10  # it was purified
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{i}.png" for i in range(6)]
    from_folder = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    np.testing.assert_array_equal(from_folder, purified)


def test_an_output_whose_name_is_no_utf_8_is_written_and_told(trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    np.save(tmp_path / "in.npy", images)
    output = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.npy")
    result = trained.main("--mode=purify", f"--input={tmp_path}/in.npy", f"--output={output}")
    assert (result.returncode, os.path.exists(output)) == (0, True), result.stderr
    assert "wrote 2 purified images" in result.stdout and "caf" in result.stdout


def test_the_readme_library_lines_run(trained):
    """The README's python blocks, one after the other, runs/digits being a small run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks).replace("runs/digits", str(trained.workdir))
    check = "assert logits.shape == (16, 10)\nassert abs(attacked.image - images).max() < 0.1501"
    command = [sys.executable, "-c", f"{code}\n{check}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(16, 8, 8, 1)")


def test_the_readme_commands_exist():
    """Every `python main.py` line of the README parses: its config, mode and fields exist."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^ *(python main\.py .*)$", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in dict.fromkeys(lines):
        arguments = re.sub(r"#.*", "", line).split()[2:]
        workdir = "--workdir=/nonexistent/run"
        result = main(*[a.strip("'\"") for a in arguments], workdir, "--config.seed=notanumber")
        # Every flag before the last one was accepted: the only complaint is about that one.
        assert "config.seed" in result.stderr, (line, result.stderr)


def test_readme_table_is_the_one_that_was_measured():
    """The table in the README is, line by line, what the results.json beside it prints."""
    results = json.loads((ROOT / "docs" / "digits" / "results.json").read_text())
    console = Console(width=132, markup=False, highlight=False, file=io.StringIO())
    console.print(results_table(results))
    printed = [line.rstrip() for line in console.file.getvalue().strip().splitlines()]
    text = (ROOT / "README.md").read_text()
    shown = next(block for block in text.split("```") if "mean of draws [95 %]" in block)
    assert [line.rstrip() for line in shown.strip().splitlines()] == printed

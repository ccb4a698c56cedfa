"""The commands of the README, and what they say when something is wrong with them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from purify.data import datasets
from purify.evals.core.terminal import print_table
from purify.evals.robust.show import results_table
from purify.runtime.paths import split_paths
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
        ((*BASE, "--mode=report", "--config.adp.sigma=nan"), "config.adp.sigma=nan must be finite"),
        (
            (*BASE, "--mode=certify", "--config.certify.sigmas=nan"),
            "--config.certify.sigmas=('nan',) must be finite",
        ),
        ((*BASE, "--mode=certify", "--config.certify.sigmas=(nan,)"), "(nan,) is no tuple: write"),
        (
            (*BASE, "--mode=purify", "--config.certify.radii=(0.1, 1e999)"),
            "--config.certify.radii=(0.1, inf) must be finite",
        ),
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
        shutil.copytree(trained.workdir / "classifier", tmp_path / "classifier")
    result = trained.main("--mode=eval_robust", f"--workdir={tmp_path}")
    mode = {"classifier": "train_classifier", "score": "train"}[missing]
    assert result.returncode == 2
    command = f"python main.py --config=configs/digits.py --mode={mode} --workdir={tmp_path}"
    assert result.stderr.strip().splitlines()[-1] == f"run: {command}"


def test_a_suggested_command_is_quoted_and_leads_from_where_the_user_stands(tmp_path):
    config = tmp_path / "my configs" / "own [1].py"
    config.parent.mkdir()
    config.write_text(OWN)
    workdir = tmp_path / "it's $HOME #1"
    arguments = ["--config", str(config), "--mode=eval_robust", f"--workdir={workdir}"]
    result = main_from(tmp_path, *arguments)
    assert result.returncode == 2
    command = shlex.split(result.stderr.strip().splitlines()[-1].removeprefix("run: "))
    assert command[:2] == ["python", str(ROOT / "main.py")]
    assert command[2:] == [f"--config={config}", "--mode=train_classifier", f"--workdir={workdir}"]


# A config of a user's own.
OWN = """
from configs.digits import get_config as digits

def get_config(variant=""):
    config = digits()
    config.data.name = "digits8x8"
    config.variants.other = dict(purifier="identity", classifier="~/elsewhere")
    config.eval.defenses = ("identity", "other")
    return config
"""


def main_from(folder, *arguments, **environment):
    """`python .../main.py` of a user who stands in that folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def parsed(folder, *arguments, **environment):
    """What main.py makes of a command line, as JSON, without doing it: config, workdir, options."""
    script = f"""
import json, sys, types
sys.path.insert(0, {str(ROOT)!r})
import main
def run(config, workdir, **options):
    print(json.dumps([config.to_dict(), str(workdir), options]))
sys.modules["printing"] = types.SimpleNamespace(run=run)
main.MODES = dict.fromkeys(main.MODES, "printing")
main.parse_flags(sys.argv)
main.main(sys.argv)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


NAMES = ["a b", "a#b", "[1]", "{a}", "a*?", "100%", "a&b", "é", "a,b", "it's", 'a"b', "a:b"]


def test_a_config_may_lie_anywhere_and_be_named_in_two_arguments(tmp_path):
    """Once for each two of the names: of its folder and of its file."""
    flags = []
    for i, name in enumerate(NAMES):
        path = tmp_path / name / f"{NAMES[i - 1]}.py"
        path.parent.mkdir()
        path.write_text(OWN)
        flags += [["--config", str(path)], [f"--config={path}:variant"]]
    script = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
import main
for flags in {flags!r}:
    main.flags.FLAGS.unparse_flags()
    main._FILE.config = None
    main.parse_flags(["main.py", *flags, "--mode=train"])
    file = main.config_flags.get_config_filename(main.flags.FLAGS["config"])
    print(json.dumps([main._CONFIG.value.data.name, main.split_config(file)]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    expected = [
        ["digits8x8", [given, variant]] for _, given in flags[::2] for variant in ("", "variant")
    ]
    assert lines == expected


def test_from_another_folder_the_configs_are_those_beside_main(tmp_path):
    result = main_from(tmp_path, "--config=configs/digits.py", "--mode=train")
    assert result.returncode == 2
    listed = result.stderr.strip().partition("there are ")[2].split(", ")
    assert len(listed) == len(list((ROOT / "configs").glob("*.py"))) - 1
    assert all((tmp_path / path).is_file() for path in listed)


def test_every_path_of_the_command_line_has_its_home_expanded(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = ["--config=~/own.py", "--workdir=~/new run", "--mode=purify"]
    flags += ["--input=~/in.npy", "--output=~/out.npy"]
    config, workdir, options = parsed(ROOT, *flags, HOME=str(tmp_path))
    assert workdir == f"{tmp_path}/new run"
    assert options == {"input": f"{tmp_path}/in.npy", "output": f"{tmp_path}/out.npy"}
    assert config["variants"]["other"]["classifier"] == f"{tmp_path}/elsewhere"


def test_of_a_flag_given_twice_the_last_value_counts(tmp_path):
    flags = ["--config=configs/digits.py", "--mode=train"]
    flags += ["--config.eval.attacks=blind", "--config.eval.attacks=('exact', 'bpda')"]
    flags += ["--config.eval.defenses=('adp',)", "--config.eval.defenses", "identity"]
    flags += ["--config.seed=1", "--config.seed=2", "--config.classifier.network.widths=(8,)"]
    config = parsed(ROOT, *flags)[0]
    assert config["eval"]["attacks"] == ["exact", "bpda"]
    assert config["eval"]["defenses"] == ["identity"]
    assert config["seed"] == 2 and config["classifier"]["network"]["widths"] == [8]


def test_a_config_given_twice_is_refused():
    result = main("--config=configs/digits.py", "--config=configs/mnist.py", "--mode=train")
    assert result.returncode == 2 and "--config is given twice" in result.stderr


def test_a_comma_separates_paths_unless_it_is_part_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("a", "b", "c,d", ",e,", "home/f", "x", "y", "x,y"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for text, paths in {
        "a": ["a"],
        "a,b": ["a", "b"],
        "c,d": ["c,d"],
        "a,c,d,b": ["a", "c,d", "b"],
        ",e,,a": [",e,", "a"],
        "~/f,~/f": [f"{tmp_path}/home/f"] * 2,
        "a,nowhere": ["a", "nowhere"],
    }.items():
        assert [str(path) for path in split_paths(text)] == paths, text
    with pytest.raises(ValueError, match="has two readings: .'x', 'y'. and .'x,y'."):
        split_paths("x,y")


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


def test_an_output_whose_name_is_no_utf_8_is_written_and_told(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as on a desktop
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


def test_readme_table_is_the_one_that_was_measured(capsys):
    """The table in the README is, line by line, what the results.json beside it prints."""
    results = json.loads((ROOT / "docs" / "digits" / "results.json").read_text())
    print_table(results_table(results))
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    text = (ROOT / "README.md").read_text()
    shown = next(block for block in text.split("```") if "mean of draws [95 %]" in block)
    assert [line.rstrip() for line in shown.strip().splitlines()] == printed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Digits as TFDS prepares them, in a folder whose own name has a special character."""
    folder = tmp_path_factory.mktemp("prepared [1]")
    datasets.load("digits8x8", "test", data_dir=str(folder))
    return folder


@pytest.mark.parametrize("name", ["x[1]", "a*", "**", "a?", "a#b %,é", "a\\b"])
def test_data_may_lie_in_a_folder_of_any_name(prepared, tmp_path, name):
    """Beside folders that the name matches where it is taken for a pattern."""
    for folder in ("ab", "x1", name):
        shutil.copytree(prepared, tmp_path / folder)
        assert len(datasets.load("digits8x8", "test[:5]", data_dir=str(tmp_path / folder))) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"ab", "x1", name})
    with pytest.raises(FileNotFoundError, match=re.escape(f"mnist is not in '{tmp_path / name}/")):
        datasets.load("mnist", "test", data_dir=str(tmp_path / name))

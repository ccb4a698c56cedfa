"""What holds for every mode that computes images, each run once on the first few of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import pytest

from purify.evals import (
    ablate,
    certify,
    corruptions,
    detect,
    gradients,
    plots,
    purify_files,
    robust,
    sample,
)
from purify.evals.robust import versions
from purify.runtime import parallel
from purify.saving.jsonl import read_lines
from purify.training import train_classifier, train_score

LIMIT = 50  # config.eval.batch_size
TINY = {
    "eval.batch_size": LIMIT,
    "eval.defenses": ("identity", "noise_only"),
    "eval.attacks": ("blind", "exact"),
    "defense.purifier": "noise_only",
    "attacks.blind.num_steps": 2,
    "attacks.exact.defenses": ("noise_only",),
    "attacks.exact.num_images": 2,
    "certify.defenses": ("noise_only",),
    "certify.num_selection": 20,
    "certify.num_samples": 100,
    "certify.num_images": 3,
    "check.num_images": 3,
    "check.num_steps": 2,
    "check.eot_samples": 2,
    "check.num_draws": 2,
    "check.proposals": 2,
    "check.directions": 1,
    "corruptions.names": ("contrast",),
    "corruptions.severities": (1,),
    "corruptions.defenses": ("noise_only",),
    "corruptions.num_images": 10,
    "detect.statistics": ("score_norm",),
    "detect.calibration_split": "validation[:40]",
    "detect.num_images": 10,
    "detect.weights": (1.0,),
    "detect.eot_samples": 1,
    "detect.num_draws": 1,
    "detect.corruptions": ("contrast",),
    "sample.num_images": 3,
    "sample.num_levels": 2,
    "sample.steps_per_level": 1,
    "sample.purifiers": ("noise_only",),
    "sample.positions": (5, 2),
    "ablate.names": ("sigma",),
    "ablate.attacks": ("blind",),
    "ablate.factors.sigma.fields": ("noise_only.sigma",),
    "ablate.factors.sigma.at": (0.1,),
    "ablate.num_images": 10,
}


@dataclasses.dataclass(frozen=True)
class Mode:
    """run: (config, workdir, **options). sizes: of all batches of images. figures: how many."""

    run: Callable
    options: dict
    sizes: set[int]
    figures: int


LIMITED = {"max_images": 3}
MODES = {
    # On two images the attack by gradients, and the choice of the strongest on each.
    "eval_robust": Mode(robust.run, LIMITED, {2, 3}, 3 + 3),
    "eval_corruptions": Mode(corruptions.run, LIMITED, {3}, 1),
    "check_gradients": Mode(gradients.run, {}, {3}, 0),
    "detect": Mode(detect.run, LIMITED, {3, 40}, 2),  # 40 set the threshold
    "sample": Mode(sample.run, {}, {2, 3}, 3),
    "ablate": Mode(ablate.run, LIMITED, {3}, 1),
    "certify": Mode(certify.run, {}, set(), 1),
    "purify": Mode(purify_files.run, {"input": "three.npy", "output": "pure.npy"}, {3}, 0),
}


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a mode did whose pictures all fail to be drawn: the sizes of its batches, in order; what
    it printed; the error that it ended in; the folder that it wrote to."""

    mode: Mode
    sizes: list[int]
    printed: str
    error: Exception | None
    folder: Path


def run_mode(name: str, trained, workdir: Path, printed: Callable[[], str]) -> Ran:
    mode, sizes = MODES[name], []
    trained.copied_into(workdir)
    np.save(workdir / "three.npy", np.full((3, 8, 8, 1), 0.5, np.float32))
    options = {
        key: str(workdir / value) if isinstance(value, str) else value
        for key, value in mode.options.items()
    }

    def recorded(function, at: int):
        def call(*args, **kwargs):
            leaf = jax.tree.leaves(args[at])[0]
            if np.ndim(leaf) and name != "certify":  # which shares samples over the devices
                sizes.append(len(leaf))
            return function(*args, **kwargs)

        return call

    def broken(*_, **__):
        raise RuntimeError("there is no ink\nleft")

    error = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "shard", recorded(parallel.shard, 0))
        patch.setattr(versions, "_versions", recorded(versions._versions, 1))
        for function in ("corrupted", "noisy"):
            patch.setattr(detect, function, recorded(getattr(detect, function), 1))
        patch.setattr(matplotlib.figure.Figure, "savefig", broken)
        patch.setattr(plots, "image_grid", broken)  # which needs no figure of Matplotlib's
        try:
            mode.run(trained.config(**TINY), workdir, **options)
        except Exception as raised:
            error = raised
    (folder,) = workdir.glob(f"{name}/*") if name != "purify" else [workdir]
    return Ran(mode, sizes, printed(), error, folder)


SLOW = ("check_gradients",)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODES]
)
def ran(request, trained, tmp_path_factory, capsys) -> Ran:
    """A mode, run once for all tests of it."""
    if request.param not in _RAN:
        workdir = tmp_path_factory.mktemp(request.param)
        _RAN[request.param] = run_mode(
            request.param, trained, workdir, lambda: capsys.readouterr().out
        )
    return _RAN[request.param]


_RAN: dict[str, Ran] = {}


def test_no_batch_has_more_images_than_are_asked_for(ran):
    assert set(ran.sizes) == ran.mode.sizes


def test_what_computed_is_noted_with_the_largest_of_its_batches(ran):
    if ran.mode.sizes and (ran.folder / "provenance.jsonl").exists():
        (signature,) = read_lines(ran.folder / "provenance.jsonl")
        assert signature["batch_size"] == max(ran.mode.sizes)


def test_pictures_that_fail_are_left_out_and_cost_nothing_else(ran):
    """Not the numbers, not the table, and no traceback; what is left out is said, once each."""
    assert ran.error is None
    assert ran.printed.count("(RuntimeError: there is no ink)\n") == ran.mode.figures
    assert ran.printed.count("left out: ") == ran.mode.figures
    assert not list(ran.folder.glob("figures/*"))
    if ran.mode.run is not purify_files.run:
        json.loads((ran.folder / "results.json").read_text())
        written = ran.printed.rpartition("written:")[2]
        assert f"{ran.folder}/results.json" in written and "figures/" not in written


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
@pytest.mark.parametrize("name", [*MODES, "train_classifier", "train"])
def test_a_seed_that_is_none_is_refused_before_anything_is_written(trained, workdir, name, seed):
    """2**32 would draw what 0 draws."""
    np.save(workdir / "three.npy", np.full((3, 8, 8, 1), 0.5, np.float32))
    trains = {"train_classifier": train_classifier.run, "train": train_score.run}
    before = sorted(workdir.iterdir())
    paths = {"input": str(workdir / "three.npy"), "output": str(workdir / "pure.npy")}
    options = paths if name == "purify" else {}
    run = trains.get(name) or MODES[name].run
    with pytest.raises(ValueError, match=f"config.seed={seed} must be an integer from 0 to 2"):
        run(trained.config(**TINY, seed=seed), workdir, **options)
    assert sorted(workdir.iterdir()) == before


def test_a_command_that_goes_on_computes_in_batches_of_the_size_it_began_with(
    trained, workdir, monkeypatch
):
    """Five images at most four at a time are three and two in batches of three, also when one alone
    is missing: another size would round otherwise."""
    config = trained.config(
        **TINY | {"eval.defenses": ("noise_only",), "eval.attacks": (), "eval.batch_size": 4}
    )
    sizes, shard = [], parallel.shard
    monkeypatch.setattr(
        parallel, "shard", lambda batch: (sizes.append(len(batch[-1])), shard(batch))[1]
    )
    robust.run(config, workdir, max_images=5)
    (file,) = workdir.glob("eval_robust/*/images.jsonl")
    assert set(sizes) == {3}
    seconds = [record["seconds"] for record in read_lines(file)]
    # A batch's time is shared by the images in it, not by what fills it up.
    assert seconds[0] == seconds[2] != seconds[3] == seconds[4]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[4:]))
    sizes.clear()
    robust.run(config, workdir, max_images=5)
    assert set(sizes) == {3} and len(read_lines(file)) == 5


@pytest.mark.parametrize(
    ("devices", "limit", "images", "size"),
    [
        (1, 50, 200, 50),  # as many batches as ever where the limit divides the images
        (1, 50, 60, 30),
        (1, 50, 101, 34),
        (1, 50, 10, 10),
        (1, 50, 1, 1),
        (4, 48, 3, 4),  # every device has one
        (4, 48, 50, 28),
        (4, 48, 96, 48),
    ],
)
def test_batches_are_equal_and_hold_little_but_images(monkeypatch, devices, limit, images, size):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert parallel.balanced(limit, images) == size
    batches = -(-images // size)
    assert batches == -(-images // limit) and size % devices == 0
    assert batches * size - images < batches * devices
    # Where neighbours count, the first batch_size images stay together.
    assert parallel.balanced(limit, images, blocks=True) == (limit if images > limit else size)

"""--mode=sample: what is written, that paths end where purifiers do, and what is refused."""

import importlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify import data
from purify.adp import CURVATURES
from purify.checkpoint import load_score
from purify.defense import first_run
from purify.evals import sample
from purify.image_io import load_labelled_npz, load_npz
from purify.jsonl import read_lines
from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.noise import add_noise
from purify.purifiers import PURIFIERS, build
from purify.random import image_keys
from purify.types import Stepwise
from tests.oracles import make_score

SHAPE, KEY = (6, 6, 1), jax.random.key(0)
BUDGET = {
    "sample.num_images": 6,
    "sample.num_levels": 4,
    "sample.steps_per_level": 2,
    "sample.purifiers": ("adp", "schedule", "noise_only"),
    "sample.positions": (5, 2),
}
PRIOR = BUDGET | {"sample.start": "prior", "sample.purifiers": ()}


def only_folder(workdir):
    (folder,) = (workdir / "sample").iterdir()
    return folder


def records(folder) -> dict:
    lines = read_lines(folder / "images.jsonl")
    return {(line["row"], line["index"]): line for line in lines}


def images_of(trained, number=8):
    return data.load("digits8x8", f"test[:{number}]", data_dir=trained.tfds).images / np.float32(
        255
    )


# Paths of purifiers


@jax.jit
def purify(purifier, keys, images):
    return jax.vmap(purifier.trace)(keys, images)


@jax.jit
def follow(purifier, keys, images):
    """The path and its trace, h at every image of it, and x_0 by itself."""
    path, trace = jax.vmap(purifier.path)(keys, images)
    noised = jax.vmap(add_noise, (0, 0, None))(keys, images, purifier.sigma)
    return path, trace, jax.vmap(jax.vmap(purifier.score))(path), noised


STEPWISE = [("one_step", {}), ("schedule", {})]
STEPWISE += [
    ("adp", {"curvature": curvature, "loop": loop, "num_steps": 12, "tau": 1.5e-3})
    for curvature, loop in [*((curvature, "while") for curvature in CURVATURES), ("jvp", "scan")]
]


@pytest.mark.parametrize(("name", "options"), STEPWISE)
def test_a_path_begins_with_the_noise_and_ends_in_the_purified_image(name, options):
    purifier = build(name, make_score(SHAPE), **options)
    batch = jax.random.split(KEY, 8), jax.random.uniform(jax.random.key(1), (8, *SHAPE))
    outputs, trace = jax.device_get(purify(purifier, *batch))
    path, of_path, h, noised = jax.device_get(follow(purifier, *batch))
    num_steps = getattr(purifier, "num_steps", 1)
    assert path.shape == (8, num_steps + 1, *SHAPE)
    np.testing.assert_array_equal(path[:, 0], noised)
    np.testing.assert_array_equal(path[:, -1], outputs)
    jax.tree.map(np.testing.assert_array_equal, of_path, trace)
    # Each step goes from one image to the next by its step size, and its norm is of the former.
    taken = np.arange(num_steps) < trace.steps[:, None]
    sizes = (trace.step_sizes * taken)[..., None, None, None]
    moved = np.clip(path[:, :-1] + sizes * h[:, :-1], 0, 1)
    np.testing.assert_allclose(path[:, 1:], moved, atol=1e-6)
    norms = np.sqrt((h[:, :-1].astype(float) ** 2).mean((2, 3, 4)))
    np.testing.assert_allclose(norms[taken], trace.score_norms[taken], rtol=1e-5)
    if name == "adp":
        assert len(set(trace.steps.tolist())) >= 3 and min(trace.steps) < 12  # some stop early


def test_what_shows_its_steps():
    options = dict(natural={"purifier": "schedule"}, suspected={"purifier": "adp"})
    shown = {
        name
        for name in PURIFIERS
        if isinstance(
            build(name, make_score(SHAPE), **(options if name == "detect_then_purify" else {})),
            Stepwise,
        )
    }
    assert shown == {"one_step", "schedule", "adp"}


# The mode


def test_samples_and_paths_are_written_and_can_be_read_again(trained, workdir, capsys):
    sample.run(trained.config(**BUDGET), workdir)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    for name in ("samples", "starts", "path-adp", "path-schedule", "path-noise_only"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
        assert f"{name}.png" in capsys.readouterr().out or name != "samples"
    images, labels, index = load_labelled_npz(folder / "samples.npz", (8, 8, 1))
    given = images_of(trained)
    assert index.tolist() == list(range(6))
    score = load_score(workdir)
    assert results["samples"]["sigma_max"] == 0.6 and results["samples"]["sigma_min"] == 0.01
    a = balanced_step_size(0.6, 0.01, 4, 2)
    assert results["samples"]["step_size"] == a
    assert results["samples"]["eps"] == pytest.approx(a * 0.01**2)
    sampler = AnnealedLangevin(score, 0.6, 0.01, 4, 2, a)
    keys = image_keys(0, np.arange(6), stream="sample")
    expected = np.clip(jax.jit(jax.vmap(sampler))(keys, given[:6]), 0, 1)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert np.abs(images - given[:6]).max() > 0.1

    paths = {(e["defense"]["name"], e["index"]): e for e in results["paths"]}
    assert list(paths) == [(n, i) for n in ("adp", "schedule", "noise_only") for i in (5, 2)]
    adp = build("adp", score, num_steps=3)
    key = first_run(image_keys(0, np.array([2]))[0])
    path, trace = jax.jit(adp.path)(key, given[2])
    stored = np.load(folder / "arrays" / "path-adp.npy")[1]
    np.testing.assert_array_equal(stored[0], given[2])
    np.testing.assert_allclose(stored[1:], path, atol=1e-4)
    entry = paths["adp", 2]
    assert entry["stepwise"] and entry["steps"] == int(trace.steps)
    np.testing.assert_allclose(entry["step_sizes"], trace.step_sizes, rtol=1e-3)
    assert len(entry["score_norms"]) == len(entry["predictions"]) == 5
    np.testing.assert_allclose(entry["score_norms"][1:4], trace.score_norms, rtol=1e-3)
    alone = paths["noise_only", 5]
    assert not alone["stepwise"] and len(alone["score_norms"]) == 2 and alone["steps"] == 0


def test_predictions_are_those_that_the_evaluation_has_of_its_first_run(trained, workdir):
    """The images that an evaluation has attacked can be followed, and end as they did there."""
    config = trained.config(**{"eval.attacks": ("blind",), "eval.defenses": ("identity", "adp")})
    importlib.import_module("purify.evals.robust").run(config, workdir)
    (evaluation,) = (workdir / "eval_robust").iterdir()
    (file,) = (evaluation / "attacked").glob("*.npz")
    attacked = load_npz(file, "attacked")
    budget = BUDGET | {"sample.num_images": 0, "sample.purifiers": ("adp",)}
    sample.run(trained.config(**budget), workdir, input=str(file))
    folder = only_folder(workdir)
    assert not (folder / "samples.npz").exists()
    rows = records(evaluation)
    for position in (5, 2):
        index = int(attacked["index"][position])
        path = records(folder)["path-adp", index]
        assert path["label"] == attacked["labels"][position]
        assert path["predictions"][-1] == rows["adp-blind", index]["predictions"][0][0]
        place = (5, 2).index(position)
        stored = np.load(folder / "arrays" / "path-adp.npy")[place, 0]
        np.testing.assert_array_equal(stored, attacked["images"][position])


def test_it_goes_on_where_it_stopped_and_ends_the_same(trained, workdir):
    config = trained.config(**BUDGET)
    sample.run(config, workdir)
    folder = only_folder(workdir)
    whole, before = load_npz(folder / "samples.npz", "")["images"], records(folder)
    stored = np.load(folder / "arrays" / "path-adp.npy")
    # As if it had been killed after the first batch of samples, four of the six.
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    (folder / "images.jsonl").write_text("".join(lines[:4]))
    for name in ("samples.npz", "results.json", "arrays/path-adp.npy"):
        (folder / name).unlink()
    sample.run(config, workdir)
    assert only_folder(workdir) == folder
    np.testing.assert_array_equal(load_npz(folder / "samples.npz", "")["images"], whole)
    np.testing.assert_array_equal(np.load(folder / "arrays" / "path-adp.npy"), stored)
    after = records(folder)
    assert after.keys() == before.keys()
    assert all(after[k]["seconds"] == before[k]["seconds"] for k in list(before)[:4])
    config.seed = 1
    sample.run(config, workdir)
    (other,) = set((workdir / "sample").iterdir()) - {folder}
    assert np.abs(load_npz(other / "samples.npz", "")["images"] - whole).max() > 0.1


def test_from_noise_alone_and_without_a_classifier(trained, tmp_path):
    """A model that its settings say was trained on noise enough."""
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    settings = json.loads((tmp_path / "score" / "settings.json").read_text())
    (tmp_path / "score" / "settings.json").write_text(json.dumps(settings | {"sigma_max": 4.0}))
    sample.run(trained.config(**PRIOR | {"sample.purifiers": ("one_step",)}), tmp_path)
    folder = only_folder(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["samples"]["sigma_max"] == 4.0
    assert all(entry["predictions"] is None for entry in results["paths"])
    arrays = load_npz(folder / "samples.npz", "samples")
    assert "labels" not in arrays and arrays["images"].shape == (6, 8, 8, 1)
    a = results["samples"]["step_size"]
    sampler = AnnealedLangevin(load_score(tmp_path), 4.0, 0.01, 4, 2, a)
    keys = image_keys(0, np.arange(6), stream="sample")
    centres = jnp.full((6, 8, 8, 1), 0.5)
    expected = np.clip(jax.jit(jax.vmap(sampler))(keys, centres), 0, 1)
    np.testing.assert_allclose(arrays["images"], expected, atol=1e-4)
    assert not (folder / "figures" / "starts.png").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample.start": "grey"}, "config.sample.start 'grey' is unknown; known: noised, prior"),
        ({"sample.start": "prior"}, "sigma_max >= 4, not 0.6: start from 'noised' images, or"),
        ({"sample.sigma_max": 1.0}, "lie within the noise that the score model in"),
        ({"sample.sigma_min": 0.001}, "was trained on, 0.6 to 0.01"),
        ({"sample.num_levels": 1}, "num_levels=1"),
        ({"sample.step_size": 2.0}, "step_size=2.0"),
        ({"sample.steps_per_level": 0}, "steps_per_level=0"),
        ({"sample.num_images": -1}, "config.sample.num_images=-1"),
        ({"sample.positions": (0, 600)}, "config.sample.positions=(0, 600) must be different"),
        ({"sample.positions": (1, 1)}, "config.sample.positions=(1, 1) must be different"),
        ({"sample.purifiers": ("wall",)}, "config.sample.purifiers 'wall' is unknown; known: "),
        ({"sample.purifiers": ("adp_reference",)}, "adp_reference decides a batch together"),
        ({"sample.num_images": 0, "sample.positions": ()}, "config.sample asks for nothing"),
        ({"eval.batch_size": 0}, "config.eval.batch_size=0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(trained, workdir, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        sample.run(trained.config(**BUDGET | changes), workdir)
    assert not (workdir / "sample").exists()


def test_a_model_of_other_noise_has_no_samples_but_paths(trained, tmp_path):
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    settings = json.loads((tmp_path / "score" / "settings.json").read_text())
    settings["perturbation"] = {"name": "augmix", "sigma_eff": 0.1}
    (tmp_path / "score" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has learnt to undo 'augmix'"):
        sample.run(trained.config(**BUDGET), tmp_path)
    sample.run(trained.config(**BUDGET | {"sample.num_images": 0}), tmp_path)
    assert (only_folder(tmp_path) / "figures" / "path-adp.png").exists()


def test_the_command(trained, workdir):
    flags = [f"--config.{field}={value}" for field, value in BUDGET.items()]
    result = trained.main("--mode=sample", f"--workdir={workdir}", *flags, devices=2)
    assert result.returncode == 0, result.stderr
    folder = only_folder(workdir)
    assert f"{folder}/figures/path-adp.png" in result.stdout
    assert len(records(folder)) == 6 + 3 * 2

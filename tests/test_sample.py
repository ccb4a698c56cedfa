"""--mode=sample: what is written, that paths end where purifiers do, and what is refused."""

import functools
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.data import datasets
from purify.data.image_io import load_labelled_npz, load_npz
from purify.defense import first_run
from purify.evals import robust, sample
from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.purifiers import PURIFIERS, build
from purify.purifiers.adp import CURVATURES
from purify.purifiers.noise import add_noise
from purify.random import image_keys
from purify.runtime.errors import FileError
from purify.saving.checkpoint import Checkpoints, load_score, weight_hash
from purify.saving.jsonl import read_lines
from purify.saving.settings import claim, read_settings
from purify.training.losses import noise_levels
from purify.types import Stepwise
from tests.oracles import GaussianScore, make_score
from tests.test_robust import untimed
from tests.written import rewrite_settings

SHAPE, KEY = (6, 6, 1), jax.random.key(0)
BUDGET = {
    "sample.num_images": 6,
    "sample.num_levels": 4,
    "sample.steps_per_level": 2,
    "sample.purifiers": ("adp", "noise_only"),
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
    return datasets.load(
        "digits8x8", f"test[:{number}]", data_dir=trained.tfds
    ).images / np.float32(255)


# Paths of purifiers


def stepwise_purifiers():
    """Some of whose images stop early."""
    levels = jnp.asarray(noise_levels(0.6, 0.01, 40))
    gaussian = GaussianScore(jax.random.uniform(jax.random.key(2), SHAPE), 0.02, levels)
    adaptive = {"num_steps": 12, "tau": 2.2e-3}
    made = {name: build(name, gaussian) for name in ("one_step", "schedule")}
    for curvature in CURVATURES:
        made[curvature] = build("adp", gaussian, **adaptive, curvature=curvature)
    made["scan"] = build("adp", gaussian, **adaptive, loop="scan")
    made["network"] = build("adp", make_score(SHAPE), num_steps=12, tau=1.5e-3)
    return made


def test_a_path_begins_with_the_noise_and_ends_in_the_purified_image(x64):
    """Also where the purifier's own loop is another: in double precision, so that no finite
    difference of scores makes rounding large."""
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)

    @jax.jit  # all together: most of what is compiled is the noise, which is the same
    def purify(purifiers, keys, images):
        return {name: jax.vmap(p.trace)(keys, images) for name, p in purifiers.items()}

    @jax.jit
    def follow(purifiers, keys, images):
        return {name: jax.vmap(p.path)(keys, images) for name, p in purifiers.items()}

    purifiers = stepwise_purifiers()
    batch = jax.random.split(KEY, 8), jax.random.uniform(jax.random.key(1), (8, *SHAPE))
    purified, followed = jax.device_get((purify(purifiers, *batch), follow(purifiers, *batch)))
    noised = jax.vmap(add_noise, (0, 0, None))(*batch, 0.25)
    for name, purifier in purifiers.items():
        (output, trace), (path, of_path) = purified[name], followed[name]
        num_steps = getattr(purifier, "num_steps", 1)
        assert path.shape == (8, num_steps + 1, *SHAPE)
        close(path[:, 0], noised)
        close(path[:, -1], output, err_msg=name)
        jax.tree.map(close, of_path, trace)
        # Each step goes from one image to the next by its step size; its norm is of the former.
        h = np.asarray(jax.vmap(jax.vmap(purifier.score))(path[:, :-1]))
        taken = np.arange(num_steps) < trace.steps[:, None]
        sizes = (trace.step_sizes * taken)[..., None, None, None]
        moved = np.clip(path[:, :-1] + sizes * h, 0, 1)
        np.testing.assert_allclose(path[:, 1:], moved, atol=1e-6)
        norms = np.sqrt((h.astype(float) ** 2).mean((2, 3, 4)))
        np.testing.assert_allclose(norms[taken], trace.score_norms[taken], rtol=1e-4)
        assert taken.all() == (name in ("one_step", "schedule"))


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
    assert shown == {"one_step", "schedule", "adp", "detect_then_purify"}


# The mode


def test_samples_and_paths_are_written_and_can_be_read_again(trained, workdir, capsys):
    sample.run(trained.config(**BUDGET), workdir)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    out = capsys.readouterr().out
    for name in ("samples", "starts", "path-adp", "path-noise_only"):
        figure = folder / "figures" / f"{name}.png"
        assert figure.stat().st_size > 1000 and str(figure) in out
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
    assert list(paths) == [(n, i) for n in ("adp", "noise_only") for i in (5, 2)]
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

    assert "was done before" not in out
    sample.run(trained.config(**BUDGET), workdir)
    assert "all of it was done before, nothing is computed" in capsys.readouterr().out


def test_a_path_is_that_of_the_first_run_that_an_evaluation_scores(trained, workdir):
    noise = {"adp.sigma": 0.5}  # of one_step too: so much that draws differ
    rows = {"eval.attacks": (), "eval.defenses": ("one_step",)}
    robust.run(trained.config(**noise | rows), workdir)
    (evaluation,) = (workdir / "eval_robust").iterdir()
    scored = records(evaluation)
    changes = {"sample.num_images": 0, "sample.purifiers": ("one_step",)}
    everyone = {"sample.positions": tuple(range(10))}
    sample.run(trained.config(**BUDGET | noise | changes | everyone), workdir)
    folder = only_folder(workdir)
    assert not (folder / "samples.npz").exists()
    answers = [scored["one_step-clean", index]["predictions"] for index in range(10)]
    shown = [records(folder)["path-one_step", index]["predictions"][-1] for index in range(10)]
    first = [draws[0][0] for draws in answers]
    assert shown == first
    assert first != [draws[1][0] for draws in answers] and first != [d[0][1] for d in answers]


def test_the_norms_on_a_path_are_those_of_the_model_that_takes_its_steps(
    trained, workdir, tmp_path
):
    settings, variables = read_settings(workdir / "score"), load_score(workdir).variables
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, variables)
    claim(tmp_path / "other" / "score", settings)
    with Checkpoints(tmp_path / "other" / "score", training=True) as checkpoints:
        checkpoints.save(0, {"ema": halved})
    changes = {"variants.other": dict(purifier="one_step", score=str(tmp_path / "other"))}
    changes |= {"sample.num_images": 0, "sample.purifiers": ("one_step", "other")}
    sample.run(trained.config(**BUDGET | changes), workdir)
    found = records(only_folder(workdir))
    for name, score in (
        ("one_step", load_score(workdir)),
        ("other", load_score(tmp_path / "other")),
    ):
        image = images_of(trained)[5]
        norm = np.sqrt(np.mean(np.asarray(score(image), float) ** 2))
        assert found[f"path-{name}", 5]["score_norms"][0] == pytest.approx(norm, rel=1e-3)
    assert len({found[f"path-{name}", 5]["score_norms"][0] for name in ("one_step", "other")}) == 2


def test_given_images_are_followed_with_the_keys_of_their_own_indices(trained, workdir, tmp_path):
    images = 1 - images_of(trained)
    given = dict(images=images[:3], labels=np.array([1, 2, 3]), index=np.array([40, 5, 7]))
    np.savez(tmp_path / "given.npz", **given)
    changes = {"sample.num_images": 0, "sample.positions": (1, 0), "sample.purifiers": ("adp",)}
    config = trained.config(**BUDGET | changes)
    sample.run(config, workdir, input=str(tmp_path / "given.npz"))
    folder = only_folder(workdir)
    assert [(r["index"], r["label"]) for r in records(folder).values()] == [(5, 2), (40, 1)]
    adp = build("adp", load_score(workdir), num_steps=3)
    for place, index in enumerate((5, 40)):
        stored = np.load(folder / "arrays" / "path-adp.npy")[place]
        np.testing.assert_array_equal(stored[0], images[1 - place])
        key = first_run(image_keys(0, np.array([index]))[0])
        noised = add_noise(key, images[1 - place], adp.sigma)
        np.testing.assert_allclose(stored[1], noised, atol=1e-6)


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


@pytest.mark.parametrize("name", ["samples", "path-adp"])
def test_images_that_were_lost_are_computed_again(trained, workdir, name, capsys):
    """Their lines are there: to draw a picture of nothing would be no answer."""
    config = trained.config(**BUDGET)
    sample.run(config, workdir)
    folder = only_folder(workdir)
    path, before = folder / "arrays" / f"{name}.npy", untimed(read_lines(folder / "images.jsonl"))
    content = path.read_bytes()
    path.unlink()
    sample.run(config, workdir)
    assert f"index 2: arrays/{name}.npy lacks its image" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert untimed(read_lines(folder / "images.jsonl")) == before
    os.truncate(path, len(content) - 100)
    with pytest.raises(FileError, match=f"{name}.npy has .* bytes, expected"):
        sample.run(config, workdir)


def test_from_noise_alone_and_without_a_classifier(trained, tmp_path):
    """A model that its settings say was trained on noise enough."""
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    settings = json.loads((tmp_path / "score" / "settings.json").read_text())
    rewrite_settings(tmp_path / "score", settings | {"sigma_max": 4.0})
    sample.run(trained.config(**PRIOR | {"sample.purifiers": ("one_step",)}), tmp_path)
    folder = only_folder(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["samples"]["sigma_max"] == 4.0
    assert all(entry["predictions"] is None for entry in results["paths"])
    arrays = load_npz(folder / "samples.npz", "samples")
    assert "labels" not in arrays and arrays["images"].shape == (6, 8, 8, 1)
    grey = np.full((6, 8, 8, 1), 0.5, np.float32)
    centres = {"images": grey, "labels": np.zeros(6, int), "indices": np.arange(6)}
    assert results["samples"]["around"] == weight_hash(centres)
    assert len(np.unique(arrays["images"].reshape(6, -1), axis=0)) == 6
    assert not (folder / "figures" / "starts.png").exists()


def test_without_a_classifier_given_images_have_their_labels_numbers(trained, tmp_path):
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    np.savez(tmp_path / "given.npz", images=images_of(trained)[:3], labels=np.array([1, 12, 3]))
    changes = {"sample.num_images": 0, "sample.positions": (1,), "sample.purifiers": ("one_step",)}
    config = trained.config(**BUDGET | changes)
    sample.run(config, tmp_path, input=str(tmp_path / "given.npz"))
    folder = only_folder(tmp_path)
    assert records(folder)["path-one_step", 1]["label"] == 12
    assert (folder / "figures" / "path-one_step.png").stat().st_size > 1000


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
    rewrite_settings(tmp_path / "score", settings)
    with pytest.raises(ValueError, match="has learnt to undo 'augmix'"):
        sample.run(trained.config(**BUDGET), tmp_path)
    paths = {"sample.num_images": 0, "sample.purifiers": ("one_step",)}
    sample.run(trained.config(**BUDGET | paths), tmp_path)
    assert (only_folder(tmp_path) / "figures" / "path-one_step.png").exists()


def test_the_command(trained, workdir):
    budget = BUDGET | {"sample.purifiers": ("one_step",)}
    flags = [f"--config.{field}={value}" for field, value in budget.items()]
    result = trained.main("--mode=sample", f"--workdir={workdir}", *flags, devices=2)
    assert result.returncode == 0, result.stderr
    folder = only_folder(workdir)
    assert f"{folder}/figures/path-one_step.png" in result.stdout
    assert len(records(folder)) == 6 + 2

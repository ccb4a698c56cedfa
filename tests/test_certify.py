"""--mode=certify: what is sampled and recorded, that it can be interrupted, and what is refused."""

import contextlib
import dataclasses
import io
import json
import re

import jax
import numpy as np
import pytest

from purify import data
from purify.checkpoint import load_defense
from purify.evals import certify, smoothing
from purify.evals.certification import smoothed
from purify.jsonl import read_lines
from purify.random import image_keys

BUDGET = {
    "certify.defenses": ("noise_only", "one_step", "adp"),
    "certify.sigmas": (0.25, 0.1),
    "certify.num_images": 4,
    "certify.num_selection": 20,
    "certify.num_samples": 300,
    "certify.budgets": {"adp": {"num_images": 2, "num_samples": 120}},
}


def only_folder(workdir):
    (folder,) = (workdir / "certify").iterdir()
    return folder


def untimed(folder) -> dict:
    records = read_lines(folder / "images.jsonl")
    return {(r["row"], r["index"]): {k: v for k, v in r.items() if k != "seconds"} for r in records}


@pytest.fixture(scope="module")
def certified(trained, tmp_path_factory):
    """The folder of one whole run, and what it printed."""
    workdir = trained.linked_into(tmp_path_factory.mktemp("certified"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        certify.run(trained.config(**BUDGET), workdir)
    return only_folder(workdir), out.getvalue()


def assert_same_samples(records: dict, others: dict) -> None:
    """Batches of another size round differently: one on a boundary may fall to its other side."""
    assert records.keys() == others.keys()
    for key, record in records.items():
        assert np.abs(np.subtract(record["counts"], others[key]["counts"])).sum() <= 2


def test_every_image_has_a_certificate_of_its_counts(certified):
    folder, out = certified
    records = untimed(folder)
    assert len(records) == 2 * (4 + 4 + 2)
    for (row, _), record in records.items():
        name, sigma = row.split("-")
        samples = 120 if name == "adp" else 300
        assert record["samples"] == sum(record["counts"]) + 20 == samples + 20
        assert record["nfe"] == record["samples"] * {"noise_only": 0, "one_step": 1, "adp": 6}[name]
        p_low = smoothing.clopper_pearson(record["counts"][record["top"]], samples, 1e-3)[0]
        assert record["radius"] == smoothing.radius(p_low, float(sigma))
        assert record["answer"] == smoothing.answer(np.array(record["counts"]), 1e-3)
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        name = f"{row['defense']['name']}-{row['defense']['sigma']:g}"
        own = [record for (of, _), record in records.items() if of == name]
        radii = [r["radius"] * (r["top"] == r["label"]) for r in own]
        assert row["average_certified_radius"] == pytest.approx(np.mean(radii))
        assert row["certified"][0]["value"] == pytest.approx(np.mean(np.array(radii) > 0))
        assert row["num_images"] == len(own) and max(radii) <= row["largest_radius"]
        assert re.search(rf"{row['defense']['name']} +{row['defense']['sigma']:g} ", out)
    assert "majority" in results["meaning"] and "nothing else" in out
    assert (folder / "figures" / "certified.png").stat().st_size > 10_000
    assert any(row["average_certified_radius"] > 0 for row in results["rows"])


def test_a_sample_is_one_run_of_the_defence_with_a_key_of_its_own(trained, workdir):
    """fold_in(the image's key of the stream, the sample's number), and sigma the injected noise."""
    budget = BUDGET | {"certify.defenses": ("one_step",), "certify.sigmas": (0.1,)}
    certify.run(trained.config(**budget), workdir)
    record = untimed(only_folder(workdir))["one_step-0.1", 3]
    dataset = data.load("digits8x8", "test[:4]", data_dir=trained.tfds)
    image = dataset.images[3].astype(np.float32) / 255
    defense = load_defense(trained.workdir, "one_step", sigma=0.1)
    key = image_keys(0, np.array([3]))[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(300))
    classes = jax.jit(jax.vmap(lambda k: defense.run(k, image).argmax()))(keys)
    # Another batch size rounds differently: a sample on a boundary may fall to its other side.
    assert np.abs(np.bincount(classes, minlength=10) - record["counts"]).sum() <= 2


def test_it_goes_on_where_it_stopped_and_chunks_do_not_matter(certified, trained, workdir, capsys):
    config = trained.config(**BUDGET)
    certify.run(config, workdir, max_images=1)
    assert "stopped after 1 of 4 images" in capsys.readouterr().out
    first = untimed(only_folder(workdir))
    assert {index for _, index in first} == {0}
    config.certify.chunk = 64
    certify.run(config, workdir)
    records = untimed(only_folder(workdir))
    assert {key: records[key] for key in first} == first
    assert_same_samples(records, untimed(certified[0]))


def test_four_devices_draw_the_same_samples(certified, trained, workdir):
    flags = [
        f"--config.{name}={value}" for name, value in BUDGET.items() if name != "certify.budgets"
    ]
    fewer = BUDGET["certify.budgets"]["adp"]
    flags += [f"--config.certify.budgets.adp.{name}={value}" for name, value in fewer.items()]
    result = trained.main("--mode=certify", f"--workdir={workdir}", *flags, devices=4)
    assert result.returncode == 0, result.stderr
    assert only_folder(workdir).name == certified[0].name
    assert_same_samples(untimed(only_folder(workdir)), untimed(certified[0]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"certify.defenses": ("identity",)}, "identity cannot be certified: Identity does not"),
        ({"certify.defenses": ("detect_then_purify",)}, "does not begin with noise of its own"),
        ({"certify.defenses": ("adp_reference",)}, "its draws are not independent"),
        ({"certify.defenses": ("two_levels",)}, "its noise has one of two levels"),
        ({"certify.defenses": ("wall",)}, "config.certify.defenses 'wall' is unknown; known: "),
        ({"certify.defenses": ()}, "must name at least one"),
        ({"certify.sigmas": (0.0,)}, "sigma=0.0 must be positive"),
        ({"certify.chunk": 0}, "config.certify.chunk=0"),
        ({"certify.num_samples": 0}, "num_samples=0"),
        ({"certify.alpha": 1.5}, "alpha=1.5"),
        ({"certify.num_images": 0}, "num_images=0"),
        ({"certify.budgets": {"adp": {"samples": 3}}}, "config.certify.budgets.adp has no samples"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_certified_is_refused_before_anything_is_sampled(
    trained, workdir, changes, said
):
    with pytest.raises(ValueError, match=re.escape(said)):
        certify.run(trained.config(**BUDGET | changes), workdir)
    assert not (workdir / "certify").exists()


def test_the_noise_of_the_certificate_is_the_only_one(trained):
    defense = load_defense(trained.workdir, "schedule", num_runs=5)
    at = smoothed(defense, 0.1, "schedule")
    assert at.purifier.sigma == 0.1 and at == dataclasses.replace(
        defense, purifier=dataclasses.replace(defense.purifier, sigma=0.1)
    )

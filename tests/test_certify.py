"""--mode=certify: what is sampled and recorded, that it can be interrupted, and what is refused."""

import contextlib
import io
import json
import re
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.data import datasets
from purify.defense import Defense
from purify.evals import certify
from purify.evals.certify import smoothing
from purify.evals.certify.measure import measure
from purify.evals.certify.numbers import differences
from purify.evals.certify.plan import CertifyOptions, SmoothedRow, smoothed
from purify.evals.certify.show import draw_figures
from purify.evals.core.engine import Engine
from purify.evals.core.stats import paired_difference, proportion
from purify.evals.core.store import Store
from purify.purifiers import OneStep
from purify.purifiers.noise import add_noise
from purify.random import image_keys
from purify.runtime.errors import FileError
from purify.saving.checkpoint import load_defense
from purify.saving.jsonl import read_lines
from tests.oracles import ConstantScore

BUDGET = {
    "certify.defenses": ("noise_only", "one_step", "adp"),
    "certify.sigmas": (0.25, 0.1),
    "certify.num_images": 4,
    "certify.num_selection": 20,
    "certify.num_samples": 300,
    "certify.budgets": {
        "one_step": {"num_images": 3},
        "adp": {"num_images": 2, "num_samples": 120},
    },
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
    workdir = trained.copied_into(tmp_path_factory.mktemp("certified"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        certify.run(trained.config(**BUDGET), workdir)
    return only_folder(workdir), out.getvalue()


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def assert_same_samples(records: dict, others: dict) -> None:
    """Batches of another size round differently: one on a boundary may fall to its other side."""
    assert records.keys() == others.keys()
    for key, record in records.items():
        assert np.abs(np.subtract(record["counts"], others[key]["counts"])).sum() <= 2


def test_every_image_has_a_certificate_of_its_counts(certified):
    folder, out = certified
    records = untimed(folder)
    assert len(records) == 2 * (4 + 3 + 2)
    for (row, _), record in records.items():
        name, sigma = row.split("-")
        samples = 120 if name == "adp" else 300
        assert record["samples"] == sum(record["counts"]) + 20 == samples + 20
        assert record["nfe"] == record["samples"] * {"noise_only": 0, "one_step": 1, "adp": 6}[name]
        p_low = smoothing.clopper_pearson(record["counts"][record["top"]], samples, 1e-3)[0]
        assert record["radius"] == smoothing.radius(p_low, float(sigma))
        assert record["answer"] == smoothing.answer(np.array(record["counts"]), 1e-3)
    results = results_of(folder)
    for row in results["rows"]:
        name = f"{row['defense']['name']}-{row['defense']['sigma']:g}"
        own = [record for (of, _), record in records.items() if of == name]
        radii = [r["radius"] * (r["top"] == r["label"]) for r in own]
        assert row["average_certified_radius"] == pytest.approx(np.mean(radii))
        assert row["certified"][0]["value"] == pytest.approx(np.mean(np.array(radii) > 0))
        assert row["num_images"] == len(own) and max(radii) <= row["largest_radius"]
        answered = proportion([r["answer"] == r["label"] for r in own])
        assert (row["accuracy"], row["intervals"]["accuracy"]) == (answered[0], [*answered[1:3]])
        assert row["intervals"].keys() == {"abstained", "accuracy", "no_answer"}
        for at in row["certified"]:
            value, low, high = (round(100 * at[end]) for end in ("value", "low", "high"))
            assert f" {value} [{low}, {high}] " in out
        assert re.search(rf"{row['defense']['name']} +{row['defense']['sigma']:g} ", out)
    assert "majority" in results["meaning"] and "nothing else" in out
    assert "was trained on" not in out
    assert results["smoothed"]["adp-0.25"]["classifier"] == "classifier"
    assert (folder / "figures" / "certified.png").stat().st_size > 10_000
    assert any(row["average_certified_radius"] > 0 for row in results["rows"])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("radius", lambda radius: radius + 0.01),
        ("p_low", lambda p_low: p_low / 2),
        ("answer", lambda answer: (answer + 1) % 10),
        ("label", lambda label: (label + 1) % 10),
        ("top", lambda top: (top + 1) % 10),
        ("counts", lambda counts: counts[1:]),
        ("counts", lambda counts: [*counts[:-1], counts[-1] + 1]),
        ("samples", lambda samples: samples + 1),
    ],
)
def test_a_certificate_that_does_not_follow_from_its_counts_is_none(
    certified, trained, workdir, field, change
):
    folder, _ = certified
    copy = workdir / "certify" / folder.name
    shutil.copytree(folder, copy)
    lines = read_lines(copy / "images.jsonl")
    at = next(i for i, line in enumerate(lines) if line["radius"] > 0)
    lines[at][field] = change(lines[at][field])
    (copy / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FileError, match=f"images.jsonl: {lines[at]['row']}, index"):
        certify.run(trained.config(**BUDGET), workdir)


def test_rows_are_paired_with_plain_smoothing_of_as_many_samples(certified):
    folder, out = certified
    records, results = untimed(folder), results_of(folder)
    rows = [
        (entry["defense"], entry["against"], entry["sigma"]) for entry in results["differences"]
    ]
    assert rows == [("one_step", "noise_only", sigma) for sigma in (0.25, 0.1)]
    assert "as many samples: adp at sigma 0.25, adp at sigma 0.1" in out
    for entry in results["differences"]:
        sigma, both = entry["sigma"], range(3)  # the images that both have
        radii, plain = (
            [r["radius"] * (r["top"] == r["label"]) for r in (records[row, i] for i in both)]
            for row in (f"one_step-{sigma:g}", f"noise_only-{sigma:g}")
        )
        assert entry["num_images"] == 3 and entry["num_samples"] == 300
        mean, largest = np.mean(radii) - np.mean(plain), smoothing.largest_radius(300, 1e-3, sigma)
        assert entry["average_certified_radius"] == pytest.approx(mean, abs=1e-9)
        assert -largest <= entry["low"] <= mean <= entry["high"] <= largest
        for at in entry["certified"]:
            one, other = (np.array(side) > at["radius"] for side in (radii, plain))
            assert at == {"radius": at["radius"]} | paired_difference(one, other)._asdict()


def test_radii_that_are_all_0_differ_by_at_most_the_largest(trained):
    """They are no outcomes, of which the largest is 1."""
    nothing = [{"radius": 0.0, "top": 0, "label": 0}] * 5
    rows = [
        SmoothedRow(name, smoothed(load_defense(trained.workdir, name), 0.1, name), 0.1, 5, 300, 20)
        for name in ("noise_only", "one_step")
    ]
    options = CertifyOptions(("noise_only", "one_step"))
    (entry,) = differences([(row, nothing) for row in rows], options, seed=0)
    assert 0 < entry["high"] == -entry["low"] < smoothing.largest_radius(300, options.alpha, 0.1)


def test_the_figure_says_how_many_images_and_samples_a_panel_has(certified, tmp_path):
    rows = results_of(certified[0])["rows"]
    for shown, panels in ((rows, 3), (rows[:4], 2)):
        (path,) = draw_figures(tmp_path, {"rows": shown}, ".svg")
        labels = re.findall("<!-- (.*) -->", path.read_text())
        budgets = {f"{row['num_images']} images, {row['num_samples']} samples" for row in shown}
        assert budgets <= set(labels) and len(budgets) == panels
        assert {"one_step, sigma 0.1", "the most that as many samples certify"} <= set(labels)


def test_a_sample_is_one_run_of_the_defence_with_a_key_of_its_own(trained, workdir, monkeypatch):
    """fold_in(the image's key of the stream, the sample's number), and sigma the injected noise;
    also where looks and what is computed at once do not go together."""
    monkeypatch.setattr(smoothing, "LOOK", 100)
    budget = BUDGET | {"certify.defenses": ("one_step",), "certify.sigmas": (0.1,)}
    budget |= {"certify.chunk": 128, "certify.budgets": {}}
    certify.run(trained.config(**budget), workdir)
    record = untimed(only_folder(workdir))["one_step-0.1", 3]
    dataset = datasets.load("digits8x8", "test[:4]", data_dir=trained.tfds)
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


@pytest.mark.slow
def test_four_devices_draw_the_same_samples(certified, trained, workdir):
    flags = [
        f"--config.{name}={value}" for name, value in BUDGET.items() if name != "certify.budgets"
    ]
    fewer = BUDGET["certify.budgets"]["adp"]  # the only one that flags can change
    flags += [f"--config.certify.budgets.adp.{name}={value}" for name, value in fewer.items()]
    result = trained.main("--mode=certify", f"--workdir={workdir}", *flags, devices=4)
    assert result.returncode == 0, result.stderr
    assert only_folder(workdir).name == certified[0].name
    records, others = untimed(only_folder(workdir)), untimed(certified[0])
    assert_same_samples({key: records[key] for key in others}, others)


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
        ({"certify.sigmas": (float("nan"),)}, "sigma=nan must be positive and finite"),
        (
            {"certify.radii": (0.1, float("nan"))},
            "config.certify.radii=(0.1, nan) must all be at least 0 and finite",
        ),
        ({"certify.sigmas": (0.25, 0.2500001)}, "have the same name, to six digits of sigma"),
        ({"certify.chunk": 0}, "config.certify.chunk=0"),
        ({"certify.num_samples": 0}, "num_samples=0"),
        ({"certify.alpha": 1.5}, "alpha=1.5"),
        ({"certify.num_images": 0}, "num_images=0"),
        ({"certify.num_samples": 9}, "num_samples=9 can certify nothing at alpha=0.001"),
        (
            {"certify.budgets": {"adp": {"samples": 3}}},
            "config.certify.budgets.adp has no option samples",
        ),
        (
            {"certify.budgets": {"apd": {}}},
            "config.certify.budgets entry 'apd' is unknown; known: ",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_certified_is_refused_before_anything_is_sampled(
    trained, workdir, changes, said
):
    with pytest.raises(ValueError, match=re.escape(said)):
        certify.run(trained.config(**BUDGET | changes), workdir)
    assert not (workdir / "certify").exists()


@pytest.mark.parametrize("name", ["noise_only", "one_step", "schedule", "adp"])
def test_the_noise_of_the_certificate_is_the_only_one(trained, name):
    """What comes after it, applied to the noisy image, gives the same image."""
    sigma, image = 0.1, jnp.linspace(0, 1, 64).reshape(8, 8, 1)
    purifier = smoothed(load_defense(trained.workdir, name, num_runs=1), sigma, name).purifier
    rests = {
        "noise_only": lambda noisy: noisy,
        "one_step": lambda x: jnp.clip(x - sigma * purifier.score.predict_noise(x, sigma), 0, 1),
        "schedule": lambda noisy: purifier._descend(noisy, keep=False)[0],
        "adp": lambda noisy: purifier.replace(sigma=0.0)(jax.random.key(9), noisy),
    }
    assert purifier.sigma == sigma
    for key in jax.random.split(jax.random.key(0)):
        noisy = add_noise(key, image, sigma)
        np.testing.assert_allclose(purifier(key, image), rests[name](noisy), rtol=0, atol=1e-5)


@flax.struct.dataclass
class Threshold:
    """Class 1 where the first pixel is above it, else 0."""

    value: float

    def __call__(self, image):
        above = image[0, 0, 0] - self.value
        return jnp.stack([-above, above])


def test_an_image_that_is_selected_wrongly_ends_early(tmp_path, monkeypatch):
    """Class 1 has a chance of 1/4: where the one sample that selects is of it, the first look ends
    it, and answers 0."""
    monkeypatch.setattr(smoothing, "LOOK", 100)
    defense = Defense(OneStep(ConstantScore(jnp.zeros(())), sigma=0.1), Threshold(0.56745))
    images, indices = np.full((12, 2, 2, 1), 0.5, np.float32), np.arange(12)
    options = CertifyOptions(("one_step",), num_selection=1, chunk=64)
    row = SmoothedRow("one_step", defense, 0.1, 12, 300, 1)
    with Store(tmp_path, "certify", {}) as store:
        engine = Engine(store, images, np.zeros(12, int), indices, seed=0)
        with engine.working([row.job]):
            measure(engine, [row], options, num_classes=2)
        records = store.records(row.name).values()
    assert {record["top"] for record in records} == {0, 1}
    first = jax.vmap(jax.random.fold_in, (0, None))(image_keys(0, indices, stream="selection"), 0)
    selected = jax.jit(jax.vmap(lambda key, x: defense.run(key, x).argmax()))(first, images)
    assert {record["index"]: record["top"] for record in records} == dict(
        enumerate(selected.tolist())
    )
    for record in records:
        ended = record["top"] == 1
        assert record["samples"] == 1 + sum(record["counts"]) == (1 + 100 if ended else 1 + 300)
        # Of blocks of 64 the look took two, while the third was begun.
        assert record["nfe"] == (1 + 3 * 64 if ended else 1 + 300)
        assert record["answer"] == 0 and (record["radius"] > 0) != ended


def test_a_run_on_fewer_images_reports_those_alone(trained, workdir, capsys):
    few = {"certify.defenses": ("noise_only",), "certify.sigmas": (0.25,), "certify.budgets": {}}
    config = trained.config(**BUDGET | few)
    for max_images, reported in ((None, 4), (1, 1), (None, 4)):
        certify.run(config, workdir, max_images=max_images)
        (row,) = results_of(only_folder(workdir))["rows"]
        assert row["num_images"] == len(row["certified_radii"]) == reported
    first, *others = re.findall("^1 row: .*", capsys.readouterr().out, re.MULTILINE)
    assert "at most " in first and len(others) == 2
    for said in others:
        assert "all of it was done before, nothing is computed" in said and "at most" not in said
    assert len(untimed(only_folder(workdir))) == 4


def test_it_says_where_networks_were_trained_on_the_images(trained, workdir, capsys):
    few = {"certify.defenses": ("noise_only",), "certify.num_images": 2, "certify.budgets": {}}
    config = trained.config(**BUDGET | few, data__test_split="train")
    certify.run(config, workdir, max_images=1)
    out = capsys.readouterr().out
    for role in ("classifier", "score"):
        assert f"note: the {role} was trained on 1 of these images" in out

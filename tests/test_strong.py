"""Every attack of a config's lists, whole, on networks of the test's size."""

import json

import numpy as np
import pytest

from purify.evals import robust
from purify.saving.jsonl import read_lines


@pytest.fixture(scope="module")
def strong(trained, tmp_path_factory):
    """The folder of an evaluation of every list, and of AutoAttack's suites, on few images."""
    workdir = trained.copied_into(tmp_path_factory.mktemp("strong"))
    config = trained.config(eval__defenses=("identity", "one_step", "adp"), eval__num_images=4)
    for name, options in config.attacks.items():
        if "num_steps" in options:
            options.num_steps = 2 if name != "square" else 8
        for field, value in (("directions", 2), ("targets", 2), ("restarts", 1)):
            if options.get(field):
                options[field] = value
        if options.get("eot_samples", 0) > 2:
            options.eot_samples = 2
        options.num_images = 0
        options.defenses = ("adp",)
    for name in ("bpda", "exact"):
        config.attacks[name].defenses = ("one_step", "adp")
    config.attacks.autoattack_standard.defenses = ("identity",)
    config.attacks.apgd_from_points.starts = ("blind", "one_step-bpda", "one_step-exact")
    lists = config.attack_lists
    names = dict.fromkeys((*lists.strong, *lists.paper, "autoattack_standard", "autoattack_rand"))
    elsewhere = ("from_schedule", "from_pgd_at")  # of defences that are not evaluated here
    config.eval.attacks = tuple(name for name in names if not name.startswith(elsewhere))
    robust.run(config, workdir)
    (folder,) = (workdir / "eval_robust").iterdir()
    return folder


@pytest.mark.slow
def test_every_attack_of_the_lists_runs_and_the_strongest_is_as_strong_as_any(strong):
    records = {(r["row"], r["index"]): r for r in read_lines(strong / "images.jsonl")}
    results = json.loads((strong / "results.json").read_text())
    attacks = {row["attack"] for row in results["rows"] if row["defense"]["name"] == "adp"}
    assert attacks >= {
        *("joint_score", "joint_full", "one_step_unrolling", "approximate_input", "spsa"),
        *("selective", "apgd", "apgd_dlr", "apgd_targeted", "fab", "fmn", "square"),
        *("from_one_step_exact", "apgd_from_points", "autoattack_rand", "strongest"),
    }
    for index in range(4):
        losses = {
            name: record["loss"]
            for (name, i), record in records.items()
            if i == index and name.startswith("choice:adp-strongest:")
        }
        assert len(losses) > 15
        chosen = records["adp-strongest", index]
        assert chosen["loss"] == max(losses.values())
        assert chosen["nfe"] > records["adp-exact", index]["nfe"]


@pytest.mark.slow
def test_attacked_images_of_every_row_are_written_and_in_the_ball(strong):
    files = {path.stem: path for path in (strong / "attacked").iterdir()}
    assert {"blind", "adp-strongest", "adp-autoattack_rand", "identity-autoattack_standard"} <= set(
        files
    )
    clean = np.load(files["blind"])
    for path in files.values():
        with np.load(path, allow_pickle=False) as saved:
            assert np.isfinite(saved["images"]).all() and saved["images"].shape[0] == 4
            np.testing.assert_array_equal(saved["labels"], clean["labels"])

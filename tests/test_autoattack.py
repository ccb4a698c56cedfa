"""AutoAttack's four attacks as a suite, on the published ResNet-20 and real images."""

import importlib
import json

import pytest

from configs.base import attack, suite
from purify.evals import robust
from tests.command import main
from tests.test_import_weights import WEIGHTS, needs_shared
from tests.test_pretrained import SHIPPED, TFDS

IMAGES = 64
BALLS = {"linf": 8 / 255, "l2": 0.5}


def autoattack(norm: str) -> dict:
    """name -> options: APGD on the cross-entropy, targeted APGD and FAB, Square, and all of them,
    each on what those before it left; with the budgets of Croce and Hein (2020)."""
    ball = dict(norm=norm, eps=BALLS[norm])
    stages = {
        "apgd_ce": attack("exact", attack="apgd", num_steps=100, **ball),
        "apgd_t": attack("exact", attack="apgd", loss="dlr", num_steps=100, targets=9, **ball),
        "fab_t": attack("exact", attack="fab", num_steps=100, targets=9, **ball),
        "square": attack("none", attack="square", num_steps=5000, **ball),
    }
    stages = {f"{name}_{norm}": options for name, options in stages.items()}
    return stages | {f"autoattack_{norm}": suite(*stages)}


@pytest.mark.slow
@needs_shared
def test_autoattack_leaves_nothing_of_an_undefended_classifier(tmp_path):
    for file, flags in ((WEIGHTS, ("--arch=resnet20",)), (SHIPPED, ())):
        arguments = (f"--input={file}", *flags, f"--workdir={tmp_path}")
        result = main("--mode=import_weights", *arguments)
        assert result.returncode == 0, result.stderr
    config = importlib.import_module("configs.cifar10").get_config("resnet20")
    config.data.dir = str(TFDS)
    config.eval.update(num_images=IMAGES, batch_size=IMAGES, defenses=("identity",))
    for norm in BALLS:
        config.attacks.update(autoattack(norm))
    config.eval.attacks = tuple(f"autoattack_{norm}" for norm in BALLS)
    robust.run(config, tmp_path)
    (path,) = (tmp_path / "eval_robust").glob("*/results.json")
    rows = json.loads(path.read_text())["rows"]
    accuracy = {
        row["attack"]: row["accuracy"]
        for row in rows
        if row["protocol"] == "mean" and not row["single_run"]
    }
    print(f"\nResNet-20, {IMAGES} images: {accuracy}")
    assert accuracy["clean"] > 0.85
    assert accuracy["autoattack_linf"] == 0
    assert accuracy["autoattack_l2"] < 0.05

"""AutoAttack's four attacks as a suite, on the published ResNet-20 and real images."""

import importlib
import json

import pytest

from configs.base import suite
from purify.evals import robust
from tests.command import main
from tests.test_import_weights import WEIGHTS, needs_shared
from tests.test_pretrained import SHIPPED, TFDS

# A batch is computed in full, however few images are left: a small one for the few.
IMAGES, BATCH = 64, 16
BALLS = {"linf": 8 / 255, "l2": 0.5}


def in_ball(attacks, norm: str) -> dict:
    """The suite autoattack_standard of a config, and its stages, in another ball."""
    stages = {}
    for name in attacks.autoattack_standard.stages:
        stages[f"{name}_{norm}"] = attacks[name].copy_and_resolve_references()
        stages[f"{name}_{norm}"].update(norm=norm, eps=BALLS[norm])
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
    config.eval.update(num_images=IMAGES, batch_size=BATCH, defenses=("identity",))
    for norm in BALLS:
        config.attacks.update(in_ball(config.attacks, norm))
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

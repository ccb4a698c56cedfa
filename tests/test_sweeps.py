"""Curves over one number of an attack: which rows are points of one, and how curves are named."""

import pytest

from purify.evals.report.sweeps import sweeps

EPS = (4 / 255, 8 / 255)


def row(eps: float | None, **changes) -> dict:
    """Of results.json; changes: fields of the row, or of its defence."""
    defense = {"name": "adp", "sigma": 0.25, "T": 10, "S": 10, "average": "logits"}
    own = {name: changes.pop(name) for name in (*defense, "curvature") if name in changes}
    return {
        **dict(attack="bpda", method="pgd", gradient="bpda", attack_steps=40, norm="linf"),
        **dict(eps=eps, step_size=eps and eps / 4, eot_samples=10, num_images=100, num_draws=10),
        **dict(seed=0, protocol="mean", single_run=False, accuracy=0.5),
        "defense": defense | own,
        **changes,
    }


def unattacked(attack: str, accuracy: float) -> dict:
    nothing = dict.fromkeys(("method", "gradient", "attack_steps", "norm", "eot_samples"))
    return row(None, attack=attack, accuracy=accuracy, **nothing)


def points(step: float = 0.25, **changes) -> list[dict]:
    """The rows of one curve; step: its size as a share of eps."""
    return [row(eps, step_size=step * eps, **changes) for eps in EPS]


def results(rows: list[dict], score: str = "5" * 64, **sections) -> dict:
    """sections: of the config, what is different in them."""
    config = {
        "data": {"name": "digits8x8", "test_split": "test", "dir": "here"},
        "defense": {"purifier": "adp", "average": "logits", "chunk": 0},
        "schedule": {"num_steps": 5},
        "adp": {"lam": 0.05, "tau": 0.001},
        "variants": {"far": {"purifier": "adp", "sigma": 0.5}},
    }
    config = {name: options | sections.get(name, {}) for name, options in config.items()}
    return {"rows": rows, "weights": {"classifier": "c" * 64, "score": score}, "config": config}


def test_images_attacked_elsewhere_are_not_the_clean_ones():
    attacked, given = results(points()), results([unattacked("given", 0.1)])
    (curve,) = sweeps([("a", attacked), ("a", given)], "eps")
    assert [point["eps"] for point in curve.points] == [*EPS]
    clean = results([unattacked("clean", 0.9)])
    (curve,) = sweeps([("a", each) for each in (attacked, clean, given)], "eps")
    assert [point["accuracy"] for point in curve.points] == [0.9, 0.5, 0.5]


@pytest.mark.parametrize("share", [1 / 4, 1 / 32, 2.5 / 40])  # some would be rounded either way
@pytest.mark.parametrize("eps", [0.007843, 0.0157, 0.031])
def test_steps_that_were_typed_are_the_same_share_of_the_radius(eps, share):
    typed = row(eps, step_size=float(f"{share * eps:.3g}"))
    for rows in ([*points(share), typed], [typed, *points(share)]):
        (curve,) = sweeps([("a", results(rows))], "eps")
        assert len(curve.points) == 3
    (curve,) = sweeps([("a", results([*points(1.1 * share), typed]))], "eps")
    assert len(curve.points) == 2


def test_of_rows_with_one_radius_the_last_counts():
    later = results([row(EPS[1], accuracy=0.4)])
    (curve,) = sweeps([("a", results(points())), ("a", later)], "eps")
    assert [point["accuracy"] for point in curve.points] == [0.5, 0.4]


def test_clean_images_of_another_number_are_no_point():
    clean = results([unattacked("clean", 0.9) | {"num_images": 50}])
    (curve,) = sweeps([("a", results(points())), ("a", clean)], "eps")
    assert [point["eps"] for point in curve.points] == [*EPS]


ONE = results(points())


@pytest.mark.parametrize(
    ("other", "where", "told"),
    [
        (results(points(), score="6" * 64), "b", ("workdir a", "workdir b")),
        (results(points(), data={"name": "other"}), "b", ("workdir a", "workdir b")),
        (results(points(num_images=50)), "a", ("n 100", "n 50")),
        (results(points(num_draws=5)), "a", ("N 10", "N 5")),
        (results(points(seed=1)), "a", ("seed 0", "seed 1")),
        (results(points(sigma=0.1)), "a", ("sigma 0.25", "sigma 0.1")),
        (results(points(average="vote")), "a", ("average logits", "average vote")),
        (results(points(loss="margin")), "a", ("", "loss margin")),
        (results(points(0.125)), "a", ("step_size 0.25 eps", "step_size 0.125 eps")),
        (results(points(), adp={"lam": 0.1}), "a", ("lam 0.05", "lam 0.1")),
        # All that differs in the defence itself, and of others only where it does not.
        (
            results(points(), schedule={"num_steps": 7}, adp={"lam": 0.1, "tau": 0.01}),
            "a",
            ("lam 0.05, tau 0.001", "lam 0.1, tau 0.01"),
        ),
        (
            results(points(), schedule={"num_steps": 7}),
            "a",
            ("schedule.num_steps 5", "schedule.num_steps 7"),
        ),
        (
            results(points(), data={"test_split": "all"}),
            "a",
            ("data.test_split test", "data.test_split all"),
        ),
        (
            results(points(), score="6" * 64),
            "a",
            ("weights.score 55555555", "weights.score 66666666"),
        ),
        # Of a version that did not tell it.
        (results(points(curvature="jvp")), "a", ("", "row.defense.curvature jvp")),
    ],
)
def test_curves_are_told_apart_by_what_differs(other, where, told):
    curves = sweeps([("a", ONE), (where, other)], "eps")
    assert [len(curve.points) for curve in curves] == [2, 2]
    labels = [sorted(curve.label.split(", ")) for curve in curves]
    assert labels == [sorted(filter(None, ["adp", "bpda", *text.split(", ")])) for text in told]


def test_a_variant_is_told_apart_by_its_purifier_and_by_its_changes():
    for sections, told in (
        ({"adp": {"tau": 0.01}}, ("tau 0.001", "tau 0.01")),
        ({"variants": {"far": {"purifier": "adp", "lam": 0.2}}}, ("lam 0.05", "lam 0.2")),
    ):
        runs = (results(points(name="far")), results(points(name="far"), **sections))
        labels = [curve.label for curve in sweeps([("a", run) for run in runs], "eps")]
        assert all(text in label for text, label in zip(told, labels, strict=True)), labels


def test_no_two_curves_have_one_label():
    """Also where each differs from the next in something else."""
    runs = [
        *(results(points(num_images=n), adp={"lam": lam}) for n in (50, 100) for lam in (0.1, 0.2)),
        *(results(points(), score=digit * 64, defense={"num_runs": int(digit)}) for digit in "678"),
        results([row for each in (0.25, 0.125) for row in points(each, method="apgd")]),
    ]
    curves = sweeps([(where, run) for where in "ab" for run in runs], "eps")
    assert len({curve.label for curve in curves}) == len(curves) == 4 + 3 + 2

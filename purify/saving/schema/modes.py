"""results.json of every mode. What reports, tables and figures read is required and has its range;
what only the evaluation that wrote it knows is left as it is."""

from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec

from purify.saving.schema.atoms import Count, Name, Number, Positive, Share, Side
from purify.saving.schema.folders import Settings
from purify.saving.schema.records import Signature

Signed = Annotated[float, msgspec.Meta(ge=-1, le=1)]


class ShownData(TypedDict, total=False):
    name: Required[str]
    test_split: Required[str]
    path: str | None


class Config(TypedDict, total=False):
    data: Required[ShownData]
    variants: dict[Name, dict[str, Any]]


class Results(TypedDict, total=False):
    """Of any mode."""

    version: int
    stopped: str
    meaning: str
    note: str
    time: str
    commit: str
    versions: dict[str, str]
    computed_by: list[Signature]
    trained: dict[str, Settings]
    class_names: list[str]


class Titled(Results, total=False):
    config: Required[Config]
    title: Required[str]
    weights: dict[str, str]


class Estimate(TypedDict):
    """See stats.Estimate, of a share."""

    value: Share
    low: Share
    high: Share
    n: Count


class Difference(TypedDict):
    value: Signed
    low: Signed
    high: Signed
    n: Count


class Ratio(TypedDict):
    value: Number
    low: Number
    high: Number


class Defense(TypedDict, total=False):
    """sigma 0, T 0: nothing is added, no score model is asked."""

    name: Required[Name]
    sigma: Required[Positive]
    T: Required[Count]
    S: Required[Side]
    average: Required[str]
    threshold: Number


class Certifying(TypedDict, total=False):
    name: Required[Name]
    sigma: Required[Positive]


class Costs(TypedDict):
    nfe_per_image: Positive
    nge_per_image: Positive
    seconds_per_image: Positive
    defense_nfe_per_image: Positive
    defense_seconds_per_image: Positive


class Measured(TypedDict):
    accuracy: Share
    low: Share
    high: Share
    num_images: Side


class RobustRow(Costs, Measured, total=False):
    defense: Required[Defense]
    attack: Required[Name]
    protocol: Required[Literal["mean", "ensemble", "vote", "worst_of_n", "fixed_key"]]
    single_run: Required[bool]
    num_draws: Required[Side]
    seed: Required[Count]
    gradient: Required[str | None]
    norm: Required[str | None]
    eps: Required[Positive | None]
    eot_samples: Required[Count | None]
    exact_beside: Required[bool | None]
    clean_accuracy: Required[Share | None]
    interim_accuracy: Share | None
    loss: str | None
    step_size: Positive | None
    starts: list[str] | None
    chosen: dict[Name, Count]
    unmoved: Count


class Comparison(TypedDict, total=False):
    a: Required[Name]
    b: Required[Name]
    num_images: Required[Side]
    mean_difference: Required[Signed]
    low: Required[Signed]
    high: Required[Signed]
    mcnemar_p: Required[Share]
    beats: bool
    share: Ratio | None


class HeadlineDefense(TypedDict, total=False):
    purifier: Required[Name]


class Evaluated(TypedDict, total=False):
    defenses: Required[list[Name]]


class RobustConfig(Config, total=False):
    defense: Required[HeadlineDefense]
    eval: Required[Evaluated]


class Robust(Results, total=False):
    config: Required[RobustConfig]
    title: Required[str]
    rows: Required[list[RobustRow]]
    headline: Required[dict[Name, Name]]
    comparisons: Required[list[Comparison]]
    weights: Required[dict[str, str]]


class Check(TypedDict):
    check: str
    verdict: str
    p: Share | None
    numbers: dict[str, float]


class Checks(Titled, total=False):
    checks: Required[list[Check]]


class RadiusShare(Estimate):
    radius: Positive


class RadiusDifference(Difference):
    radius: Positive


class CertifiedRow(TypedDict, total=False):
    defense: Required[Certifying]
    num_images: Required[Side]
    num_samples: Required[Side]
    average_certified_radius: Required[Positive]
    low: Required[Positive]
    high: Required[Positive]
    largest_radius: Required[Positive]
    abstained: Required[Share]
    accuracy: Required[Share]
    certified: Required[list[RadiusShare]]
    certified_radii: Required[list[Positive]]
    nfe_per_image: Required[Positive]
    seconds_per_image: Required[Positive]


class CertifiedDifference(TypedDict, total=False):
    defense: Required[Name]
    against: Required[Name]
    sigma: Required[Positive]
    num_images: Required[Side]
    num_samples: Required[Side]
    average_certified_radius: Required[Number]
    low: Required[Number]
    high: Required[Number]
    certified: Required[list[RadiusDifference]]


class Certified(Titled, total=False):
    rows: Required[Annotated[list[CertifiedRow], msgspec.Meta(min_length=1)]]
    differences: Required[list[CertifiedDifference]]


class CorruptionMean(Measured, total=False):
    defense: Required[Certifying]
    corruption: Required[Name]
    difference: Difference
    better: bool
    worse: bool


class Corruptions(Titled, total=False):
    rows: Required[list[dict[str, Any]]]
    means: Required[list[CorruptionMean]]


class DetectedRow(TypedDict, total=False):
    statistic: Required[Name]
    images: Required[Name]
    kind: Required[str]
    num_images: Required[Side]
    num_positives: Required[Count | None]
    auroc: Required[Estimate | None]
    flagged: Required[Estimate | None]
    flagged_small: Required[Estimate | None]
    left: Required[Estimate | None]
    left_worst: Estimate | None


class Detected(Titled, total=False):
    rows: Required[list[DetectedRow]]


class AblationRow(Measured, total=False):
    """run: the folder of the evaluation at this value."""

    factor: Required[str]
    value: Required[int | float | str]
    default: Required[bool]
    attack: Required[Name]
    protocol: Required[str]
    defense_nfe_per_image: Required[Positive]
    defense_seconds_per_image: Required[Positive]
    difference_low: Required[Signed | None]
    difference_high: Required[Signed | None]
    run: Name


class Ablation(Titled, total=False):
    rows: Required[list[AblationRow]]


class Samples(TypedDict, total=False):
    num_images: Required[Count]


class FollowedPath(TypedDict, total=False):
    index: Required[Count]


class Sampled(Results, total=False):
    config: Required[Config]
    title: str
    weights: dict[str, str]
    samples: Required[Samples | None]
    paths: Required[list[FollowedPath]]


MODES: dict[str, Any] = {
    "eval_robust": Robust,
    "check_gradients": Checks,
    "certify": Certified,
    "eval_corruptions": Corruptions,
    "detect": Detected,
    "ablate": Ablation,
    "sample": Sampled,
}

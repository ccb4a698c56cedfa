"""What a certification is going to do, from its options, checked before any of it starts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from purify.defense import Defense
from purify.evals.certify import smoothing
from purify.evals.core.engine import Cost, Job
from purify.options import Count, Fraction, NotNegative, Options, read
from purify.purifiers import NoiseOnly, OneStep, Schedule
from purify.purifiers.adp import ADP

# Functions of clip(x + sigma n, 0, 1), which draw nothing else; ADP as long as it has one sigma.
NOISE_FIRST = (NoiseOnly, OneStep, Schedule, ADP)


@dataclasses.dataclass(frozen=True)
class Budget(Options):
    """What one defence has otherwise."""

    num_images: Count
    num_samples: Count


@dataclasses.dataclass(frozen=True)
class CertifyOptions(Options):
    """What is certified, by how many samples.

    defenses: their names. sigmas: of the certificates' noise, in pixel units, each on every
        defence.
    num_selection, num_samples: samples of an image that select its class, and that certify it.
    alpha: the chance of a wrong certificate, of each image.
    num_images: the first so many. budgets: defence -> other num_images, num_samples.
    chunk: samples that are computed at once.
    radii: at which certified accuracies are told, L2 in pixel units.
    """

    defenses: tuple[str, ...]
    sigmas: tuple[float, ...] = (0.25,)
    num_selection: Count = 100
    num_samples: Count = 10_000
    alpha: Fraction = 1e-3
    num_images: Count = 100
    budgets: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    chunk: Count = 1000
    radii: tuple[NotNegative, ...] = (0.0, 0.1, 0.25, 0.5, 0.75)

    def check(self) -> None:
        for field in ("defenses", "sigmas"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty; it must name at least one")

    def budget(self, defense: str, field: str) -> Budget:
        """That of one defence; field: what `budgets` is called in an error."""
        shared = {"num_images": self.num_images, "num_samples": self.num_samples}
        return read(Budget, {**shared, **self.budgets.get(defense, {})}, f"{field}.{defense}")


@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedRow:
    """One smoothed defence: its first noise, sigma, is the certificate's."""

    defense_name: str
    defense: Defense
    sigma: float
    num_images: int
    num_samples: int
    num_selection: int

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.sigma:g}"

    @property
    def job(self) -> Job:
        """Of its images, as if no run stopped early."""
        samples = self.num_samples + self.num_selection
        return Job(self.name, self.num_images, Cost(samples, samples * self.nfe))

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample that does not stop early."""
        return self.defense.purifier.nfe

    @property
    def is_plain(self) -> bool:
        """Whether it smooths the classifier alone."""
        return isinstance(self.defense.purifier, NoiseOnly)


def plan(
    options: CertifyOptions,
    defense_of: Callable[[str], Defense],
    available: int,
    *,
    field: str = "options",
) -> list[SmoothedRow]:
    """A row for each defence and sigma; ValueError names what is wrong.

    defense_of: name -> defence; ValueError of an unknown one. available: images there are. field:
    what the options are called in an error.
    """
    rows = []
    for name in options.defenses:
        budget = options.budget(name, f"{field}.budgets")
        if budget.num_images > available:
            raise ValueError(
                f"{field}: num_images={budget.num_images} of {name} must be from 1 to {available}"
            )
        defense = defense_of(name)
        for sigma in options.sigmas:
            smoothing.check(
                sigma=sigma,
                num_selection=options.num_selection,
                num_samples=budget.num_samples,
                alpha=options.alpha,
            )
            smooth = smoothed(defense, sigma, name)
            sizes = budget.num_images, budget.num_samples, options.num_selection
            rows.append(SmoothedRow(name, smooth, sigma, *sizes))
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(
            f"{field}: two of the defenses {options.defenses} at the sigmas {options.sigmas} have "
            "the same name, to six digits of sigma"
        )
    return rows


def smoothed(defense: Defense, sigma: float, name: str) -> Defense:
    """The defence with its injected noise at sigma: the certificate's noise, and the only one.

    Raises ValueError where its first and only random act is not to add that noise to the image, or
    where its draws are not independent.
    """
    purifier = defense.purifier
    if defense.couples_batch:
        raise ValueError(f"{name} decides a batch together: its draws are not independent")
    if not isinstance(purifier, NOISE_FIRST):
        raise ValueError(
            f"{name} cannot be certified: {type(purifier).__name__} does not begin with noise of "
            "its own; choose one that does, as noise_only for smoothing the classifier alone"
        )
    if isinstance(purifier, ADP) and purifier.second_sigma is not None:
        raise ValueError(f"{name} cannot be certified: its noise has one of two levels")
    return dataclasses.replace(defense, purifier=cast(Any, purifier).replace(sigma=sigma))

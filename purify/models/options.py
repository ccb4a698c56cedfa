"""The options of networks and what goes with them: types and bounds, checked before anything is
built, as settings may come from somebody else."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import msgspec

from purify.models.networks import HEADS
from purify.runtime.messages import printable
from purify.saving.schema import converted
from purify.saving.schema.atoms import MAX_CLASSES

MAX_SIDE = 2048  # pixels
MAX_BLOCKS = 150  # of one network, in all its stages: tracing it takes seconds

Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Channels = Literal[1, 3]
ImageShape = tuple[Side, Side, Channels]
Width = Annotated[int, msgspec.Meta(ge=1, le=8192)]
_EACH = msgspec.Meta(min_length=1, max_length=3)  # of the channels
Mean = Annotated[tuple[Annotated[float, msgspec.Meta(ge=-1000, le=1000)], ...], _EACH]
# What images are divided by: at 0, also that of float32, they are no numbers.
Std = Annotated[tuple[Annotated[float, msgspec.Meta(ge=1e-6, le=1000)], ...], _EACH]

OPTIONS: Mapping[str, Any] = {
    "num_classes": Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES)],
    "widths": Annotated[tuple[Width, ...], msgspec.Meta(min_length=1, max_length=12)],
    "features": Width,
    "blocks": Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCKS)],
    "depth": Annotated[int, msgspec.Meta(ge=1, le=2 * MAX_BLOCKS)],
    "widen": Annotated[int, msgspec.Meta(ge=1, le=64)],
    "form": str,
    "mean": Mean,
    "std": Std,
}


class Settings(TypedDict, total=False):
    """Settings of a network as a file of weights has them; others say how they were made."""

    network: Required[dict[str, Any]]
    image_shape: Required[ImageShape]
    head: NotRequired[Literal[HEADS]]  # type: ignore[valid-type]
    class_names: NotRequired[
        Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    ]
    data: NotRequired[dict[str, Any]]
    step: NotRequired[Annotated[int, msgspec.Meta(ge=1, le=2**40)]]


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a network, lists as tuples; ValueError that names one of another type, or beyond
    its bounds."""
    found = {}
    for name, value in options.items():
        try:
            found[name] = converted(value, OPTIONS[name])
        except ValueError as error:
            raise ValueError(f"{name}={printable(repr(value), limit=80)}: {error}") from None
    if (blocks := num_blocks(found)) > MAX_BLOCKS:
        raise ValueError(f"the network would have {blocks} blocks: allowed are {MAX_BLOCKS}")
    return found


def num_blocks(options: Mapping[str, Any]) -> int:
    """At most the residual blocks of a network of these checked options: each has two kernels."""
    stages = len(options.get("widths", ()))
    return max(stages * options.get("blocks", 0), (options.get("depth", 0) - 4) // 2)

"""Shapes of images (H, W, C), and what errors say of them."""

Shape = tuple[int, ...]  # (H, W, C)

CHANNELS = (1, 3)  # greyscale and RGB, as figures and files can show them


def check_shape(shape: Shape, name: str, expected: Shape | None) -> None:
    """Raises ValueError where an image's shape (H, W, C) is not the expected one, or its C none of
    CHANNELS."""
    if shape[-1] not in CHANNELS:
        hint = "move its first axis last" if shape[0] in CHANNELS else "convert it"
        raise ValueError(
            f"{name} is {_size(shape)} (height x width x channels): allowed are 1 channel, "
            f"greyscale, and 3, RGB; {hint}"
        )
    if expected is not None and tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} is {_size(shape)}, expected {_size(expected)}: resize or convert it"
        )


def _size(shape: Shape) -> str:
    colours = {1: " greyscale", 3: " RGB"}.get(shape[-1], "")
    return "x".join(map(str, shape)) + colours

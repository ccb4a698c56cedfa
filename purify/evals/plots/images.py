"""Rows of images, such as clean, attacked, noised, purified, as one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from purify.evals.plots.style import BODY, DPI, INK, SMALL, WIDTH, WRONG, save, text_width


def image_rows(
    path: str | Path,
    rows: Mapping[str, np.ndarray],
    captions: Mapping[str, Sequence[tuple[str, bool]]] | None = None,
) -> None:
    """Writes rows of images, each with its name at the left, such as clean, attacked, purified.

    Pixels are enlarged by a whole number and never blended: the figure shows the values
    themselves. A column is as wide as the widest caption, so text does not overlap.

    Args:
        path: .png, whose pixels are the images'.
        rows: name -> images [n, H, W, C] in [0, 1], C 1 or 3; the same n, H and W in all.
        captions: name -> n pairs (text, ok); text that is not ok, such as a wrong class, is bold
            vermilion. Rows left out have none.

    Raises:
        ValueError: no rows, another shape, values outside [0, 1] (clip noised images first), or
            captions of an unknown row or of another number.
    """
    rows = {name: np.asarray(images) for name, images in rows.items()}
    captions = captions or {}
    num, height, width = _check_images(rows)
    for name, entries in captions.items():
        if name not in rows or len(entries) != num:
            raise ValueError(
                f"captions[{name!r}]: {len(entries)} entries, must be {num} for one of {list(rows)}"
            )

    # All lengths are in pixels of the PNG, from its top left corner.
    gap, line = round(0.05 * DPI), round(0.16 * DPI)
    left = 3 * gap + max(text_width(name, BODY) for name in rows)
    entries = [entry for row in captions.values() for entry in row]
    widest = max((text_width(text, **_caption_style(ok)) for text, ok in entries), default=0)
    room = min(max((WIDTH * DPI - left) / num - gap, widest), 1.6 * DPI)
    scale = max(1, int(room / max(height, width)))
    height, width = scale * height, scale * width
    column = max(width, widest) + gap
    tops = np.cumsum([gap, *(height + gap + line * (name in captions) for name in rows)])
    size = np.array([left + num * column, tops[-1]])
    fig = Figure(figsize=size / DPI, dpi=DPI, facecolor="white")

    def write(x, y, text, **style):
        fig.text(x / size[0], 1 - y / size[1], text, parse_math=False, **style)

    for (name, images), top in zip(rows.items(), tops[:-1], strict=True):
        write(left - 2 * gap, top + height / 2, name, size=BODY, color=INK, ha="right", va="center")
        for i, image in enumerate(images):
            x = left + i * column + (column - gap - width) // 2
            fig.figimage(_enlarge(image, scale), x, size[1] - top - height, origin="upper")
            if name in captions:
                text, ok = captions[name][i]
                place = (x + width / 2, top + height + 0.2 * line)
                color = INK if ok else WRONG
                write(*place, text, color=color, ha="center", va="top", **_caption_style(ok))
    save(fig, path)


def _check_images(rows: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """The common (n, H, W)."""
    if not rows:
        raise ValueError("rows: is empty, must hold at least one row of images")
    first = next(iter(rows.values())).shape
    for name, images in rows.items():
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise ValueError(f"rows[{name!r}]: shape {images.shape}, must be [n, H, W, 1 or 3]")
        if images.shape[:3] != first[:3]:
            raise ValueError(f"rows[{name!r}]: shape {images.shape}, the first row has {first}")
        if not (images.min() >= -1e-6 and images.max() <= 1 + 1e-6):  # so that NaN fails too
            raise ValueError(
                f"rows[{name!r}]: in [{images.min()}, {images.max()}], must lie in [0, 1]"
            )
    return first[:3]


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 1 or 3] in [0, 1] -> 8-bit RGB with every pixel a square of scale x scale."""
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    rgb = np.broadcast_to(levels, (*levels.shape[:2], 3))
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def _caption_style(ok: bool) -> dict:
    return {"size": SMALL, "weight": "normal" if ok else "bold"}

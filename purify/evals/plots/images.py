"""Images as one PNG: in rows, such as clean, attacked, noised, purified, or as a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from purify.data.image_io import encode_image
from purify.evals.plots.style import (
    BODY,
    DPI,
    GREY,
    INK,
    SMALL,
    WIDTH,
    WRONG,
    legible,
    save,
    text_width,
)
from purify.saving.files import write_bytes

Captions = Mapping[str, Sequence[tuple[str, bool]]]
Notes = Mapping[str, Mapping[str, Sequence[str]]]


@legible
def image_rows(
    path: str | Path,
    rows: Mapping[str, np.ndarray],
    captions: Captions | None = None,
    *,
    notes: Notes | None = None,
    heads: Sequence[str] = (),
) -> None:
    """Writes rows of images, each with its name at the left, such as clean, attacked, purified.

    Pixels are enlarged by a whole number and never blended: the figure shows the values
    themselves. A column is as wide as the widest text in it, so texts do not overlap.

    Args:
        path: .png, whose pixels are the images'.
        rows: name -> images [n, H, W, C] in [0, 1], C 1 or 3; the same n, H and W in all.
        captions: name -> n pairs (text, ok); text that is not ok, such as a wrong class, is bold
            vermilion. Rows left out have none.
        notes: name -> {what it is: n texts}, each a grey line below the caption, named at the left.
        heads: n texts above the columns, or none.

    Raises:
        ValueError: no rows, another shape, values outside [0, 1] (clip noised images first), or
            texts of an unknown row or of another number.
    """
    rows = {name: np.asarray(images) for name, images in rows.items()}
    captions, notes = captions or {}, notes or {}
    num, height, width = _check_images(rows)
    _check_texts(rows, num, captions, notes, heads)

    # All lengths are in pixels of the PNG, from its top left corner.
    gap, line = round(0.05 * DPI), round(0.16 * DPI)
    left, widest = _text_widths(rows, captions, notes, heads)
    left += 3 * gap
    room = min(max((WIDTH * DPI - left) / num - gap, widest), 1.6 * DPI)
    scale = max(1, int(room / max(height, width)))
    height, width = scale * height, scale * width
    column = max(width, widest) + gap
    below = [line * ((name in captions) + len(notes.get(name, {}))) for name in rows]
    tops = np.cumsum([gap + line * bool(heads), *(height + gap + lines for lines in below)])
    size = np.array([left + num * column, tops[-1]])
    fig = Figure(figsize=size / DPI, dpi=DPI, facecolor="white")
    centres = left + column * np.arange(num) + (column - gap) / 2

    def write(x, y, text, **style):
        fig.text(x / size[0], 1 - y / size[1], text, **style)

    def write_line(y, texts):
        for x, text in zip(centres, texts, strict=True):
            write(x, y, text, size=SMALL, color=GREY, ha="center", va="top")

    if heads:
        write_line(gap, heads)
    for (name, images), top in zip(rows.items(), tops[:-1], strict=True):
        write(left - 2 * gap, top + height / 2, name, size=BODY, color=INK, ha="right", va="center")
        for image, centre in zip(images, centres, strict=True):
            x = int(centre - width / 2)
            fig.figimage(_enlarge(image, scale), x, size[1] - top - height, origin="upper")
        y = top + height + 0.2 * line
        if name in captions:
            for (text, ok), centre in zip(captions[name], centres, strict=True):
                color = INK if ok else WRONG
                write(centre, y, text, color=color, ha="center", va="top", **_caption_style(ok))
            y += line
        for what, texts in notes.get(name, {}).items():
            write(left - 2 * gap, y, what, size=SMALL, color=GREY, ha="right", va="top")
            write_line(y, texts)
            y += line
    save(fig, path)


@legible
def image_grid(path: str | Path, images: np.ndarray, *, columns: int = 8) -> None:
    """Writes images [n, H, W, 1 or 3] in [0, 1], `columns` in a row, as `image_rows` enlarges them,
    to about half its width.

    Raises ValueError for no images, another shape or values outside [0, 1].
    """
    num, height, width = _check_images({"grid": np.asarray(images)})
    scale = max(1, int(0.5 * WIDTH * DPI / columns / max(height, width)))
    gap = round(0.02 * DPI)
    height, width = scale * height + gap, scale * width + gap
    canvas = np.full((-(-num // columns) * height + gap, columns * width + gap, 3), 255, np.uint8)
    for at, image in enumerate(images):
        y, x = at // columns * height + gap, at % columns * width + gap
        canvas[y : y + height - gap, x : x + width - gap] = _enlarge(image, scale)
    write_bytes(Path(path), encode_image(canvas, ".png"))


def _text_widths(
    rows: Mapping, captions: Captions, notes: Notes, heads: Sequence[str]
) -> tuple[int, int]:
    """In pixels: of the widest text at the left of the images, and of the widest in a column."""
    names = [text_width(name, BODY) for name in rows]
    names += [text_width(what, SMALL) for row in notes.values() for what in row]
    entries = [entry for row in captions.values() for entry in row]
    plain = [*heads, *(text for row in notes.values() for texts in row.values() for text in texts)]
    widths = [text_width(text, **_caption_style(ok)) for text, ok in entries]
    widths += [text_width(text, SMALL) for text in plain]
    return max(names), max(widths, default=0)


def _check_texts(
    rows: Mapping, num: int, captions: Captions, notes: Notes, heads: Sequence[str]
) -> None:
    given: list[tuple[str, str, Sequence]] = [
        (f"captions[{name!r}]", name, entries) for name, entries in captions.items()
    ]
    given += [
        (f"notes[{name!r}][{what!r}]", name, texts)
        for name, row in notes.items()
        for what, texts in row.items()
    ]
    for field, name, entries in given:
        if name not in rows or len(entries) != num:
            raise ValueError(
                f"{field}: {len(entries)} entries, must be {num} for one of {list(rows)}"
            )
    if heads and len(heads) != num:
        raise ValueError(f"heads: {len(heads)} entries, must be {num}")


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

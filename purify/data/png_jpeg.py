"""PNG and JPEG files: those of a folder, and one as an array of pixels and back.

Reading gives pixels alone: metadata (gamma, colour profiles, dates, places) is neither applied nor
kept. A file that is another picture than its 8-bit pixels is refused.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from purify.models.shapes import Shape, check_shape
from purify.runtime.errors import FileError
from purify.runtime.messages import few, shown
from purify.runtime.paths import is_of_system
from purify.saving.files import memory_for, open_file, read_bytes

# JPEG loses least at quality 100 with full-resolution colour; even so it loses something.
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 100, "subsampling": 0}
ENCODINGS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}  # by file suffix

MAX_FILE = 2**28  # bytes of a file
MAX_PIXELS = 2**26  # of an image
FACTOR = 200  # bytes of float32 images for each of many files: JPEG takes 20 times less than uint8

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright, 2 to 8 are turned or mirrored
_GREY_MODES = ("1", "L", "LA", "I", "I;16")  # Pillow's
_CHANNELS = {"1": 1, "L": 1, "RGB": 3}  # of the modes that are taken
_DEPTH_AT = 24  # place of a PNG's bits a channel: its header is the first chunk, IHDR


def read_image(file: Path | bytes, name: str, shape: Shape | None = None) -> np.ndarray:
    """Decodes a PNG or JPEG file, given by path or content, to uint8 [H, W, C], C in {1, 3}.

    Greyscale of 1, 2 or 4 bits fills the range 0..255, as the PNG standard says; that loses nothing
    (optimisers of files store few greys so).

    Raises OSError where the file cannot be read and ValueError, calling the file `name`, where it
    is damaged or has a palette, alpha, a transparent colour, CMYK, 16 bits, several frames or an
    EXIF orientation that is not upright: nothing is converted silently. So it does, before any
    pixel is decoded, for more than MAX_PIXELS, and for another shape where one is given.
    """
    content = file if isinstance(file, bytes) else read_bytes(file, limit=MAX_FILE, follow=True)
    try:
        with _opened(io.BytesIO(content)) as image:
            kind = _kind(image, content)
    except Exception as error:
        raise _no_image(name, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels: allowed are {MAX_PIXELS:,}")
    if kind:
        raise ValueError(f"{name} {kind}")
    check_shape((height, width, _CHANNELS[image.mode]), name, shape)
    try:
        with _opened(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
            obstacle = _obstacle(image)
    except Exception as error:
        raise _no_image(name, error) from error
    if obstacle:
        raise ValueError(f"{name} {obstacle}")
    return pixels.reshape(*pixels.shape[:2], -1)


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """Its header is read, its pixels are not. No warnings: what they are about, damage and size, is
    told as an error, or is no fault of the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            yield image


def _no_image(name: str, error: Exception) -> Exception:
    """What is told of an error: Pillow raises OSError, SyntaxError, zlib.error, ... for damage."""
    if is_of_system(error):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return ValueError(f"{name} has more pixels than the allowed {MAX_PIXELS:,}")
    return ValueError(f"{name} is no readable PNG or JPEG, or is cut short: replace it")


def _kind(image: Image.Image, content: bytes) -> str:
    """Why a file with this header is no picture of 8-bit pixels, and what to do; else ''."""
    # Pillow reads the high bytes of 16-bit colours alone and says RGB; the file's header tells.
    if image.format == "PNG" and content[12:16] != b"IHDR":
        raise ValueError("the header is not in its place")
    if image.format == "PNG" and content[_DEPTH_AT] == 16:
        return "has 16 bits a channel: convert it to 8"
    if image.mode not in _CHANNELS:
        return f"has pixels of mode {image.mode}: convert it to 8-bit greyscale or RGB"
    return ""


def _obstacle(image: Image.Image) -> str:
    """Why a decoded file is not the picture that its 8-bit pixels are, and what to do; else ''."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        return f"holds {frames} frames: save the one that is meant as a file of its own"
    if "transparency" in image.info:
        return "has a transparent colour: save it without transparency"
    if (orientation := _orientation(image)) in range(2, 9):
        return f"is to be turned for viewing (EXIF orientation {orientation}): save it upright"
    return ""


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # viewers ignore damaged metadata, too
        return None


def is_colour(file: Path) -> bool:
    """Whether its header says colour; False for a file that cannot be read."""
    try:
        with open_file(file, follow=True) as content, _opened(content) as image:
            return image.mode not in _GREY_MODES
    except Exception:  # as in read_image, which says so
        return False


def memory_for_files(sizes: Iterable[int]) -> int:
    """Bytes that the images of files of these sizes may take, see `check_total`."""
    return memory_for(sum(sizes), FACTOR)


def check_total(needed: int, allowed: float, name: str) -> None:
    """FileError where images, all together, take more memory than they may."""
    if needed > allowed:
        raise FileError(
            f"{name}: its images would take {needed:,} bytes of memory; allowed are {allowed:,} "
            "for files of their size: give them in parts"
        )


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """Encodes uint8 [H, W, C], C in {1, 3}, as the file format of a suffix of ENCODINGS."""
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, **ENCODINGS[suffix])
    return buffer.getvalue()


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, sorted by name; hidden and other files are left out.

    A link to nothing counts, for reading to name it: passed over, it would shift what follows.
    """
    files = (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in ENCODINGS and not file.name.startswith(".") and not file.is_dir()
    )
    return sorted(files, key=os.fsencode)


def other_contents(folder: Path) -> str:
    """What a folder without PNG and JPEG files holds instead, in words, and what to do."""
    items = [item for item in folder.iterdir() if not item.name.startswith(".")]
    folders = sorted(shown(item.name) for item in items if item.is_dir())
    kinds = sorted({shown(item.suffix.lower()) for item in items if not item.is_dir()} - {""})
    if folders:
        return f"holds folders ({few(folders)}), but images must lie in it directly"
    if kinds:
        return f"holds {few(kinds)} files only: convert images to PNG"
    return "holds no images: put some there, or move it elsewhere"

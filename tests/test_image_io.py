"""Images in and out: folders, arrays and archives, checked before work and written whole."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from purify.data import png_jpeg
from purify.data.image_io import load_labelled_npz, open_images, to_float, to_uint8
from purify.saving import files

RGB, GREY = (6, 5, 3), (6, 5, 1)  # height and width differ, so that a transposition shows


def random_uint8(n: int, shape=RGB) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)


def random_float(n: int, shape=RGB) -> np.ndarray:
    return np.random.default_rng(n).random((n, *shape), np.float32)


def write_folder(folder: Path, **images: np.ndarray) -> Path:
    """Files <name>.<suffix> for arguments <name>_<suffix>=image uint8 [H, W, C]."""
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(image.squeeze()).save(folder / name.replace("_", "."), quality=100)
    return folder


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def error_opening(path, output=None, shape=RGB) -> str:
    """The error of open_images; the output defaults to one that is fine."""
    path = Path(path)
    output = output or path.with_name("output" + path.suffix)
    before = sorted(path.parent.rglob("*"))
    message = error_of(open_images, path, output, shape)
    assert sorted(path.parent.rglob("*")) == before
    return message


# Pixels


def test_uint8_and_float_are_inverse_and_rounding_is_to_the_nearest():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32 and floats[0] == 0 and floats[255] == 1
    np.testing.assert_array_equal(to_uint8(floats), values)
    np.testing.assert_array_equal(to_uint8(floats.astype(np.float64)), values)
    np.testing.assert_array_equal(to_uint8(values), values)
    nearest = to_uint8(np.array([0.49, 0.51, 127.4, 127.6, 254.4, 254.6, 255]) / 255)
    assert nearest.tolist() == [0, 1, 127, 128, 254, 255, 255]


# Folders


@pytest.mark.parametrize("shape", [RGB, GREY])
def test_png_folder_round_trip_is_exact(tmp_path, shape):
    images = random_uint8(3, shape)
    path = write_folder(tmp_path / "in", b_png=images[1], a_png=images[0], c_PNG=images[2])
    source = open_images(path, tmp_path / "out", shape)
    assert source.images.dtype == np.float32 and source.images.shape == (3, *shape)
    np.testing.assert_array_equal(source.images, to_float(images))  # in order of name
    source.write(1 - source.images)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "c.PNG"]
    again = open_images(tmp_path / "out", tmp_path / "x", shape)
    np.testing.assert_array_equal(again.images, to_float(255 - images))
    with Image.open(tmp_path / "out/c.PNG") as image:
        assert image.format == "PNG" and image.mode == ("RGB" if shape == RGB else "L")


@pytest.mark.parametrize("shape", [(32, 24, 3), (32, 24, 1)])
def test_jpeg_stays_jpeg_at_its_best_quality(tmp_path, shape):
    noise = random_uint8(1, shape)[0]  # the hardest picture, and full of colour edges
    path = write_folder(tmp_path / "in", a_jpg=noise, b_jpeg=noise, c_JPG=noise)
    source = open_images(path, tmp_path / "out", shape)
    source.write(np.broadcast_to(to_float(noise), source.images.shape))
    written = open_images(tmp_path / "out", tmp_path / "x", shape).images
    for image, name in zip(written, ["a.jpg", "b.jpeg", "c.JPG"], strict=True):
        with Image.open(tmp_path / "out" / name) as file:
            assert file.format == "JPEG"
            assert all(max(table) == 1 for table in file.quantization.values())
        # Colours are rounded in another space; subsampled they would be off by tens.
        assert np.abs(image - to_float(noise)).mean() < (1.5 if shape[-1] == 3 else 0.5) / 255


def test_folder_leaves_other_files_hidden_files_and_subfolders_alone(tmp_path):
    path = write_folder(tmp_path / "in", a_png=random_uint8(1)[0])
    (path / "notes.txt").write_text("not an image")
    (path / ".hidden.png").write_text("not an image")
    (path / "sub.png").mkdir()
    source = open_images(path, tmp_path / "out", RGB)
    source.write(source.images)
    assert os.listdir(tmp_path / "out") == ["a.png"]


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("not an image")
    message = error_opening(tmp_path / "in")
    assert f"'{tmp_path / 'in'}' holds no .png, .jpg, .jpeg files" in message


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_named(tmp_path, suffix, kept):
    image = random_uint8(1, (32, 32, 3))[0]
    path = write_folder(tmp_path / "in", a_png=image, **{f"bad_{suffix}": image})
    bad = path / f"bad.{suffix}"
    bad.write_bytes(bad.read_bytes()[: int(kept * bad.stat().st_size)])
    message = error_opening(path, shape=(32, 32, 3))
    assert f"'{bad}'" in message and "replace it" in message


def test_a_file_that_is_no_image_and_a_damaged_one_are_named(tmp_path):
    path = write_folder(tmp_path / "in", a_png=random_uint8(1)[0])
    content = (path / "a.png").read_bytes()
    gif = io.BytesIO()
    Image.new("L", (5, 6)).save(gif, format="GIF")
    for damaged in (b"no image", gif.getvalue(), content[:40] + b"\xff" + content[41:]):
        (path / "a.png").write_bytes(damaged)
        assert f"'{path / 'a.png'}' is no readable PNG or JPEG" in error_opening(path)


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path):
    path = write_folder(
        tmp_path / "in", a_png=random_uint8(1)[0], b_png=random_uint8(1, (5, 6, 3))[0]
    )
    message = error_opening(path)
    assert f"'{path / 'b.png'}'" in message
    assert "5x6x3 RGB" in message and "expected 6x5x3 RGB" in message


def test_greyscale_and_rgb_are_not_confused(tmp_path):
    grey = write_folder(tmp_path / "grey", a_png=random_uint8(1, GREY)[0])
    assert "6x5x1 greyscale, expected 6x5x3 RGB" in error_opening(grey)
    colour = write_folder(tmp_path / "colour", a_png=random_uint8(1)[0])
    assert "6x5x3 RGB, expected 6x5x1 greyscale" in error_opening(colour, shape=GREY)


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.bmp").write_bytes(b"BM")
    assert ".bmp files only: convert images to PNG" in error_opening(tmp_path / "in")
    (tmp_path / "in/deeper").mkdir()
    assert "folders (deeper), but images must lie in it" in error_opening(tmp_path / "in")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK"])
def test_other_kinds_of_pixels_are_refused(tmp_path, mode):
    (tmp_path / "in").mkdir()
    Image.new(mode, (5, 6)).save(tmp_path / f"in/a.{'jpg' if mode == 'CMYK' else 'png'}")
    message = error_opening(tmp_path / "in")
    assert f"mode {mode}" in message and "8-bit greyscale or RGB" in message


def png(bits: int, colour: int, rows: list[bytes], *, before=(), after=()) -> bytes:
    """A PNG file of 4 pixels a row; before, after: more chunks (type, content), by their place."""
    header = struct.pack(">IIBBBBB", 4, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", pixels), *after, (b"IEND", b"")]
    return png_file(chunks)


def png_file(chunks) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def write_one(tmp_path: Path, content: bytes, suffix: str = "png") -> Path:
    """A folder with one file a.<suffix> of that content."""
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/a.{suffix}").write_bytes(content)
    return tmp_path / "in"


def encoded(form: str, **options) -> bytes:
    """Colour of 4 x 4 pixels in a form of file, with these options of Pillow's."""
    file = io.BytesIO()
    Image.fromarray(random_uint8(1, (4, 4, 3))[0]).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("colour, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused(tmp_path, colour, channels):
    """Of which Pillow would keep the high bytes of RGB without a word."""
    path = write_one(tmp_path, png(16, colour, [bytes(range(8 * channels))] * 4))
    message = error_opening(path, shape=(4, 4, 3 if colour == 2 else 1))
    assert "a.png' has 16 bits a channel: convert it to 8" in message


@pytest.mark.parametrize(
    "bits, row, expected",
    [(1, b"\xb0", [255, 0, 255, 255]), (2, b"\x1b", [0, 85, 170, 255]), (4, b"\x1f\xa0", None)],
)
def test_greyscale_of_fewer_bits_fills_the_range(tmp_path, bits, row, expected):
    images = open_images(
        write_one(tmp_path, png(bits, 0, [row])), tmp_path / "out", (1, 4, 1)
    ).images
    np.testing.assert_array_equal(to_uint8(images).ravel(), expected or [17, 255, 170, 0])


@pytest.mark.parametrize("form", ["PNG", "PNG with another first picture", "MPO"])
def test_a_file_of_several_frames_is_refused(tmp_path, form):
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (50, 150)]
    kind, hidden = form.split()[0], {"default_image": True} if "first" in form else {}
    content = encoded(kind, save_all=True, append_images=frames[: 1 + bool(hidden)], **hidden)
    path = write_one(tmp_path, content, "jpg" if kind == "MPO" else "png")
    message = error_opening(path, shape=(4, 4, 3))
    assert "frames: save the one that is meant" in message and f"'{path}/a." in message


@pytest.mark.parametrize("colour, colours", [(0, b"\0\7"), (2, b"\0\7\0\7\0\7")])
def test_a_transparent_colour_is_refused(tmp_path, colour, colours):
    rows = [b"\7" * 4 * (3 if colour else 1)] * 4
    path = write_one(tmp_path, png(8, colour, rows, before=[(b"tRNS", colours)]))
    message = error_opening(path, shape=(4, 4, 3 if colour else 1))
    assert "has a transparent colour: save it without" in message


def exif(orientation: int) -> bytes:
    """EXIF, of that tag alone, without the marker that JPEG files have before it."""
    return b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHHI", 0x112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("where", ["JPEG", "PNG", "PNG, after its pixels"])
def test_a_picture_that_viewers_turn_is_refused(tmp_path, where, orientation):
    place = "after" if "after" in where else "before"
    content = png(8, 2, [bytes(range(12))] * 4, **{place: [(b"eXIf", exif(orientation))]})
    if where == "JPEG":
        content = encoded("JPEG", exif=b"Exif\0\0" + exif(orientation))
    path = write_one(tmp_path, content, where[:3].lower().replace("jpe", "jpg"))
    message = error_opening(path, shape=(4, 4, 3))
    assert f"EXIF orientation {orientation}" in message and "save it upright" in message


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", exif(1)),
        (b"eXIf", exif(0)),
        (b"eXIf", exif(9)),
        (b"eXIf", b"damaged"),
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"a profile")),
    ],
)
def test_metadata_that_leave_the_picture_as_it_is_are_passed_over(tmp_path, chunk):
    rows = [bytes(range(12 * i, 12 * i + 12)) for i in range(4)]
    path = write_one(tmp_path, png(8, 2, rows, before=[chunk]))
    images = open_images(path, tmp_path / "out", (4, 4, 3)).images
    np.testing.assert_array_equal(to_uint8(images).ravel(), np.arange(48))


def test_an_image_that_is_a_link_to_nothing_is_named(tmp_path):
    path = write_folder(tmp_path / "in", a_png=random_uint8(1)[0])
    (path / "b.png").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=f"{path}/b.png"):
        open_images(path, tmp_path / "out", RGB)


def zeros_png(width: int, height: int) -> bytes:
    """A PNG that says it has so many grey pixels; little of them is there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return png_file([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")])


@pytest.mark.parametrize("width, height", [(20_000, 20_000), (10_000, 10_000), (7000, 7000)])
@pytest.mark.parametrize("shape", [None, (4, 4, 1)])
def test_the_size_of_a_picture_is_looked_at_before_its_pixels(
    tmp_path, monkeypatch, width, height, shape
):
    path = write_one(tmp_path, zeros_png(width, height))
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    monkeypatch.setattr(png_jpeg, "MAX_PIXELS", 7000 * 7000 - (shape is None))
    message = error_opening(path, shape=shape)
    assert f"'{path}/a.png'" in message and not decoded
    assert ("pixels" in message) == (width > 7000 or shape is None)


def test_many_small_files_of_large_pictures_are_refused_after_the_first(tmp_path, monkeypatch):
    path = write_folder(
        tmp_path / "in", **{f"{i}_png": np.zeros((50, 50), np.uint8) for i in range(20)}
    )
    monkeypatch.setattr("purify.saving.files.MEMORY", 4 * 50 * 50 * 10)
    monkeypatch.setattr(png_jpeg, "FACTOR", 1)
    assert "its images would take 200,000 bytes" in error_opening(path, shape=None)


def test_a_picture_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    path = write_folder(tmp_path / "in", a_png=random_uint8(1)[0])
    for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
        make(path / "b.png")
        assert f"'{path}/b.png' is no regular file" in error_opening(path)
        assert not png_jpeg.is_colour(path / "b.png")
        (path / "b.png").unlink()


def test_names_that_are_no_utf_8_are_kept_and_named_in_errors(tmp_path):
    path = write_folder(tmp_path / "in", a_png=random_uint8(1)[0])
    odd = os.fsencode(path) + b"/caf\xe9.png"
    os.rename(path / "a.png", odd)
    source = open_images(path, tmp_path / "out", RGB)
    source.write(source.images)
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"caf\xe9.png"]
    with open(odd, "wb") as file:
        file.write(b"no image")
    assert f"'{path}/caf\\xe9.png' is no readable" in error_opening(path)


# Arrays


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
def test_arrays_keep_their_form_and_dtype(tmp_path, suffix, dtype):
    images = random_uint8(4) if dtype == "uint8" else random_float(4).astype(dtype)
    extra = {"labels": np.arange(4), "file": np.array(["a", "bc"]), "a/b": np.float64(0.5)}
    path = tmp_path / f"in{suffix}"
    with path.open("wb") as file:
        np.save(file, images)
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in {**extra, "images": images}.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.save(member, array)
    source = open_images(path, tmp_path / f"out{suffix}", RGB)
    assert source.images.dtype == np.float32
    np.testing.assert_array_equal(source.images, to_float(images))
    purified = np.float32(random_float(9)[5:])
    source.write(purified)
    written = np.load(tmp_path / f"out{suffix}", allow_pickle=False)
    if suffix == ".npz":
        with written as archive:
            assert set(archive.files) == {"images", *extra}
            for key, array in extra.items():
                np.testing.assert_array_equal(archive[key], array)
                assert archive[key].dtype == np.asarray(array).dtype
            written = archive["images"]
    assert written.dtype == np.dtype(dtype)
    expected = np.rint(purified * 255) if dtype == "uint8" else purified.astype(dtype)
    np.testing.assert_array_equal(written, expected)


def test_channels_other_than_grey_and_rgb_are_refused_whatever_the_networks(tmp_path):
    for channels in (2, 4):
        np.save(tmp_path / "a.npy", random_float(2, (6, 5, channels)))
        message = error_opening(tmp_path / "a.npy", shape=(6, 5, channels))
        assert f"is 6x5x{channels}" in message and "1 channel, greyscale, and 3, RGB" in message
        np.savez(tmp_path / "a.npz", images=np.load(tmp_path / "a.npy"), labels=[0, 1])
        assert message.split("images ")[-1].split(" is ")[-1] in error_of(
            load_labelled_npz, tmp_path / "a.npz", (6, 5, channels)
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_in_the_first_place_get_a_hint(tmp_path, channels):
    np.save(tmp_path / "a.npy", random_float(2, (channels, 6, 5)))
    message = error_opening(tmp_path / "a.npy", shape=(6, 5, channels))
    assert f"is {channels}x6x5 " in message and "move its first axis last" in message


FLOATS = random_float(2)
WRONG_IMAGES = {
    "has dtype int64": np.zeros((2, *RGB), np.int64),
    "has dtype bool": np.zeros((2, *RGB), bool),
    "has dtype complex64": np.zeros((2, *RGB), np.complex64),
    "has shape [6, 5, 3]": FLOATS[0],
    "has shape [2, 6, 5]": FLOATS[..., 0],
    "has shape [0, 6, 5, 3]": FLOATS[:0],
    "is 5x6x3 RGB, expected 6x5x3 RGB": FLOATS.swapaxes(1, 2),
    "is 6x5x1 greyscale, expected": FLOATS[..., :1],
    "from 0.0 to 255.0": np.linspace(0, 255, FLOATS.size).reshape(FLOATS.shape),
    "from -0.5 to 0.5": np.linspace(-0.5, 0.5, FLOATS.size).reshape(FLOATS.shape),
    "from nan to nan": np.where(np.arange(FLOATS.size).reshape(FLOATS.shape) == 7, np.nan, 0.5),
    "to inf": np.where(np.arange(FLOATS.size).reshape(FLOATS.shape) == 7, np.inf, 0.5),
}


@pytest.mark.parametrize("words", WRONG_IMAGES)
def test_wrong_images_are_explained(tmp_path, words):
    np.save(tmp_path / "a.npy", WRONG_IMAGES[words])
    message = error_opening(tmp_path / "a.npy")
    assert f"'{tmp_path / 'a.npy'}'" in message and words in message
    np.savez(tmp_path / "a.npz", images=WRONG_IMAGES[words], labels=np.arange(2))
    message = error_opening(tmp_path / "a.npz")
    assert f"'{tmp_path / 'a.npz'}'" in message and words in message
    assert words in error_of(load_labelled_npz, tmp_path / "a.npz", RGB)


def test_an_archive_without_images_lists_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=FLOATS, labels=np.arange(2))
    assert "holds no array images, only [pictures, labels]" in error_opening(tmp_path / "a.npz")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_a_folder_given_as_an_archive_is_not_called_damaged(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        load_labelled_npz(tmp_path, RGB)


def write_damaged(path: Path, damage: str) -> None:
    save = np.save if path.suffix == ".npy" else lambda file, array: np.savez(file, images=array)
    with path.open("wb") as file:
        save(file, np.array([Bomb()], object) if damage == "pickled" else FLOATS)
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "cut":
        path.write_bytes(content[:-200])
    if damage == "text":
        path.write_text("1 2 3\n")
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    if damage == "flipped" and path.suffix == ".npz":  # only archives have checksums
        path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    if damage == "flipped" and path.suffix == ".npy":
        path.write_bytes(content[:3] + b"?" + content[4:])
    if damage == "other kind" and path.suffix == ".npy":
        with path.open("wb") as file:
            np.savez(file, images=FLOATS)
    if damage == "other kind" and path.suffix == ".npz":
        with path.open("wb") as file:
            np.save(file, FLOATS)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "text", "pickle", "pickled", "flipped", "other kind"]
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_named_and_never_unpickled(tmp_path, monkeypatch, suffix, damage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    write_damaged(path, damage)
    message = error_opening(path)
    assert f"'{path}'" in message and "damaged" in message
    if suffix == ".npz":
        assert error_of(load_labelled_npz, path, RGB) == message
    assert os.listdir(tmp_path) == [path.name]


def test_an_archive_with_something_other_than_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=FLOATS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "hello")
    assert "plain arrays" in error_opening(tmp_path / "a.npz")


# What is checked of the paths


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="input '.*no.npy' does not exist"):
        open_images(tmp_path / "no.npy", tmp_path / "out.npy", RGB)
    with pytest.raises(FileNotFoundError, match="input '.*no.npz' does not exist"):
        load_labelled_npz(tmp_path / "no.npz", RGB)


def test_an_input_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "a.tiff").touch()
    message = error_opening(tmp_path / "a.tiff")
    assert f"'{tmp_path / 'a.tiff'}'" in message and "folder, .npy, .npz" in message


@pytest.fixture(params=["in", "in.npy", "in.npz"])
def source_path(request, tmp_path):
    """An input of each kind, with two images FLOATS (as uint8 in the folder)."""
    path = tmp_path / request.param
    if path.suffix == "":
        first, second = to_uint8(FLOATS)
        return write_folder(path, a_png=first, b_jpg=second)
    if path.suffix == ".npy":
        np.save(path, FLOATS)
    else:
        np.savez(path, images=FLOATS)
    return path


def output_for(source_path: Path) -> Path:
    return source_path.with_name("out" + source_path.suffix)


@pytest.mark.parametrize("existing", ["file", "folder", "broken link"])
def test_an_existing_output_is_refused_and_left_as_it_is(source_path, existing):
    output = output_for(source_path)
    if existing == "file":
        output.write_text("precious")
    if existing == "folder":
        output.mkdir()
    if existing == "broken link":
        output.symlink_to("nowhere")
    assert f"output '{output}' exists already" in error_opening(source_path, output)
    assert existing != "file" or output.read_text() == "precious"
    assert f"output '{source_path}' exists already" in error_opening(source_path, source_path)


def test_an_output_needs_a_folder_that_can_be_written(source_path, monkeypatch):
    output = source_path.parent / "no" / output_for(source_path).name
    message = error_opening(source_path, output)
    assert f"output '{output}'" in message and f"'{output.parent}'" in message
    output.parent.touch()
    assert error_opening(source_path, output) == message
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "writable" in error_opening(source_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_output_has_the_suffix_of_its_input(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, FLOATS)
    else:
        np.savez(path, images=FLOATS)
    message = error_opening(path, tmp_path / "out.png")
    assert f"must end in {suffix}" in message and "out.png" in message


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", images=FLOATS, labels=np.arange(2))
    open_images("~/a.npz", "~/b.npz", RGB).write(FLOATS)
    assert (tmp_path / "b.npz").is_file()
    np.testing.assert_array_equal(load_labelled_npz("~/a.npz", RGB)[0], FLOATS)


# Writing


def test_writing_leaves_nothing_but_the_output(source_path):
    before = set(os.listdir(source_path.parent))
    open_images(source_path, output_for(source_path), RGB).write(FLOATS)
    assert set(os.listdir(source_path.parent)) == before | {output_for(source_path).name}


@pytest.mark.parametrize("where", ["encode", "rename"])
def test_interrupted_writing_leaves_nothing(source_path, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    source = open_images(source_path, output_for(source_path), RGB)
    before = sorted(source_path.parent.rglob("*"))
    if where == "rename":
        monkeypatch.setattr(files, "rename_new", interrupt)  # of folders and of files
    elif source_path.is_dir():
        monkeypatch.setattr(Image.Image, "save", interrupt)
    else:
        monkeypatch.setattr(np.lib.format, "write_array", interrupt)
        monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        source.write(FLOATS)
    assert sorted(source_path.parent.rglob("*")) == before


def test_an_output_that_appears_meanwhile_is_not_overwritten(source_path):
    output = output_for(source_path)
    source = open_images(source_path, output, RGB)
    output.write_text("precious")
    before = sorted(source_path.parent.rglob("*"))
    assert "exists already" in error_of(source.write, FLOATS)
    assert output.read_text() == "precious"
    assert sorted(source_path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "purified", [FLOATS[:1], FLOATS[:, :5], FLOATS * 2, FLOATS - 1, FLOATS * np.nan]
)
def test_purified_images_that_do_not_fit_are_refused(source_path, purified):
    source = open_images(source_path, output_for(source_path), RGB)
    assert "purified" in error_of(source.write, purified)
    assert not output_for(source_path).exists()


# Labelled archives


def test_labelled_images_with_and_without_index(tmp_path):
    images = random_uint8(3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1], np.uint8), other="x")
    loaded, labels, index = load_labelled_npz(tmp_path / "a.npz", RGB, num_classes=3)
    np.testing.assert_array_equal(loaded, to_float(images))
    assert labels.tolist() == [2, 0, 1] and index.tolist() == [0, 1, 2]
    assert (loaded.dtype, labels.dtype, index.dtype) == (np.float32, np.int32, np.int32)
    np.savez(tmp_path / "b.npz", images=FLOATS, labels=[0, 9], index=[70, 7])
    loaded, labels, index = load_labelled_npz(tmp_path / "b.npz", RGB)
    np.testing.assert_array_equal(loaded, FLOATS)
    assert labels.tolist() == [0, 9] and index.tolist() == [70, 7]


def test_labels_that_would_be_names_of_billions_of_classes_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=FLOATS, labels=[0, 2_000_000_000])
    message = error_of(load_labelled_npz, tmp_path / "a.npz", RGB)
    assert "labels has values from 0 to 2000000000" in message


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "holds no array labels"),
        ({"labels": [0]}, "labels is int64 [1]: give integers [2]"),
        ({"labels": [[0], [1]]}, "labels is int64 [2, 1]"),
        ({"labels": [0.0, 1.0]}, "labels is float64"),
        ({"labels": [0, -1]}, "labels has values from -1 to 0"),
        ({"labels": [0, 3]}, "from 0 to 3: allowed are 0 to 2"),
        ({"labels": [0, 1], "index": [0, 1, 2]}, "index is int64 [3]"),
        ({"labels": [0, 1], "index": [0.0, 1.0]}, "index is float64"),
        ({"labels": [0, 1], "index": [-1, 1]}, "index has values from -1 to 1"),
        ({"labels": [0, 1], "index": [5, 2**31]}, f"to {2**31}"),
        ({"labels": [0, 1], "index": [4, 4]}, "index repeats a value"),
    ],
)
def test_wrong_labels_and_indices_are_explained(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", images=FLOATS, **arrays)
    message = error_of(load_labelled_npz, tmp_path / "a.npz", RGB, num_classes=3)
    assert f"'{tmp_path / 'a.npz'}'" in message and words in message

"""Image files: correct values for every kind of file, or a refusal."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.data import Folders, folder_task
from clnp.data.pictures import by_threads, measured_range, read_header, read_image, stored_side
from clnp.errors import DataError

Image = pytest.importorskip("PIL.Image")

SIDE = 8
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def read(path, channels=1, **options):
    return read_image(path, SIDE, channels, convert=True, **options)


def ramp(bits, dtype):
    return np.rint(RAMP * (2**bits - 1)).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "pixels", "black_and_white"),
    [
        ("16.png", ramp(16, np.uint16), (0, 65535)),
        ("16.tif", ramp(16, np.uint16), (0, 65535)),
        ("12.png", ramp(12, np.uint16), (0, 4095)),
        ("10.tif", ramp(10, np.uint16), (0, 1023)),
        ("8.png", ramp(8, np.uint16), (0, 255)),
        ("32.tif", ramp(12, np.int32), (0, 4095)),
        ("20.tif", ramp(20, np.int32), (0, 2**20 - 1)),
        ("signed.tif", ramp(10, np.int32) - 500, (-500, 523)),
        ("unit.tif", RAMP.astype(np.float32), (0, 1)),
        ("float.tif", (300 * RAMP - 100).astype(np.float32), (-100, 200)),
    ],
)
def test_more_than_8_bits(tmp_path, name, pixels, black_and_white, channels):
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=r"expected Pillow mode .*--convert-images"):
        read_image(path, SIDE, channels)
    with pytest.raises(DataError, match="expected value_range"):
        read(path, channels)
    assert read_header(path, channels, convert=True).deep
    found = measured_range([path], 1)
    assert found == pytest.approx(black_and_white)
    # Half a step of 8 bits, and what the numbers themselves were rounded by.
    wanted = torch.from_numpy(255 * RAMP).expand(channels, SIDE, SIDE)
    values = read(path, channels, value_range=found)
    torch.testing.assert_close(values.double(), wanted, rtol=0, atol=0.8)


def test_numbers_outside_the_range_are_black_or_white(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 100], [300, 60000]], np.uint16).repeat(4, 0).repeat(4, 1)).save(
        path
    )
    values = read(path, value_range=(100, 300))[0]
    assert values[::4, ::4].tolist() == [[0, 0], [255, 255]]


def test_numbers_that_are_none(tmp_path):
    for number in (np.nan, np.inf):
        Image.fromarray(np.full((8, 8), number, np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match="expected finite numbers, got NaN or Inf"):
            measured_range([tmp_path / "a.tif"], 1)


def images_of(root, *, bits, number=4, first=0):
    """Make two classes, dark and light, with a given bit depth."""
    for name, share in (("dark", 0.25), ("light", 1.0)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(first, first + number):
            value = np.full((SIDE, SIDE), round(share * (2**bits - 1)), np.uint16)
            Image.fromarray(value).save(root / name / f"{k}.png")
    return root


def values_of(split):
    """Return the values of the first pixel's red channel over all images, as bytes."""
    x, _ = split.batch(torch.arange(len(split)))
    return sorted({round(255 * float(v)) for v in x[:, 0, 0, 0]})


def test_one_range_for_all_splits_and_tasks(tmp_path):
    a = images_of(tmp_path / "a", bits=12, number=5)
    b = images_of(tmp_path / "b", bits=10, number=5)
    stream = Folders([a, b], convert=True, normalise="none")
    assert stream.value_range == (0, 4095)
    assert stream.image_size == SIDE
    for split in ("train", "validation", "test"):
        assert values_of(getattr(stream[0], split)) == [64, 255]
        assert values_of(getattr(stream[1], split)) == [16, 64]
    assert list(stream.notes()) == [
        "images of more than 8 bits: 0 is black, 4095 white, in all tasks"
    ]
    given = Folders([b], convert=True, normalise="none", value_range=(0, 1023))
    assert values_of(given[0].test) == [64, 255]
    assert values_of(folder_task(b, convert=True, normalise="none").test) == [64, 255]
    with pytest.raises(DataError, match=r"value_range: expected .* got \(1, 1\)"):
        folder_task(b, value_range=(1, 1))


def test_the_training_images_decide_the_range(tmp_path):
    images_of(tmp_path / "train", bits=12)
    images_of(tmp_path / "test", bits=16)
    task = folder_task(tmp_path, convert=True, normalise="none")
    assert values_of(task.train) == [64, 255]
    assert values_of(task.test) == [255]
    for path in (tmp_path / "train").rglob("*.png"):
        Image.new("L", (SIDE, SIDE), 9).save(path)
    with pytest.raises(DataError, match="expected training images of more than 8 bits"):
        folder_task(tmp_path, convert=True)


TRANSPARENT = {
    "RGBA": ((200, 10, 10, 0), (255, 255, 255)),
    "half": ((200, 10, 10, 128), (227, 132, 132)),
    "opaque": ((200, 10, 10, 255), (200, 10, 10)),
    "LA": ((10, 0), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_are_laid_on_white(tmp_path, kind):
    colour, wanted = TRANSPARENT[kind]
    path = tmp_path / "a.png"
    Image.new("LA" if kind == "LA" else "RGBA", (SIDE, SIDE), colour).save(path)
    with pytest.raises(DataError, match="without transparency"):
        read_header(path, 3, convert=False)
    assert read(path, 3)[:, 0, 0].tolist() == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colours(tmp_path, mode):
    """A palette colour, a grey or an RGB colour is marked as transparent."""
    image = Image.new(mode, (SIDE, SIDE), (9, 9, 9) if mode == "RGB" else 9)
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "a.png", transparency=(9, 9, 9) if mode == "RGB" else 9)
    image.save(tmp_path / "b.png")
    with pytest.raises(DataError, match="with transparent pixels"):
        read_header(tmp_path / "a.png", 3, convert=False)
    assert read(tmp_path / "a.png", 3)[:, 0, 0].tolist() == [255, 255, 255]
    assert read_image(tmp_path / "b.png", SIDE, 3)[:, 0, 0].tolist() == [9, 9, 9]


def test_inks_and_two_colours(tmp_path):
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="got CMYK"):
        read_header(tmp_path / "a.tif", 3, convert=False)
    assert read(tmp_path / "a.tif", 3)[:, 0, 0].tolist() == [255, 0, 0]
    Image.fromarray(RAMP > 0.5).save(tmp_path / "b.png")
    for channels in (1, 3):
        values = read_image(tmp_path / "b.png", SIDE, channels)
        assert torch.equal(values, torch.from_numpy(255 * (RAMP > 0.5)).expand_as(values))
    Image.new("LAB", (SIDE, SIDE)).save(tmp_path / "c.tif")
    with pytest.raises(DataError, match=r"expected a Pillow mode that can be converted .* got LAB"):
        read_header(tmp_path / "c.tif", 3, convert=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_orientation(tmp_path, orientation, ending):
    """As a viewer shows it: the dark corner is at the top left, the grey one at the right."""
    upright = np.full((24, 40), 255, np.uint8)
    upright[:8, :8], upright[:8, -8:] = 0, 128
    # The stored image is what the orientation's operation turns into the upright one.
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
            5: np.transpose, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T,
            8: lambda a: np.rot90(a, -1)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    stored.save(tmp_path / f"a.{ending}", exif=exif, **({"quality": 95} if ending == "jpg" else {}))
    assert read_header(tmp_path / f"a.{ending}", 1, convert=False).size == (40, 24)
    # Squares in the middle are 24 wide: of the corners 0 to 8 and 32 to 40 nothing is left.
    Image.fromarray(np.ascontiguousarray(undo(upright[:, :24]))).save(
        tmp_path / f"b.{ending}", exif=exif
    )
    values = read_image(tmp_path / f"b.{ending}", 24, 1)[0]
    assert values[3, 3] < 30
    assert values[3, -3] > 220
    assert values[-3, 3] > 220


def test_the_first_of_several_frames(tmp_path):
    frames = [Image.new("L", (SIDE, SIDE), v) for v in (10, 200)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_header(tmp_path / name, 3, convert=True).frames
        assert read_image(tmp_path / name, SIDE, 3, convert=True)[0].unique().tolist() == [10]
    frames[0].save(tmp_path / "b.gif")
    assert not read_header(tmp_path / "b.gif", 3, convert=True).frames
    for name in ("x", "y"):
        (tmp_path / "task" / name).mkdir(parents=True)
        for k in range(3):
            (tmp_path / "task" / name / f"{k}.tif").write_bytes((tmp_path / "a.tif").read_bytes())
    notes = list(Folders([tmp_path / "task"]).notes())
    assert notes == [
        "task: 6 files with several frames, of which the first is read: x/0.tif, x/1.tif, "
        "x/2.tif, y/0.tif, y/1.tif and 1 more"
    ]


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG file with a given size in its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG", b"GIF89a", png(0, 0), png(0, 5), png(60_000, 60_000), b"%!PS-Adobe-3.0\n"],
    ids=["empty", "cut", "cut gif", "no pixels", "no columns", "bomb", "program"],
)  # fmt: skip
def test_files_that_are_no_images(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for action in (
        lambda: read_image(path, SIDE),
        lambda: by_threads(lambda p: read_header(p, 3, convert=True), [path], 1),
    ):
        with pytest.raises(
            DataError, match=r"a\.png: (can't be read as an image|expected at least one pixel)"
        ):
            action()


def test_large_images_are_legal(tmp_path, monkeypatch):
    """Images up to twice the size of Pillow's warning are read without it."""
    Image.new("L", (40, 40), 7).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (header,) = by_threads(
        lambda p: read_header(p, 1, convert=False), [tmp_path / "a.png"], workers=2
    )
    assert header.size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="can't be read as an image"):
        by_threads(lambda p: read_header(p, 1, convert=False), [tmp_path / "a.png"], workers=2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from((4, 8, 64)))
def test_any_size(tmp_path_factory, width, height, side):
    """The middle square is read, without the borders of long images."""
    path = tmp_path_factory.mktemp("size") / "a.png"
    least = min(width, height)
    pixels = np.full((height, width), 200, np.uint8)
    Image.fromarray(pixels).save(path)
    stored = stored_side(side)
    values = read_image(path, side, 1)
    assert values.shape == (1, stored, stored)
    assert values.unique().tolist() == [200]
    left, top = (width - least) // 2, (height - least) // 2
    inside = np.zeros((height, width), np.uint8)
    inside[top : top + least, left : left + least] = 255
    Image.fromarray(inside).save(path)
    middle = read_image(path, side, 1)[
        0, stored // 4 : -(stored // 4), stored // 4 : -(stored // 4)
    ]
    assert middle.numel() == 0 or int(middle.min()) > 200 or least < 4


def test_an_image_as_long_as_a_street(tmp_path):
    Image.new("L", (30_000, 1), 80).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 224, 1).unique().tolist() == [80]


def test_sizes_that_differ(tmp_path):
    for name in ("x", "y"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (SIDE, SIDE)).save(tmp_path / "a" / name / f"{k}.png")
    assert folder_task(tmp_path / "a").sample_shape == (3, SIDE, SIDE)
    Image.new("L", (9, 11)).save(tmp_path / "a" / "y" / "4.png")
    Image.new("L", (7, 30)).save(tmp_path / "a" / "y" / "5.png")
    with pytest.raises(DataError, match=r"got 3 sizes, from 7 x 30 to 9 x 11; .*--image-size N"):
        folder_task(tmp_path / "a")
    assert folder_task(tmp_path / "a", image_size=6).sample_shape == (3, 6, 6)
    for path in (tmp_path / "a").rglob("*.png"):
        Image.new("L", (16, 8)).save(path)
    with pytest.raises(DataError, match=r"expected square images .* got 16 x 8; .*--image-size N"):
        folder_task(tmp_path / "a")
    other = tmp_path / "b"
    for name in ("x", "y"):
        (other / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (4, 4)).save(other / name / f"{k}.png")
    assert Folders([other]).image_size == 4
    with pytest.raises(DataError, match="got 2 sizes, from 4 x 4 to 16 x 8"):
        Folders([tmp_path / "a", other]).image_size  # noqa: B018

"""Pixel depths: white stays white, black stays black, and what cannot be scaled is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from adadiff.data.pixels import flatten, is_grey

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def stored(array, kind, **options):
    """The image as it comes back from a file."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return Image.open(stream)


def png(width, height, depth, colour_type, rows, transparency):
    """A PNG file by hand: Pillow writes no 16-bit RGB."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"tRNS", transparency), (b"IDAT", data), (b"IEND", b"")]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)))


def grey16(dtype):
    return np.rint(RAMP * 65535).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda: stored(np.rint(RAMP * 255).astype(np.uint8), "PNG"), id="8-bit PNG"),
        pytest.param(lambda: stored(grey16("<u2"), "PNG"), id="16-bit PNG"),
        pytest.param(lambda: stored(grey16("<u2"), "TIFF"), id="16-bit TIFF"),
        pytest.param(lambda: stored(grey16(">u2"), "TIFF"), id="16-bit TIFF, big-endian"),
        pytest.param(lambda: stored(grey16("<u2"), "PPM"), id="16-bit PGM"),
        pytest.param(lambda: stored(grey16("<i4"), "TIFF"), id="32-bit TIFF"),
        pytest.param(lambda: stored(RAMP.astype(np.float32), "TIFF"), id="float TIFF"),
        pytest.param(lambda: stored(grey16("<u2"), "JPEG2000"), id="16-bit JPEG 2000"),
    ],
)
def test_a_ramp_is_the_same_in_every_depth(image, channels):
    assert is_grey(image())
    flat = np.asarray(flatten(image(), channels)).reshape(8, 8, channels)
    assert np.abs(flat - 255 * RAMP[:, :, None]).max() <= 1


def test_the_transparent_shade_of_16_bits_becomes_white():
    values = np.array([[0, 500], [501, 65535]], dtype=np.uint16)
    flat = flatten(stored(values, "PNG", transparency=500), 1)
    assert np.asarray(flat).tolist() == [[0, 255], [2, 255]]


def test_the_transparent_colour_of_16_bits_becomes_white():
    row = struct.pack(">6H", 1000, 1000, 1000, 65535, 0, 0)
    image = png(2, 1, 16, 2, [row], struct.pack(">3H", 1000, 1000, 1000))
    assert np.asarray(flatten(image, 3)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_tiff_files_in_which_zero_is_white_are_inverted():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    image = stored(np.array([[0, 65535]], dtype=np.uint16), "TIFF", tiffinfo=tags)
    assert image.tag_v2[262] == 0
    assert np.asarray(flatten(image, 1)).tolist() == [[255, 0]]


def test_tiff_files_of_12_bits_run_to_4095():
    # By hand, since Pillow writes no 12 bits; 273 is where the pixels lie, 279 how many bytes they are.
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    pixels = b"\x00\x0f\xff\x00"
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHIHxx", tag, 3, 1, tags[tag]) for tag in tags)
    image = Image.open(io.BytesIO(b"II*\0" + struct.pack("<I", 12) + pixels + directory + bytes(4)))
    assert np.asarray(flatten(image, 1)).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70000]], dtype=np.int32), "values are from 0 to 70000, not between 0 and 65535"),
        (np.array([[-5, 7]], dtype=np.int32), "from -5 to 7"),
        (np.array([[0, 255]], dtype=np.float32), "from 0 to 255, not between 0 and 1"),
        (np.array([[-0.5, 0.5]], dtype=np.float32), "from -0.5 to 0.5"),
        (np.array([[0, np.nan]], dtype=np.float32), "nan"),
        (np.array([[0, np.inf]], dtype=np.float32), "inf"),
    ],
)
def test_values_that_do_not_say_what_white_is_are_refused_by_name(photos, values, message):
    Image.fromarray(values).save(photos / "odd.tif")
    data = ImageData(DataConfig(source=str(photos), size=4))
    for use in (data.check, lambda: data[0]):
        with pytest.raises(InputError, match=rf"odd\.tif \(its .*{message}"):
            use()

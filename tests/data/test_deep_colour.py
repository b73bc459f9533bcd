"""Files of more than 8 bits that Pillow opens, compared with the values that were written."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddae_jax.data.array_images import ArrayImage
from ddae_jax.data.deep_colour import deep_file
from ddae_jax.data.images import CorruptImage, Decoding, EncodedImage


def png_of_16_bits(values, transparent=()):
    """Writes a PNG of 2 (grey and alpha), 3 or 4 channels by its specification."""
    height, width, channels = values.shape

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = chunk(b"tRNS", struct.pack(">HHH", *transparent)) if transparent else b""
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def tiff_of_16_bits(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", **options)
    return file.getvalue()


def noise(*shape, most=4096):
    values = np.random.default_rng(0).integers(0, most, shape).astype(np.uint16)
    values[0, 0] = most - 1
    return values


def decoded(encoded, channels=3, max_value=0.0):
    image = EncodedImage(lambda: encoded, "an image", Decoding(channels, max_value=max_value))
    return image.pixels()


def scaled(values, largest):
    return np.clip(np.round(values * (255 / largest)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "encode",
    [
        png_of_16_bits,
        lambda v: tiff_of_16_bits(v, byteorder="<"),
        lambda v: tiff_of_16_bits(v, byteorder=">", rowsperstrip=3),
        lambda v: tiff_of_16_bits(v, byteorder="<", compression="zlib"),
        lambda v: tiff_of_16_bits(v, byteorder=">", compression="zlib", rowsperstrip=3),
    ],
)
def test_colours_of_12_bits_keep_all_levels_that_8_bits_hold(encode):
    values = noise(9, 7, 3)
    encoded = encode(values)
    pixels = decoded(encoded)
    np.testing.assert_array_equal(pixels, scaled(values, 4095))
    assert len(np.unique(pixels)) > 100  # the upper 8 bits alone have 17
    np.testing.assert_array_equal(decoded(encoded, max_value=2000), scaled(values, 2000))


def test_all_16_bits_are_as_pillow_has_them_where_the_config_says_so():
    encoded = png_of_16_bits(noise(5, 6, 3, most=60_000))
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decoded(encoded, max_value=65535.0), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_pixels_are_white(channels):
    values = noise(6, 5, channels)
    alpha = np.linspace(0, 65535, 30).round().reshape(6, 5, 1)
    values[..., -1] = alpha[..., 0]
    values[0, 1, :-1] = 4095
    colours = scaled(values[..., :-1], 4095).astype(float)
    expected = np.broadcast_to(255 + (colours - 255) * (alpha / 65535), (6, 5, 3))
    np.testing.assert_array_equal(decoded(png_of_16_bits(values)), np.round(expected))


@pytest.mark.parametrize("max_value", [4095.0, 40_000.0, 65535.0])
def test_one_colour_may_be_transparent(max_value):
    values = noise(4, 4, 3)
    values[1, 2] = values[3, 3] = 77
    pixels = decoded(png_of_16_bits(values, transparent=(77, 77, 77)), max_value=max_value)
    expected = scaled(values, max_value)
    expected[1, 2] = expected[3, 3] = 255
    np.testing.assert_array_equal(pixels, expected)


def test_grey_is_made_of_scaled_colours():
    values = noise(4, 4, 3)
    grey = Image.fromarray(scaled(values, 4095)).convert("L")
    np.testing.assert_array_equal(
        decoded(png_of_16_bits(values), channels=1)[..., 0], np.asarray(grey)
    )


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "TIFF") for mode in ("L", "RGB", "RGBA", "CMYK")),
        *((mode, "PPM") for mode in ("1", "L", "RGB")),
        *((mode, "JPEG2000") for mode in ("L", "LA", "RGB", "RGBA")),
        *((mode, "SGI") for mode in ("L", "RGB", "RGBA")),
    ],
)
def test_images_of_8_bits_are_left_to_pillow(mode, format):
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, format)
    assert deep_file(Image.open(file), file.getvalue(), lambda: Image.open(file)) is None


def test_all_bits_are_read_after_the_size_was_asked_for():
    values = noise(4, 6, 3)
    encoded = png_of_16_bits(values)
    image = EncodedImage(lambda: encoded, "an image", Decoding())
    assert image.size == (6, 4)
    for _ in range(2):
        np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))


def test_bands_that_are_channels_keep_all_bits():
    values = noise(5, 4, 4)
    encoded = png_of_16_bits(values)
    image = ArrayImage(lambda: encoded, "an image", Decoding(4, max_value=4095))
    np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))


def test_grey_and_opacity_are_two_channels_as_those_of_8_bits_are():
    values = noise(5, 4, 2)
    encoded = png_of_16_bits(values)
    image = ArrayImage(lambda: encoded, "an image", Decoding(2, max_value=4095))
    np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))


def netpbm(values, largest, is_plain=False):
    """Writes a PGM or PPM file of 2 bytes per value, or of numbers as text."""
    magic = {(1, False): "P5", (3, False): "P6", (1, True): "P2", (3, True): "P3"}
    height, width, channels = values.shape
    header = f"{magic[channels, is_plain]}\n# of a test\n{width} {height}\n{largest}\n"
    words = "# and more\n" + " ".join(map(str, values.ravel())) + "\n"
    return header.encode() + (words.encode() if is_plain else values.astype(">u2").tobytes())


class TestNetpbm:
    @pytest.mark.parametrize("is_plain", [False, True])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        ("largest", "max_value", "white"),
        [
            (4095, 0.0, 4095),
            (4095, 4095.0, 4095),
            (4095, 2000.0, 2000),
            (4095, 65535.0, 4095),  # as Pillow scales it, and as older runs did
            (65535, 0.0, 2047),
            (65535, 2047.0, 2047),
            (65535, 65535.0, 65535),
            (1000, 0.0, 1000),
        ],
    )
    def test_values_are_those_of_the_file(self, largest, max_value, white, channels, is_plain):
        values = noise(7, 5, channels, most=1001 if largest == 1000 else 2001)
        pixels = decoded(netpbm(values, largest, is_plain), max_value=max_value)
        np.testing.assert_array_equal(pixels, np.broadcast_to(scaled(values, white), (7, 5, 3)))

    @pytest.mark.parametrize("is_plain", [False, True])
    def test_missing_values_are_counted_as_a_truncated_file(self, is_plain):
        encoded = netpbm(np.full((3, 4, 1), 300, np.uint16), 4095, is_plain)
        with pytest.raises(CorruptImage, match="truncated: 10 of 12 values are there") as raised:
            decoded(encoded[: -8 if is_plain else -3])
        assert raised.value.kind == "truncated"

    @pytest.mark.parametrize("word", [b"70000", b"-3", b"many"])
    def test_words_that_are_no_values_are_refused(self, word):
        encoded = netpbm(np.full((1, 2, 1), 300, np.uint16), 4095, True)
        with pytest.raises(CorruptImage, match="a value is no number from 0 to 65535"):
            decoded(encoded.replace(b"300 ", word + b" "))


def jpeg2000(values, bits, **options):
    """Writes a lossless codestream of grey values of so many bits, by changing one of 16 bits.

    JPEG 2000 stores the differences of values from the middle of their range.
    """
    file = io.BytesIO()
    shifted = (values.astype(int) - 2 ** (bits - 1) + 2**15).astype(np.uint16)
    Image.fromarray(shifted).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    content = bytearray(file.getvalue())
    at = content.find(b"\xff\x4f\xff\x51") + 42
    assert content[at] == 15
    content[at] = bits - 1
    return bytes(content)


@pytest.mark.parametrize(
    ("bits", "max_value", "white"),
    [
        (12, 0.0, 4095),
        (12, 4095.0, 4095),
        (12, 2000.0, 2000),
        (12, 65535.0, 4095),
        (10, 1023.0, 1023),
        (16, 0.0, 1023),
        (16, 2000.0, 2000),
    ],
)
def test_jpeg_2000_has_the_values_of_its_bits(bits, max_value, white):
    values = noise(32, 40, most=1000)
    pixels = decoded(jpeg2000(values, bits), 1, max_value)[..., 0]
    np.testing.assert_array_equal(pixels, scaled(values, white))


def sgi_of_16_bits(values):
    height, width, channels = values.shape
    header = struct.pack(">hbbHHHH", 474, 0, 2, 3, width, height, channels).ljust(512, b"\0")
    return header + np.moveaxis(values[::-1], -1, 0).astype(">u2").tobytes()


def test_sgi_is_scaled_by_its_upper_8_bits():
    values = noise(5, 4, 3)
    pixels = decoded(sgi_of_16_bits(values), max_value=4095.0).astype(int)
    assert abs(pixels - scaled(values, 4095)).max() <= 16  # Pillow gives 16 levels
    values = noise(5, 4, 3, most=65536)
    for max_value in (0.0, 65535.0):
        pixels = decoded(sgi_of_16_bits(values), max_value=max_value)
        np.testing.assert_array_equal(pixels, values >> 8)

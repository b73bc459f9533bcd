"""Colours of 16 bits, against the values that were written."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddae_jax.data.deep_colour import has_deep_colours
from ddae_jax.data.images import Decoding, EncodedImage
from ddae_jax.data.stacks import StackedImage


def png_of_16_bits(values, transparent=()):
    """A PNG of 2 (grey and alpha), 3 or 4 channels, by its specification."""
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
    found = decoded(encoded)
    np.testing.assert_array_equal(found, scaled(values, 4095))
    assert len(np.unique(found)) > 100  # of the 17 that the upper 8 bits have
    np.testing.assert_array_equal(decoded(encoded, max_value=2000), scaled(values, 2000))


def test_all_16_bits_are_as_pillow_has_them_where_the_config_says_so():
    encoded = png_of_16_bits(noise(5, 6, 3, most=60_000))
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decoded(encoded, max_value=65535.0), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_transparent_is_white(channels):
    values = noise(6, 5, channels)
    alpha = np.linspace(0, 65535, 30).round().reshape(6, 5, 1)
    values[..., -1] = alpha[..., 0]
    values[0, 1, :-1] = 4095
    colours = scaled(values[..., :-1], 4095).astype(float)
    expected = np.broadcast_to(255 + (colours - 255) * (alpha / 65535), (6, 5, 3))
    np.testing.assert_array_equal(decoded(png_of_16_bits(values)), np.round(expected))


def test_one_colour_may_be_transparent():
    values = noise(4, 4, 3)
    values[1, 2] = values[3, 3] = 77
    found = decoded(png_of_16_bits(values, transparent=(77, 77, 77)))
    expected = scaled(values, 4095)
    expected[1, 2] = expected[3, 3] = 255
    np.testing.assert_array_equal(found, expected)


def test_grey_is_made_of_scaled_colours():
    values = noise(4, 4, 3)
    grey = Image.fromarray(scaled(values, 4095)).convert("L")
    np.testing.assert_array_equal(
        decoded(png_of_16_bits(values), channels=1)[..., 0], np.asarray(grey)
    )


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_other_images_have_none(mode):
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, "TIFF" if mode == "CMYK" else "PNG")
    assert not has_deep_colours(Image.open(file))


def test_they_are_found_after_the_size_was_asked_for():
    values = noise(4, 6, 3)
    encoded = png_of_16_bits(values)
    image = EncodedImage(lambda: encoded, "an image", Decoding())
    assert image.size == (6, 4)
    for _ in range(2):
        np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))


def test_bands_that_are_channels_keep_them_too():
    values = noise(5, 4, 4)
    encoded = png_of_16_bits(values)
    image = StackedImage(lambda: encoded, "an image", Decoding(4, max_value=4095))
    np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))

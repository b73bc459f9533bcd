"""TIFF files of every bit depth, compared with the values that were written."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddae_jax.data.array_images import ArrayImage
from ddae_jax.data.images import CAUSES, CorruptImage, Decoding, EncodedImage


def tiff(values, photometric="rgb", **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue()


def planar(values, **options):
    return tiff(np.moveaxis(values, -1, 0), planarconfig="separate", **options)


def opened(encoded, channels=3, max_value=0.0):
    return EncodedImage(lambda: encoded, "an image", Decoding(channels, max_value=max_value))


def decoded(encoded, channels=3, max_value=0.0):
    return opened(encoded, channels, max_value).pixels()


def noise(*shape, most=4096, dtype=np.uint16):
    values = np.random.default_rng(0).integers(0, most, shape)
    values[0, 0] = most - 1
    return values.astype(dtype)


def scaled(values, largest):
    share = np.asarray(values, np.float64) / largest
    return np.clip(np.round(share * 255), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"rowsperstrip": 3}, {"tile": (16, 16)}]
)
def test_colours_in_planes_keep_all_levels(options, byteorder):
    values = noise(21, 17, 3)
    encoded = planar(values, byteorder=byteorder, **options)
    image = opened(encoded)
    assert image.size == (17, 21)
    np.testing.assert_array_equal(image.pixels(), scaled(values, 4095))
    np.testing.assert_array_equal(decoded(encoded, max_value=2000.0), scaled(values, 2000))
    full = noise(21, 17, 3, most=65536)
    np.testing.assert_array_equal(
        decoded(planar(full, byteorder=byteorder, **options), max_value=65535.0),
        scaled(full, 65535),
    )


@pytest.mark.parametrize("write", [tiff, planar])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_channel_is_opacity_if_the_file_says_so(write, kind):
    values = np.empty((2, 2, 4), np.uint16)
    values[...] = (1000, 2000, 3000, 32768)
    opacity = 32768 / 65535
    if kind == "unspecified":
        expected = scaled(values[..., :3], 4095)
    else:
        colours = values[..., :3] / (opacity if kind == "assocalpha" else 1)
        expected = np.round(255 + (scaled(colours.round(), 4095) - 255.0) * opacity)
    pixels = decoded(write(values, extrasamples=[kind]), max_value=4095.0)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_size_are_read(dtype, num_channels, compression, byteorder):
    values = (noise(9, 7, num_channels) / 4095).astype(dtype)
    options = {"byteorder": byteorder, "compression": compression}
    if num_channels == 1:
        encoded = tiff(values[..., 0], "minisblack", **options)
    else:
        encoded = tiff(values, **options)
    expected = np.broadcast_to(scaled(values, 1), (9, 7, 3))
    np.testing.assert_array_equal(decoded(encoded), expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_unsigned_numbers_of_32_bits_do_not_wrap(compression, byteorder):
    values = np.array([[0, 2**31 - 1, 2**31 + 10, 2**32 - 1]], np.uint32)
    encoded = tiff(values, "minisblack", compression=compression, byteorder=byteorder)
    for max_value in (0.0, 2.0**32 - 1):
        pixels = decoded(encoded, 1, max_value)[..., 0]
        np.testing.assert_array_equal(pixels, scaled(values, 2**32 - 1))
    colours = np.repeat(values[..., None], 3, axis=-1)
    pixels = decoded(tiff(colours, compression=compression, byteorder=byteorder))
    np.testing.assert_array_equal(pixels, scaled(colours, 2**32 - 1))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_signed_numbers_stay_signed(dtype, compression, byteorder):
    values = np.array([[-2000, 0, 2095]], dtype)
    encoded = tiff(values, "minisblack", compression=compression, byteorder=byteorder)
    expected = np.round((values + 2000) / 4095 * 255)
    np.testing.assert_array_equal(decoded(encoded, 1)[..., 0], expected)


@pytest.mark.parametrize(("max_value", "white"), [(0.0, 4095), (1500.0, 1500), (65535.0, 4095)])
def test_the_header_of_12_bits_says_what_is_white(max_value, white):
    values = [0, 500, 1000, 1500]
    bits = "".join(f"{value:012b}" for value in values)
    packed = np.array([[int(bits[at : at + 8], 2) for at in range(0, 48, 8)]], np.uint8)
    encoded = bytearray(tiff(packed, "minisblack", byteorder="<"))
    for tag, kind, now, then in ((256, 4, 6, 4), (258, 3, 8, 12)):
        at = encoded.index(struct.pack("<HHIH", tag, kind, 1, now)) + 8
        encoded[at : at + 2] = struct.pack("<H", then)
    pixels = decoded(bytes(encoded), 1, max_value)[0, :, 0]
    np.testing.assert_array_equal(pixels, scaled(values, white))


def test_grey_and_opacity_of_16_bits_are_read():
    values = np.array([[[4095, 65535], [4095, 0], [0, 32768]]], np.uint16)
    encoded = tiff(values, "minisblack", extrasamples=["unassalpha"], planarconfig="contig")
    assert decoded(encoded, 1, 4095.0)[0, :, 0].tolist() == [255, 255, 127]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_0_becomes_white_where_the_file_says_so(compression, dtype, byteorder):
    values = np.array([[0, 1000, 4000]], dtype)
    encoded = tiff(values, "miniswhite", compression=compression, byteorder=byteorder)
    assert decoded(encoded, 1, 4000.0)[0, :, 0].tolist() == [255, 191, 0]


@pytest.mark.parametrize("write", [tiff, planar])
def test_inks_of_16_bits_are_scaled_too(write):
    values = np.empty((2, 2, 4), np.uint16)
    values[...] = (0, 4095, 2000, 0)
    inks = Image.new("CMYK", (2, 2), tuple(scaled(values, 4095)[0, 0].tolist()))
    pixels = decoded(write(values, photometric="separated"), max_value=4095.0)
    np.testing.assert_array_equal(pixels, np.asarray(inks.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_three_channels_that_are_called_grey_are_colours(dtype):
    values = noise(5, 6, 3, most=256, dtype=dtype)
    encoded = tiff(values, "minisblack", planarconfig="contig")
    np.testing.assert_array_equal(decoded(encoded), values)


def test_the_number_that_gdal_names_as_no_value_is_black():
    values = np.array([[0, 2000, 4095, 65535]], np.uint16)
    tags = [(42113, 2, 0, "65535", True)]
    grey = tiff(values, "minisblack", extratags=tags)
    assert decoded(grey, 1)[0, :, 0].tolist() == [0, 125, 255, 0]
    colours = planar(np.repeat(values[..., None], 3, axis=-1), extratags=tags)
    assert decoded(colours)[0, :, 0].tolist() == [0, 125, 255, 0]
    bands = tiff(np.repeat(values[None], 5, axis=0), "minisblack", extratags=tags)
    stack = ArrayImage(lambda: bands, "an image", Decoding(5))
    assert stack.pixels()[0, :, 0].tolist() == [0, 125, 255, 0]


@pytest.mark.parametrize(
    "write",
    [
        lambda pixels, **options: tiff(pixels, **options),
        lambda pixels, **options: tiff(pixels, compression="zlib", **options),
        lambda pixels, **options: tiff(pixels.astype(np.uint16) * 257, **options),
        lambda pixels, **options: planar(pixels.astype(np.uint16) * 257, **options),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_with_an_orientation_are_turned_upright_once(orientation, write):
    upright = noise(4, 6, 3, most=256, dtype=np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    encoded = write(np.ascontiguousarray(stored), extratags=[(274, "H", 1, orientation, True)])
    image = opened(encoded)
    for _ in range(2):
        assert image.size == (6, 4)
        assert image.is_turned == (orientation > 1)
        np.testing.assert_array_equal(image.pixels(), upright)


def reason(encoded, kind, **options):
    with pytest.raises(CorruptImage) as raised:
        decoded(encoded, **options)
    assert raised.value.kind == kind
    assert kind in CAUSES
    return str(raised.value).removeprefix("an image cannot be decoded: ")


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("encoded", "message"),
        [
            (planar(noise(4, 4, 3)), "TIFF files of more than 8 bits in separate planes need"),
            (tiff(noise(4, 4, 3) / 4095), "TIFF files of a kind that Pillow does not know need"),
        ],
    )
    def test_without_tifffile_the_error_says_what_to_install(self, encoded, message, monkeypatch):
        monkeypatch.setitem(sys.modules, "tifffile", None)
        assert reason(encoded, "of a kind that needs another package") == (
            f"{message} a package that is not here: pip install tifffile"
        )

    def test_without_tifffile_all_others_are_read(self, monkeypatch):
        values = noise(4, 4, 3)
        files = [tiff(values), tiff(values[..., 0], "minisblack"), planar(values.astype(np.uint8))]
        monkeypatch.setitem(sys.modules, "tifffile", None)
        np.testing.assert_array_equal(decoded(files[0]), scaled(values, 4095))
        np.testing.assert_array_equal(decoded(files[1], 1)[..., 0], scaled(values[..., 0], 4095))
        np.testing.assert_array_equal(decoded(files[2]), values.astype(np.uint8))

    def test_other_kinds_are_named(self):
        kind = "of a kind that is not read"
        assert reason(tiff(np.zeros((4, 4), np.complex64), None), kind) == (
            "it holds values of type complex64; only numbers are read, of one image"
        )
        assert reason(tiff(noise(4, 4, 3), "ycbcr"), kind).startswith(
            "its colours are of the kind YCBCR with values of type uint16; grey, RGB and CMYK are"
        )
        bands = tiff(noise(4, 4, 5), "minisblack", planarconfig="contig")
        assert reason(bands, kind) == (
            "it has 5 channels; with data.channels=5 they are read as such"
        )

    def test_an_unknown_compression_is_named(self):
        encoded = bytearray(tiff(noise(4, 4, 3)))
        tag = encoded.index(struct.pack("<HHIH", 259, 3, 1, 1))
        encoded[tag + 8 : tag + 10] = struct.pack("<H", 34712)
        message = reason(bytes(encoded), "of a kind that needs another package")
        assert "JPEG2000" in message
        assert message.endswith("requires the 'imagecodecs' package: pip install imagecodecs")
        encoded[tag + 8 : tag + 10] = struct.pack("<H", 50002)
        message = reason(bytes(encoded), "of a kind that is not read")
        assert message == "its compression JPEGXL is not read; deflate, LZW, ZSTD and JPEG are"

    @pytest.mark.parametrize("content", [b"II*\0 none", tiff(noise(4, 4, 3))[:8]])
    def test_damaged_files_are_truncated_images(self, content):
        assert reason(content, "truncated") == (
            "it breaks off before its end: it begins as a TIFF file, but holds no image"
        )

    def test_more_pixels_than_the_limit_are_not_decoded(self):
        encoded = planar(noise(300, 200, 3))
        image = EncodedImage(lambda: encoded, "an image", Decoding(max_pixels=59_999))
        with pytest.raises(CorruptImage, match=r"it has 200 x 300 pixels, more than data\.max_pi"):
            image.pixels()

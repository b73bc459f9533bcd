"""Decoding image files of any kind, and the errors for those that cannot be decoded."""

import errno
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data import disks, warn_once
from ddae_jax.data.disks import ReadFailed
from ddae_jax.data.header_sizes import webp_size
from ddae_jax.data.images import CAUSES, CorruptImage
from ddae_jax.data.sources import make_source

RED, GREEN = (200, 30, 40), (20, 180, 60)


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def decoded(path: Path, channels: int = 3) -> np.ndarray:
    return make_source("folder", data_dir=str(path.parent), channels=channels)[0]["image"]


class TestDecoding:
    """Every kind of image becomes upright uint8 pixels of the asked number of channels."""

    def test_greyscale_becomes_rgb_and_rgb_becomes_grey(self, tmp_path):
        save(Image.new("L", (3, 2), 77), tmp_path / "grey" / "a.png")
        assert np.all(decoded(tmp_path / "grey" / "a.png") == 77)
        save(Image.new("RGB", (3, 2), (77, 77, 77)), tmp_path / "rgb" / "a.jpg")
        image = decoded(tmp_path / "rgb" / "a.jpg", channels=1)
        assert image.shape == (2, 3, 1)
        assert np.all(image == 77)

    def test_one_bit_image_is_black_and_white(self, tmp_path):
        save(Image.new("1", (3, 2), 1), tmp_path / "a.png")
        assert np.all(decoded(tmp_path / "a.png") == 255)

    def test_cmyk_jpeg_keeps_its_colour(self, tmp_path):
        save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
        red, green, blue = decoded(tmp_path / "a.jpg")[4, 4].astype(int)
        assert red > 240
        assert max(green, blue) < 15

    def test_alpha_is_composited_on_white(self, tmp_path):
        save(Image.new("RGBA", (3, 2), (0, 0, 0, 0)), tmp_path / "clear" / "a.png")
        assert np.all(decoded(tmp_path / "clear" / "a.png") == 255)
        save(Image.new("LA", (3, 2), (0, 51)), tmp_path / "half" / "a.png")
        np.testing.assert_allclose(decoded(tmp_path / "half" / "a.png"), 255 * 0.8, atol=1)

    def test_palette_with_and_without_transparency(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *GREEN])
        image.putdata([0, 1])
        save(image, tmp_path / "plain" / "a.png")
        np.testing.assert_array_equal(decoded(tmp_path / "plain" / "a.png")[0], [RED, GREEN])
        save(image, tmp_path / "clear" / "a.png", transparency=0)
        expected = [(255, 255, 255), GREEN]
        np.testing.assert_array_equal(decoded(tmp_path / "clear" / "a.png")[0], expected)

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        levels = np.array([[0, 257 * 100, 65535]], np.uint16)
        save(Image.fromarray(levels), tmp_path / "a.png")
        np.testing.assert_array_equal(
            decoded(tmp_path / "a.png", channels=1)[0, :, 0], [0, 100, 255]
        )

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_turns_the_image_upright(self, tmp_path, orientation, suffix):
        upright = Image.new("RGB", (32, 16), "black")
        upright.paste("white", (0, 0, 16, 8))  # the upper left quarter
        # Stored turned the other way than a viewer turns it.
        stored = {
            1: lambda i: i,
            2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
            4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
            6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
            7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
            8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
        }[orientation](upright)
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(stored, tmp_path / f"a.{suffix}", exif=exif, quality=95)
        source = make_source("folder", data_dir=str(tmp_path))
        assert source.image_size == (16, 32)
        np.testing.assert_allclose(source[0]["image"], np.asarray(upright), atol=40)

    def test_one_pixel_wide(self, tmp_path):
        save(Image.new("RGB", (1, 50), RED), tmp_path / "a.png")
        assert decoded(tmp_path / "a.png").shape == (50, 1, 3)

    def test_reduced_decoding_shrinks_jpeg_and_nothing_else(self, tmp_path):
        save(Image.new("RGB", (64, 48), RED), tmp_path / "jpeg" / "a.jpg")
        save(Image.new("RGB", (64, 48), RED), tmp_path / "png" / "a.png")
        jpeg = make_source("folder", data_dir=str(tmp_path / "jpeg")).open([0])[0][0]
        assert [jpeg.decode(r).size for r in (1, 2, 3, 4, 100)] == [
            (64, 48),
            (32, 24),
            (32, 24),
            (16, 12),
            (8, 6),
        ]
        assert jpeg.size == (64, 48)
        png = make_source("folder", data_dir=str(tmp_path / "png")).open([0])[0][0]
        assert png.decode(4).size == (64, 48)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    @pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
    def test_corrupt_bytes_are_named(self, tmp_path, suffix, damage):
        path = tmp_path / f"broken.{suffix}"
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        save(Image.fromarray(noise), path)
        whole = path.read_bytes()
        damaged = {"empty": b"", "text": b"<html>404</html>", "truncated": whole[: len(whole) // 2]}
        path.write_bytes(damaged[damage])
        with pytest.raises(CorruptImage, match=rf"broken\.{suffix} cannot be decoded: \S"):
            decoded(path)

    def test_failing_disk_is_no_corrupt_image(self, tmp_path, monkeypatch):
        save(Image.new("RGB", (2, 2)), tmp_path / "a.png")
        source = make_source("folder", data_dir=str(tmp_path))

        def fail(path, *_):
            raise OSError(errno.EIO, "Input/output error", path)

        monkeypatch.setattr(disks, "_WAITS_S", (0.0,))
        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(ReadFailed, match=r"a\.png cannot be read: Input/output error"):
            source[0]

    @pytest.mark.parametrize(
        ("levels", "expected"),
        [
            ([0, 1024, 4095], [0, 64, 255]),  # 12 bits
            ([0, 512, 1023], [0, 128, 255]),  # 10 bits
            ([0, 100, 200], [0, 100, 200]),  # 8 bits that were written as 16
            ([0, 4096, 40_000], [0, 16, 156]),  # 16 bits
        ],
    )
    def test_sixteen_bits_are_scaled_by_the_bits_that_are_used(self, tmp_path, levels, expected):
        save(Image.fromarray(np.array([levels], np.uint16)), tmp_path / "a.png")
        pixels = decoded(tmp_path / "a.png", channels=1)[0, :, 0]
        np.testing.assert_array_equal(pixels, expected)

    @pytest.mark.parametrize(
        ("values", "dtype", "expected"),
        [
            ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
            ([0.0, 51.0, 204.0], np.float32, [0, 51, 204]),
            ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
            ([0.0, 1000.0, 2000.0], np.float32, [0, 128, 255]),
            ([0, 2**19, 2**20 - 1], np.int32, [0, 128, 255]),
            ([-100, 10, 100], np.int32, [0, 140, 255]),
            ([5.0, 5.0, 5.0], np.float32, [5, 5, 5]),
            ([0.0, np.nan, 1.0], np.float32, [0, 0, 255]),
        ],
    )
    def test_floats_and_whole_numbers_of_32_bits_are_scaled(
        self, tmp_path, values, dtype, expected
    ):
        save(Image.fromarray(np.array([values], dtype)), tmp_path / "a.tiff")
        pixels = decoded(tmp_path / "a.tiff", channels=1)[0, :, 0]
        np.testing.assert_array_equal(pixels, expected)

    def test_the_value_that_becomes_white_may_be_given_for_all(self, tmp_path):
        for number, levels in enumerate([[0, 100, 1000], [0, 2000, 9000]]):
            path = tmp_path / f"{number}.png"
            save(Image.fromarray(np.array([levels], np.uint16)), path)
        source = make_source("folder", data_dir=str(tmp_path), channels=1, max_value=4000)
        assert source[0]["image"][0, :, 0].tolist() == [0, 6, 64]
        assert source[1]["image"][0, :, 0].tolist() == [0, 128, 255]

    def test_scaling_is_warned_of_once(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(warn_once, "_given", set())
        path = tmp_path / "a.png"
        save(Image.fromarray(np.array([[0, 4000]], np.uint16)), path)
        decoded(path)
        decoded(path)
        (record,) = caplog.records
        assert f"{path} from 0 to 4095. data.max_value sets" in record.message

    def test_a_transparent_level_of_sixteen_bits_is_white(self, tmp_path):
        image = Image.fromarray(np.array([[7, 1024, 4095]], np.uint16))
        save(image, tmp_path / "a.png", transparency=7)
        assert decoded(tmp_path / "a.png", channels=1)[0, :, 0].tolist() == [255, 64, 255]

    def test_metadata_that_are_broken_do_not_cost_the_image(self, tmp_path):
        path = tmp_path / "a.png"
        save(Image.new("RGB", (3, 2), RED), path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff no tags")
        assert tuple(decoded(path)[0, 0]) == RED

    @pytest.mark.parametrize("becomes", ["gone", "a folder", "a link to itself"])
    def test_file_that_alone_cannot_be_read_is_a_corrupt_image(self, tmp_path, becomes):
        path = tmp_path / "a.png"
        save(Image.new("RGB", (2, 2)), path)
        source = make_source("folder", data_dir=str(tmp_path))
        path.unlink()
        if becomes == "a folder":
            path.mkdir()
        elif becomes == "a link to itself":
            path.symlink_to(path)
        with pytest.raises(CorruptImage, match=r"a\.png cannot be read: "):
            source[0]


def kind_of(path: Path, **options) -> str:
    """Returns why the image in this folder cannot be decoded."""
    with pytest.raises(CorruptImage) as caught:
        make_source("folder", data_dir=str(path.parent), **options)[0]
    assert str(path) in str(caught.value)
    assert caught.value.kind in CAUSES
    return caught.value.kind


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def jpeg_of_12_bits() -> bytes:
    """Writes a file with such a header, which no build of Pillow decodes."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    content[content.index(b"\xff\xc0") + 4] = 12
    return bytes(content)


def huge_webp(side: int) -> bytes:
    """Writes a WebP file of a few bytes, whose header claims a canvas of any size."""
    canvas = (side - 1).to_bytes(3, "little") * 2
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


class TestHostile:
    """Files that claim to be huge, or of another kind: they cost neither memory nor time."""

    def test_more_pixels_than_the_limit_are_not_decoded(self, tmp_path):
        save(Image.new("1", (300, 200)), tmp_path / "a.png")
        kind = kind_of(tmp_path / "a.png", max_pixels=59_999)
        assert kind == "more pixels than data.max_pixels"
        make_source("folder", data_dir=str(tmp_path), max_pixels=60_000)[0]

    @pytest.mark.parametrize(
        ("options", "size"),
        [({"lossless": True}, (301, 40)), ({"quality": 50}, (40, 301)), ({"exif": b"x"}, (17, 5))],
    )
    def test_the_size_of_a_webp_is_read_off_its_header(self, tmp_path, options, size):
        save(Image.new("RGB", size, RED), tmp_path / "a.webp", **options)
        assert webp_size((tmp_path / "a.webp").read_bytes()) == size
        assert webp_size(b"RIFF") is None
        assert webp_size(b"\x89PNG\r\n\x1a\n" + bytes(40)) is None

    def test_a_canvas_of_a_few_bytes_takes_no_memory(self, tmp_path):
        (tmp_path / "a.webp").write_bytes(huge_webp(16_383))
        program = (
            "import resource, sys; from ddae_jax.data.sources import make_source\n"
            "source = make_source('folder', data_dir=sys.argv[1])\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: source[0]\n"
            "except ValueError as error: print(error.kind)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        kind, more = done.stdout.splitlines()
        assert kind == "more pixels than data.max_pixels"
        assert int(more) < 50 * 1024  # KiB; the canvas would take a GiB

    def test_a_huge_file_is_not_read(self, tmp_path):
        path = tmp_path / "a.jpg"
        with open(path, "wb") as file:
            file.truncate(2**31)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert kind_of(path) == "more bytes than data.max_pixels allows"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        path = tmp_path / "a.png"
        save(Image.new("RGB", (2, 2)), path)
        source = make_source("folder", data_dir=str(tmp_path))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(CorruptImage) as caught:
            source[0]
        assert caught.value.kind == "no regular file"

    @pytest.mark.parametrize(
        ("content", "kind", "reason"),
        [
            (b"", "no image", "the file is empty"),
            (b"<html>404</html>", "no image", "it is of none of the formats that are read (JPEG, "),
            (
                jpeg_of_12_bits(),
                "damaged, or of a kind that is not read",
                "it begins as a JPEG file, but Pillow does not read it: cannot handle 12-bit",
            ),
            (
                b"\x89PNG\r\n\x1a\n1234",
                "truncated",
                "it breaks off before its end: it begins as a PNG file, but Pillow does not read",
            ),
        ],
    )
    def test_files_that_are_no_images_say_why(self, tmp_path, content, kind, reason):
        (tmp_path / "a.png").write_bytes(content)
        assert kind_of(tmp_path / "a.png") == kind
        with pytest.raises(CorruptImage) as caught:
            make_source("folder", data_dir=str(tmp_path))[0]
        assert f"a.png cannot be decoded: {reason}" in str(caught.value)
        assert "_io" not in str(caught.value)

    def test_the_cause_is_told_apart(self, tmp_path):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        whole = tmp_path / "whole.png"
        save(noise, whole)
        content = whole.read_bytes()
        text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70 * 2**20)))
        cases = {
            "no image": b"<html>404</html>",
            "truncated": content[: len(content) // 2],
            "metadata too large": content[:33] + text + content[33:],
        }
        for number, (kind, damaged) in enumerate(cases.items()):
            path = tmp_path / str(number) / "a.png"
            path.parent.mkdir()
            path.write_bytes(damaged)
            assert kind_of(path) == kind

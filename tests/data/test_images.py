"""How any image file is decoded, and what is said where it cannot be."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data import sources
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.sources import make_source

RED, GREEN = (200, 30, 40), (20, 180, 60)


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def decoded(path: Path, channels: int = 3) -> np.ndarray:
    return make_source("folder", data_dir=str(path.parent), channels=channels)[0]["image"]


class TestDecoding:
    """Every kind of image becomes upright uint8 of the asked channels."""

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
        # The inverse of what a viewer does.
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

        def fail(path):
            raise OSError(errno.EIO, "Input/output error", path)

        monkeypatch.setattr(sources, "read_bytes", fail)
        with pytest.raises(OSError, match=r"Input/output error.*a\.png"):
            source[0]

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

"""Images of any number of channels: read against NumPy, resized against Pillow."""

import logging
import pickle
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddae_jax.data import warn_once
from ddae_jax.data.augment import Augmentation, crop_and_resize, random_resized_crop
from ddae_jax.data.channels import Channels
from ddae_jax.data.images import CAUSES, CorruptImage
from ddae_jax.data.pixel_statistics import pixel_statistics
from ddae_jax.data.sources import make_source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.data.view import USUAL_VIEW


def noise(*shape, dtype=np.uint8, most=256):
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def source_of(folder, channels=5, **options):
    return make_source("folder", data_dir=str(folder), channels=channels, **options)


class TestReading:
    @pytest.mark.parametrize("suffix", ["npy", "npz", "tif"])
    @pytest.mark.parametrize("is_first", [False, True])
    def test_values_of_8_bits_are_those_of_the_file(self, tmp_path, suffix, is_first):
        values = noise(6, 7, 5)
        stored = np.moveaxis(values, -1, 0) if is_first else values
        if suffix == "npy":
            np.save(tmp_path / "a.npy", stored)
        elif suffix == "npz":
            np.savez_compressed(tmp_path / "a.npz", image=stored)
        else:
            tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
        source = source_of(tmp_path)
        assert source.channels == 5
        np.testing.assert_array_equal(source[0]["image"], values)
        image, _ = source.open([0])[0]
        assert image.size == (7, 6)
        assert source.image_size == (6, 7)

    def test_more_bits_are_scaled_alike_in_all_channels(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(warn_once, "_given", set())
        values = noise(4, 4, 5, dtype=np.uint16, most=10_001)
        values[0, 0, 2] = 10_000
        np.save(tmp_path / "a.npy", values)
        given = source_of(tmp_path, max_value=10_000.0)[0]["image"]
        np.testing.assert_array_equal(given, np.round(values / 10_000 * 255).astype(np.uint8))
        by_itself = source_of(tmp_path)[0][
            "image"
        ]  # scaled by 14 bits, which hold the largest value
        np.testing.assert_array_equal(by_itself, np.round(values / 16_383 * 255).astype(np.uint8))
        assert "data.max_value sets what becomes white" in caplog.text

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_values_that_are_no_numbers_are_black(self, tmp_path, dtype):
        values = np.full((2, 2, 5), 0.5, dtype)
        values[0, 0, 0] = np.nan
        np.save(tmp_path / "a.npy", values)
        pixels = source_of(tmp_path)[0]["image"]
        assert (pixels[0, 0, 0], pixels[1, 1, 1]) == (0, 128)

    def test_pages_of_tiff_are_channels(self, tmp_path):
        values = noise(12, 5, 6, dtype=np.uint16, most=4096)
        with tifffile.TiffWriter(tmp_path / "a.tiff") as writer:
            for page in values:
                writer.write(page, contiguous=True)
        pixels = source_of(tmp_path, channels=12, max_value=4095.0)[0]["image"]
        expected = np.round(np.moveaxis(values, 0, -1) / 4095 * 255)
        np.testing.assert_array_equal(pixels, expected.astype(np.uint8))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_arrays_alone_are_read_as_grey_or_rgb_too(self, tmp_path, channels):
        values = noise(6, 7, channels)
        np.save(tmp_path / "a.npy", values[..., 0] if channels == 1 else values)
        np.testing.assert_array_equal(source_of(tmp_path, channels)[0]["image"], values)

    def test_bands_of_other_images_are_channels(self, tmp_path):
        values = noise(6, 7, 4)
        Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
        np.testing.assert_array_equal(source_of(tmp_path, channels=4)[0]["image"], values)

    def test_arrays_beside_images_and_previews_beside_arrays_are_left_out(self, tmp_path):
        np.save(tmp_path / "a.npy", noise(6, 7, 5))
        Image.new("RGB", (4, 4)).save(tmp_path / "preview.png")
        assert [source_of(tmp_path).name(0)] == [str(tmp_path / "a.npy")]
        rgb = source_of(tmp_path, channels=3)
        assert (len(rgb), rgb.name(0)) == (1, str(tmp_path / "preview.png"))

    def test_an_empty_folder_says_what_is_looked_for(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(
            ValueError, match=r"no image in .*looked for \.npy, \.npz, \.tif, \.tif"
        ):
            source_of(tmp_path)


def reason(folder, **options):
    with pytest.raises(CorruptImage) as raised:
        source_of(folder, **options)[0]
    assert raised.value.kind in CAUSES
    return str(raised.value)


class TestWhatCannotBeRead:
    def test_another_shape_is_refused_with_what_is_needed(self, tmp_path):
        np.save(tmp_path / "a.npy", noise(4, 64, 64))
        assert reason(tmp_path).endswith(
            "a.npy cannot be decoded: its array has the shape (4, 64, 64); data.channels=5 needs "
            "(5, height, width) or (height, width, 5)"
        )

    def test_a_pickled_array_is_never_loaded(self, tmp_path):
        np.save(tmp_path / "a.npy", np.empty((2, 2, 5), object), allow_pickle=True)
        assert "its values are of type object; expected are numbers" in reason(tmp_path)

    def test_several_arrays_are_named(self, tmp_path):
        np.savez(tmp_path / "a.npz", image=noise(2, 2, 5), mask=noise(2, 2))
        assert "it holds 2 arrays (image.npy, mask.npy); expected one" in reason(tmp_path)

    def test_complex_numbers_are_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones((2, 2, 5), complex))
        assert "its values are of type complex128; expected are numbers" in reason(tmp_path)

    def test_a_huge_array_is_refused_before_it_is_unpacked(self, tmp_path, monkeypatch):
        np.savez_compressed(tmp_path / "a.npz", image=np.zeros((200, 200, 5), np.uint8))
        monkeypatch.setattr(np.lib.format, "read_array", None)
        assert "it has 40000 pixels, more than data.max_pixels=30000" in reason(
            tmp_path, max_pixels=30_000
        )

    @pytest.mark.parametrize(
        "content", [b"", b"\x93NUMPY\x01", b"PK\x03\x04 no zip", b"II*\0 none"]
    )
    def test_damaged_files_are_named(self, tmp_path, content):
        (tmp_path / "a.npy").write_bytes(content)
        assert "a.npy cannot be decoded: " in reason(tmp_path)

    def test_where_tifffile_is_missing_the_start_says_what_to_install(self, tmp_path, monkeypatch):
        tifffile.imwrite(tmp_path / "a.tif", noise(5, 8, 8), photometric="minisblack")
        monkeypatch.setitem(sys.modules, "tifffile", None)
        with pytest.raises(ValueError, match=r"TIFF files of other .*: pip install tifffile$"):
            source_of(tmp_path)


class TestTraining:
    def test_each_channel_is_cropped_and_resized_as_pillow_does(self):
        pixels = noise(20, 30, 5)
        bounds, size = (3.5, 2.0, 25.0, 18.0), (8, 10)
        resized = crop_and_resize(Channels.from_pixels(pixels), bounds, size)
        for channel in range(5):
            grey = Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
            np.testing.assert_array_equal(
                resized[..., channel], crop_and_resize(grey, bounds, size)[..., 0]
            )

    def test_a_random_crop_and_the_view_of_evaluation_are_those_of_each_channel(self):
        pixels = noise(20, 30, 5)
        image = Channels.from_pixels(pixels)
        for view in (
            lambda image: USUAL_VIEW.show(image, (8, 8)),
            lambda image: random_resized_crop(image, np.random.default_rng(3), (8, 8)),
        ):
            alone = [
                view(Image.fromarray(np.ascontiguousarray(c))) for c in pixels.T.swapaxes(1, 2)
            ]
            np.testing.assert_array_equal(view(image), np.concatenate(alone, axis=-1))

    def test_a_loader_hands_out_all_channels(self, tmp_path):
        for number in range(4):
            np.save(tmp_path / f"{number}.npy", noise(12, 16, 5))
        source = pickle.loads(pickle.dumps(source_of(tmp_path)))
        with TrainLoader(source, Augmentation((8, 8)), batch_size=4, seed=0) as loader:
            batch = next(loader)
        assert (batch["image"].shape, batch["image"].dtype) == ((4, 8, 8, 5), np.uint8)


class TestStatistics:
    def test_are_those_of_numpy_where_images_are_of_one_size(self, tmp_path):
        values = noise(6, 9, 7, 5)
        for number, image in enumerate(values):
            np.save(tmp_path / f"{number}.npy", image)
        statistics = pixel_statistics(source_of(tmp_path))
        np.testing.assert_allclose(statistics.mean, values.mean((0, 1, 2)) / 255)
        np.testing.assert_allclose(statistics.std, values.std((0, 1, 2)) / 255)
        assert statistics.num_images == 6
        some = pixel_statistics(source_of(tmp_path), limit=2)
        np.testing.assert_allclose(some.mean, values[[0, 3]].mean((0, 1, 2)) / 255)

    def test_images_that_cannot_be_decoded_are_left_out_and_logged(self, tmp_path, caplog):
        caplog.set_level(logging.WARNING)
        np.save(tmp_path / "0.npy", np.full((2, 2, 5), 51, np.uint8))
        (tmp_path / "1.npy").write_bytes(b"")
        statistics = pixel_statistics(source_of(tmp_path))
        assert statistics.num_images == 1
        np.testing.assert_allclose(statistics.mean, 0.2)
        assert "1 of 2 images cannot be decoded, and are left out" in caplog.text

    def test_images_of_which_none_can_be_decoded_are_an_error(self, tmp_path):
        (tmp_path / "1.npy").write_bytes(b"")
        with pytest.raises(ValueError, match="none of 1 images can be decoded"):
            pixel_statistics(source_of(tmp_path))

"""Images in memory: scikit-learn's digits, and decoded copies of other sources."""

import logging

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddae_jax.data import array_source, folder_source
from ddae_jax.data.array_source import ArraySource, in_memory
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.sources import make_source
from image_folders import save


class TestDigits:
    def test_splits_part_the_dataset_into_four_fifths_and_one_of_each_class(self):
        train, test = make_source("digits"), make_source("digits", split="test")
        assert len(train) + len(test) == 1797
        shares = [
            np.bincount([source[i]["label"] for i in range(len(source))], minlength=10)
            for source in (train, test)
        ]
        share = shares[1] / (shares[0] + shares[1])
        assert np.all((share > 0.19) & (share <= 0.2))

    def test_images_are_scikit_learns_scaled_to_255(self):
        digits = load_digits()
        source = make_source("digits", channels=1)
        image = source[0]["image"][..., 0]
        np.testing.assert_allclose(image, digits.images[0] * 255 / 16, atol=0.5)
        assert source[0]["label"] == digits.target[0]

    def test_describes_itself(self):
        source = make_source("digits", split="test")
        assert (source.num_classes, source.image_size) == (10, (8, 8))
        assert source.class_names == tuple("0123456789")
        assert source.name(17) == "digits/test[17]"

    def test_unknown_split_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"'tset'.*'test'"):
            make_source("digits", split="tset")

    def test_fingerprints_tell_the_splits_apart(self):
        assert len({make_source("digits", split=s).fingerprint for s in ("train", "test")}) == 2


class TestInMemory:
    def test_examples_keep_their_names(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        assert in_memory(source).name(0) == source.name(0)

    def test_an_image_of_another_size_is_named(self, tmp_path, monkeypatch):
        for index in range(12):
            side = 4 if index == 7 else 6
            save(Image.new("RGB", (side, side)), tmp_path / f"{index:02d}.png")
        monkeypatch.setattr(folder_source, "_SIZE_SAMPLE", 3)  # a sample without number 7
        source = make_source("folder", data_dir=str(tmp_path))
        with pytest.raises(ValueError, match=r"07\.png is 4 x 4 pixels, others are 6 x 6"):
            in_memory(source)

    def test_long_decoding_logs_its_progress(self, rgb_folder, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(array_source, "_LOG_EVERY_S", -1)
        source = make_source("folder", data_dir=str(rgb_folder))
        in_memory(source)
        assert f"decoded {len(source)} of {len(source)} images" in caplog.text

    def test_holds_the_same_examples(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        copy = in_memory(source)
        assert isinstance(copy, ArraySource)
        assert (copy.image_size, copy.class_names) == (source.image_size, source.class_names)
        for index in range(len(source)):
            np.testing.assert_array_equal(copy[index]["image"], source[index]["image"])
            assert copy[index]["label"] == source[index]["label"]

    def test_corrupt_image_stays_corrupt_under_its_own_name(self, rgb_folder):
        (rgb_folder / "cat" / "b.png").write_bytes(b"broken")
        copy = in_memory(make_source("folder", data_dir=str(rgb_folder)))
        with pytest.raises(CorruptImage, match=r"cat/b\.png"):
            copy[2]
        assert copy[3]["label"] == 1

    def test_images_of_many_sizes_are_refused(self, rgb_folder):
        save(Image.new("RGB", (7, 4)), rgb_folder / "cat" / "z.png")
        with pytest.raises(ValueError, match="share one size"):
            in_memory(make_source("folder", data_dir=str(rgb_folder)))

    def test_fingerprint_is_that_of_the_original(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        assert in_memory(source).fingerprint == source.fingerprint

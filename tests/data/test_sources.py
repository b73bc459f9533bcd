"""``make_source``: which arguments it takes, and what every source gives."""

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.sources import make_source
from ddae_jax.data.threads import reading_threads
from image_folders import save


class TestMakeSource:
    def test_unknown_kind_names_the_nearest_and_the_known(self):
        with pytest.raises(ValueError, match=r"'foldr'.*'folder'.*digits, tfds, folder"):
            make_source("foldr")

    def test_other_channels_are_refused(self):
        with pytest.raises(ValueError, match="channels=4"):
            make_source("digits", channels=4)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_example_has_uint8_image_and_int32_label(self, channels):
        example = make_source("digits", channels=channels)[0]
        assert example["image"].shape == (8, 8, channels)
        assert example["image"].dtype == np.uint8
        assert example["label"].dtype == np.int32
        assert example["label"].shape == ()

    @pytest.mark.parametrize("index", [-1, 1442])
    def test_index_outside_raises(self, index):
        with pytest.raises(IndexError):
            make_source("digits")[index]


def test_small_images_are_read_by_one_thread(tmp_path):
    assert reading_threads(make_source("digits")) == 1
    save(Image.new("RGB", (500, 400)), tmp_path / "a.png")
    assert reading_threads(make_source("folder", data_dir=str(tmp_path))) == 4

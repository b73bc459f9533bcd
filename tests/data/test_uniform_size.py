"""Sources of images of one size: an image of another size is found by its header, and named."""

import logging

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.folder_source import FolderSource
from ddae_jax.data.sources import make_source
from ddae_jax.data.uniform_size import OddSize, one_size


@pytest.fixture
def folder(tmp_path):
    """A folder of so many images that the one of another size is not in the first sample."""
    for number in range(1100):
        (tmp_path / f"{number:04}.bmp").write_bytes(b"")
    small = Image.new("L", (6, 5))
    small.save(tmp_path / "0000.bmp")
    content = (tmp_path / "0000.bmp").read_bytes()
    for number in range(1100):
        (tmp_path / f"{number:04}.bmp").write_bytes(content)
    return tmp_path


def sample_of(source):
    """Returns the indices of the sample by which a folder tells its image size."""
    return set(np.linspace(0, len(source) - 1, 1000).astype(int).tolist())


def odd_one_out(folder):
    source = make_source("folder", data_dir=str(folder))
    index = min(set(range(len(source))) - sample_of(source))
    Image.new("L", (6, 7)).save(source.name(index))
    return source, source.name(index)


def test_all_of_one_size_have_it(folder):
    (folder / "0007.bmp").write_bytes(b"no image, of which training says so")
    assert one_size(make_source("folder", data_dir=str(folder))) == (5, 6)


def test_an_image_of_another_size_is_found_outside_the_sample_too(folder):
    source, name = odd_one_out(folder)
    assert source.image_size == (5, 6)
    with pytest.raises(OddSize) as raised:
        one_size(source)
    assert str(raised.value) == (
        f"{name} is 7 x 6 pixels (height x width), and others are 5 x 6: "
        "data.augment_in='device' takes images of one size alone. Remove or resize it, or choose "
        "data.augment_in='workers', which takes any size"
    )


def test_where_time_is_up_the_number_of_unchecked_images_is_logged(folder, caplog):
    caplog.set_level(logging.INFO)
    for path in sorted(folder.iterdir())[300:]:
        path.unlink()
    source = make_source("folder", data_dir=str(folder))
    assert one_size(source, budget_s=0) == (5, 6)
    assert "looked at the sizes of 256 of 300 images" in caplog.text


def test_images_in_memory_are_not_opened():
    source = ArraySource(np.zeros((3, 4, 5, 1), np.uint8), np.zeros(3, np.int32))
    source.open = None
    assert one_size(source) == (4, 5)


def test_no_image_at_all_has_no_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    source = make_source("folder", data_dir=str(tmp_path))
    assert isinstance(source, FolderSource)
    with pytest.raises(OddSize, match="none can be read"):
        one_size(source)

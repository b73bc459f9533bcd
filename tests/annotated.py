"""Folders of images with annotations: a few made up, and CamVid where it is at hand."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.segmentation import PairSource, make_pair_source
from tiny import SHARED_DATA

CAMVID = SHARED_DATA / "camvid"
CAMVID_RULE = {"num_classes": 11, "ignore_label": 11}

needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid in ../shared/data/camvid")


def write_pair(root: pathlib.Path, name: str, image, labels, split: str = "training") -> None:
    """Writes an image, as PNG, and its annotation in ADE20K's layout."""
    for kind, pixels in (("images", image), ("annotations", labels)):
        path = root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def write_pairs(root: pathlib.Path, count: int, size: tuple[int, int] = (20, 24)) -> None:
    """Writes images of three channels, the first of which is ten times the label: 0 to 4."""
    rng = np.random.default_rng(0)
    for number in range(count):
        labels = rng.integers(0, 5, size)
        noise = rng.integers(0, 256, (*size, 2))
        image = np.concatenate([10 * labels[..., None], noise], axis=-1)
        write_pair(root, f"{number:03d}", image, labels)


def write_rows(root: pathlib.Path, *rows) -> None:
    """Writes an image of a single row for each row of labels."""
    for number, row in enumerate(rows):
        write_pair(root, str(number), np.zeros((1, len(row), 3)), np.array([row]))


def pair_source(root: pathlib.Path, **options) -> PairSource:
    """Opens the pairs of such a folder, of five classes unless ``options`` say otherwise."""
    return make_pair_source("folder", data_dir=str(root), **({"num_classes": 5} | options))

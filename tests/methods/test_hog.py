"""Histograms of oriented gradients, against scikit-image where definitions agree, else NumPy.

scikit-image's blocks overlap, and of all channels it uses the one with the strongest gradient. It
is therefore the reference for single channels, with blocks of one cell or of the whole image. It
does not have the form of MaskFeat's authors: the reference for that uses SciPy's filters and NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import hog as skimage_hog

from ddae_jax.methods.hog import FORMS, directions, hog
from ddae_jax.methods.targets import hog_targets

every_form = pytest.mark.parametrize("form", FORMS)


def images_of(shape=(2, 24, 40, 3), seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def whole_pixels(shape=(2, 24, 40, 3)):
    """Returns integer pixels, whose gradients are exact: noise, stripes and a flat corner."""
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    images[:, 8:16] = images[:, 8:16, :1]  # rows of a single value: vertical gradients only
    images[:, :, 16:24] = images[:, :1, 16:24]
    images[:, 4:, 28:] = 7
    return images


def as_maskfeat_s_authors_define_it(image, cell=8, parts=9):
    """Returns the HOG of one channel in float64, with the order of parts of SlowFast's code.

    Sobel's filters are applied to the reflected image, with the opposite sign. Angles are measured
    from the vertical, where the first part begins. A cell has the sum of its pixels' votes.
    """
    image = image.astype(np.float64)
    left, up = (-ndimage.sobel(image, axis, mode="mirror") for axis in (1, 0))
    part = np.floor(np.arctan2(left, up) / np.pi * parts).astype(int) % parts
    votes = np.hypot(left, up)[..., None] * (part[..., None] == np.arange(parts))
    h, w = image.shape
    cells = votes.reshape(h // cell, cell, w // cell, cell, parts).sum(axis=(1, 3))
    return cells / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)


def by_numpy(image, cell, orientations, block):
    """Returns the HOG of one channel, computed pixel by pixel."""
    height, width = image.shape
    votes = np.zeros((height // cell, width // cell, orientations))
    for row in range(height):
        for column in range(width):
            inside_rows, inside_columns = 0 < row < height - 1, 0 < column < width - 1
            down = image[row + 1, column] - image[row - 1, column] if inside_rows else 0.0
            right = image[row, column + 1] - image[row, column - 1] if inside_columns else 0.0
            degrees = np.rad2deg(np.arctan2(down, right)) % 180
            part = int(degrees // (180 / orientations)) % orientations
            votes[row // cell, column // cell, part] += np.hypot(down, right) / cell**2
    for row in range(0, votes.shape[0], block):
        for column in range(0, votes.shape[1], block):
            part = votes[row : row + block, column : column + block]
            part /= np.sqrt((part**2).sum() + 1e-10)
    return votes


@pytest.mark.slow
@pytest.mark.parametrize("cell", [4, 8])
@pytest.mark.parametrize("orientations", [9, 6])
def test_each_channel_is_scikit_image_s(cell, orientations):
    images = images_of()
    found = hog(images, cell, orientations)
    assert found.shape == (2, 24 // cell, 40 // cell, 3, orientations)
    for image, ours in zip(images, found, strict=True):
        for channel in range(3):
            expected = skimage_hog(
                image[..., channel],
                orientations=orientations,
                pixels_per_cell=(cell, cell),
                cells_per_block=(1, 1),
                block_norm="L2",
                feature_vector=False,
            )[:, :, 0, 0]
            np.testing.assert_allclose(ours[:, :, channel], expected, atol=1e-4)


def test_a_block_of_all_cells_is_scikit_image_s():
    image = images_of((1, 16, 16, 1))
    expected = skimage_hog(
        image[0, ..., 0],
        pixels_per_cell=(8, 8),
        cells_per_block=(2, 2),
        block_norm="L2",
        feature_vector=False,
    )[0, 0]
    np.testing.assert_allclose(hog(image, cells_per_block=2)[0, :, :, 0], expected, atol=1e-4)


@pytest.mark.parametrize(("cell", "block"), [(4, 1), (4, 2), (2, 3)])
def test_colours_and_separate_blocks_are_numpy_s(cell, block):
    images = images_of((2, 24, 24, 3), seed=1)
    found = hog(images, cell, cells_per_block=block)
    for image, ours in zip(images, found, strict=True):
        for channel in range(3):
            expected = by_numpy(image[..., channel].astype(np.float64), cell, 9, block)
            np.testing.assert_allclose(ours[:, :, channel], expected, atol=1e-4)


def test_an_edge_votes_for_the_direction_in_which_the_image_rises():
    right = np.tile(np.arange(8.0), (8, 1))
    by_part = {
        0: right,
        4: right.T + 0.001 * right,  # just below 90 degrees
        2: np.cos(np.radians(50)) * right + np.sin(np.radians(50)) * right.T,
        7: np.cos(np.radians(150)) * right + np.sin(np.radians(150)) * right.T,
    }
    for part, image in by_part.items():
        inner = hog(np.float32(image)[None, 1:-1, 1:-1, None], 2)[0, 1, 1, 0]
        assert int(inner.argmax()) == part
        np.testing.assert_allclose(inner[part], 1.0, atol=1e-5)


@every_form
def test_neither_scale_nor_offset_nor_sign_of_an_image_matters(form):
    images = images_of()
    expected = hog(images, form=form)
    np.testing.assert_allclose(hog(4 * images - 1, form=form), expected, atol=1e-4)
    np.testing.assert_allclose(hog(-images, form=form), expected, atol=1e-4)


@pytest.mark.parametrize("cell", [4, 8])
def test_sobel_s_form_is_that_of_maskfeat_s_authors(cell):
    """The authors count parts from the vertical, in the opposite direction; values are equal."""
    images = whole_pixels()
    found = np.asarray(jax.jit(functools.partial(hog, cell_size=cell, form="sobel"))(images))
    for image, ours in zip(images, found, strict=True):
        for channel in range(3):
            theirs = as_maskfeat_s_authors_define_it(image[..., channel], cell)
            expected = theirs[..., (4 - np.arange(9)) % 9]
            np.testing.assert_allclose(ours[:, :, channel], expected, atol=1e-6)


def test_rounding_tears_no_lying_edges_apart_and_makes_no_flat_cell_an_edge():
    """Normalising or resizing leaves errors of 1e-7 where gradients should cancel to 0."""
    pixels = whole_pixels()
    expected = hog(pixels, form="sobel")
    normalised = (pixels / 255 - np.float32(0.45)) / np.float32(0.225)
    np.testing.assert_allclose(hog(normalised, form="sobel"), expected, atol=1e-4)
    rounding = np.random.default_rng(1).uniform(-2e-7, 2e-7, pixels.shape).astype(np.float32)
    found = hog(normalised + rounding, form="sobel")
    is_flat = ~np.any(expected, axis=-1)
    assert 0.05 < is_flat.mean() < 0.5
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(found[~is_flat], expected[~is_flat], atol=1e-4)


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("parts", [4, 9])
def test_each_part_is_where_its_direction_points(form, parts):
    down, right = np.mgrid[:8, :8].astype(np.float32)
    for part, angle in enumerate(directions(parts, form)):
        image = np.float32(np.cos(angle) * right + np.sin(angle) * down)[None, ..., None]
        inner = np.asarray(hog(image, 2, parts, form=form))[0, 1, 1, 0]
        np.testing.assert_allclose(inner, np.arange(parts) == part, atol=1e-5)


@pytest.mark.slow
@every_form
def test_a_flat_image_has_no_edges(form):
    assert not np.any(hog(np.full((1, 16, 16, 3), 0.3, np.float32), form=form))
    assert not np.any(hog(np.ones((1, 1, 1, 1), np.float32), 1, form=form))


@every_form
def test_it_is_computed_inside_jit_in_float32(form):
    compute = jax.jit(functools.partial(hog, cell_size=4, form=form))
    assert compute(jnp.asarray(images_of(), jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(compute(images_of()), hog(images_of(), 4, form=form), atol=1e-5)


@pytest.mark.slow
@every_form
def test_targets_are_the_cells_of_each_patch_row_by_row(form):
    images = images_of((2, 16, 32, 3))
    cells, targets = np.asarray(hog(images, 4, form=form)), hog_targets(images, 8, 4, form)
    assert targets.shape == (2, 8, 2 * 2 * 3 * 9)
    patch = cells[1, 2:4, 4:6]  # row 1, column 2 of a grid of 2 x 4
    np.testing.assert_array_equal(targets[1, 6], patch.reshape(-1))


@pytest.mark.parametrize(("cell", "block"), [(5, 1), (0, 1), (8, 2)])
def test_an_image_not_made_of_whole_blocks_is_refused(cell, block):
    with pytest.raises(ValueError, match=f"cell_size={cell}.*24x40"):
        hog(images_of(), cell, cells_per_block=block)


def test_a_form_that_is_not_known_is_refused_naming_those_that_are():
    message = "hog_form='scharr'; known: 'differences', 'sobel'"
    for refuse in (lambda: hog(images_of(), form="scharr"), lambda: directions(9, "scharr")):
        with pytest.raises(ValueError, match=message):
            refuse()


@pytest.mark.parametrize("cell", [3, 0, 16])
def test_a_patch_not_made_of_whole_cells_is_refused(cell):
    with pytest.raises(ValueError, match=f"hog_cell={cell} does not divide patch_size=8"):
        hog_targets(images_of(), 8, cell)

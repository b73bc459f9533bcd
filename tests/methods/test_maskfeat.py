"""MaskFeat: the squared error of the histograms of hidden patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden_arrays
from ddae_jax.methods import METHODS
from ddae_jax.methods.hog import hog
from ddae_jax.methods.targets import hog_targets
from ddae_jax.models.vit import ViT

ENCODER = ViT((16, 32), 8, width=16, depth=2, num_heads=2)
MASK = np.array([[1, 0, 1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 0, 0, 1]], bool)


def method(**options):
    options = {"mode": "last", "depths": (2,), "hog_cell": 4} | options
    return METHODS["maskfeat"].build(
        ENCODER, None, sample_mask=lambda key, batch: jnp.asarray(MASK), num_masked=4, **options
    )


def images_of():
    return np.random.default_rng(0).normal(size=(2, 16, 32, 3)).astype(np.float32)


def test_the_loss_is_the_squared_error_at_hidden_patches():
    ours = method(depths=(1, 2), mode="deep")
    params = golden_arrays.initialize(ours)
    assert params["head"]["kernel"].shape == (16, 2 * 2 * 3 * 9)
    predicted = golden_arrays.predict(ours, params, images_of(), MASK)
    target = np.asarray(hog_targets(images_of(), 8, 4))
    error = ((np.asarray(predicted["hog"]) - target) ** 2).mean(axis=-1)
    (loss, outcome), _ = golden_arrays.loss_and_gradient(ours, params, {}, images_of())
    np.testing.assert_allclose(outcome.losses[0], error[:, MASK].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(loss, error[:, MASK].mean(axis=1).sum(), rtol=1e-5)
    assert ours.init_teacher(params) == {}


def test_people_see_the_mean_histogram_of_each_cell():
    ours = method(depths=(1, 2), mode="deep")
    params = golden_arrays.initialize(ours)
    seen = jax.jit(ours.visualize)(params, {}, images_of(), jax.random.key(0))
    expected = np.asarray(hog(images_of(), 4, form="sobel")).mean(axis=-2)
    np.testing.assert_allclose(seen["histograms"], expected, atol=1e-5)
    np.testing.assert_allclose(seen["directions"], np.radians(20 * np.arange(9)), rtol=1e-6)
    assert seen["predicted_histograms"].shape == (2, *expected.shape)
    predicted = golden_arrays.predict(ours, params, images_of(), MASK)
    # Patch 6 is at row 1, column 2; its second cell right of its first.
    patch = predicted["hog"][1, 0, 6].reshape(2, 2, 3, 9).mean(axis=2)
    np.testing.assert_allclose(seen["predicted_histograms"][1, 0, 2:4, 4:6], patch, atol=1e-5)


def test_its_own_options_are_told_by_name():
    assert METHODS["maskfeat"].options == {"channels", "hog_cell", "hog_form"}


def test_histograms_may_be_of_differences():
    ours = method(depths=(1, 2), mode="deep", hog_form="differences")
    targets = ours.targets({}, images_of())["hog"][0]
    np.testing.assert_array_equal(targets, hog_targets(images_of(), 8, 4, "differences"))
    assert np.abs(targets - hog_targets(images_of(), 8, 4, "sobel")).max() > 0.1


def test_a_form_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="hog_form='scharr'; known: 'differences', 'sobel'"):
        method(hog_form="scharr")


@pytest.mark.parametrize("cell", [3, 16, 0])
def test_a_cell_that_does_not_divide_the_patch_is_refused(cell):
    with pytest.raises(ValueError, match=f"hog_cell={cell} does not divide patch_size=8"):
        method(hog_cell=cell)

"""The distance map, against scipy's exact Euclidean distance transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from ddae_jax.distance import distance_map
from ddae_jax.masking import random_mask
from ddae_jax.methods.ddae import ddae
from ddae_jax.models.vit import SIZES, ViT

SQUARE = [(n, n) for n in (2, 3, 4, 5, 7, 8, 14, 16, 24, 32)]
THIN = [(1, 2), (2, 1), (1, 3), (1, 7), (7, 1), (1, 32), (32, 1), (2, 32), (31, 2)]
OBLONG = [(2, 3), (3, 2), (3, 5), (4, 6), (6, 4), (5, 13), (8, 12), (12, 7), (9, 16), (14, 10)]
LARGE = [(10, 14), (16, 11), (16, 24), (24, 16), (17, 31), (31, 17), (28, 32), (32, 9), (29, 30)]
GRIDS = SQUARE + THIN + OBLONG + LARGE
MASKS_A_GRID = 96


def various_masks(grid: tuple[int, int], seed: int) -> np.ndarray:
    """Masks from nearly all visible to a single visible patch; none has no visible patch."""
    rng = np.random.default_rng(seed)
    total = grid[0] * grid[1]
    hidden_share = rng.uniform(0, 1, (MASKS_A_GRID, 1))
    hidden_share[::4] = 1  # every fourth: one visible patch
    mask = rng.uniform(size=(MASKS_A_GRID, total)) < hidden_share
    mask[np.arange(MASKS_A_GRID), rng.integers(0, total, MASKS_A_GRID)] = False
    return mask


def scipy_distances(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows = [ndimage.distance_transform_edt(row.reshape(grid)).ravel() for row in mask]
    return np.stack(rows)


def test_distance_is_exact_against_scipy_on_thousands_of_masks():
    num_masks = 0
    compiled = jax.jit(distance_map, static_argnums=1)
    for seed, grid in enumerate(GRIDS):
        mask = various_masks(grid, seed)
        expected = scipy_distances(mask, grid)
        distance = compiled(mask, grid)
        assert distance.dtype == jnp.float32
        # Squared distances are whole numbers: exactly those. The square root rounds once.
        np.testing.assert_array_equal(
            np.rint(np.square(distance, dtype=np.float64)), np.rint(expected**2)
        )
        np.testing.assert_array_max_ulp(np.asarray(distance), expected.astype(np.float32), 1)
        num_masks += len(mask)
    assert num_masks > 3000


@given(hnp.arrays(bool, (5, 7)).filter(lambda mask: not mask.all()))
def test_distance_is_exact_on_any_mask(mask):
    distance = distance_map(mask.reshape(1, 35), (5, 7))
    expected = ndimage.distance_transform_edt(mask).astype(np.float32)
    np.testing.assert_array_max_ulp(np.asarray(distance).reshape(5, 7), expected, 1)


def test_distances_by_hand_on_a_grid_that_is_not_square():
    # Visible: the first patch of the upper row. 2 rows, 3 columns.
    distance = distance_map(jnp.array([False, True, True, True, True, True]), (2, 3))
    np.testing.assert_allclose(distance, [0, 1, 2, 1, 2**0.5, 5**0.5], rtol=1e-7)


def test_visible_patches_are_at_zero_and_hidden_ones_at_least_at_one():
    mask = various_masks((6, 9), 0)
    distance = np.asarray(distance_map(mask, (6, 9)))
    assert (distance[~mask] == 0).all()
    assert (distance[mask] >= 1).all()


def test_distance_is_infinite_exactly_in_rows_without_a_visible_patch():
    mask = np.ones((3, 12), bool)
    mask[1, 5] = False
    distance = np.asarray(distance_map(mask, (3, 4)))
    assert np.isposinf(distance[[0, 2]]).all()
    assert np.isfinite(distance[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(3, 4), (1, 12)])
def test_batched_compiled_vmapped_and_single_masks_agree(grid):
    mask = np.random.default_rng(1).uniform(size=(2, 3, 12)) < 0.6
    mask[..., 0] = False
    distance = np.asarray(distance_map(mask, grid))
    assert distance.shape == mask.shape

    def one(mask):
        return distance_map(mask, grid)

    np.testing.assert_array_equal(jax.jit(one)(mask), distance)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(one))(mask), distance)
    np.testing.assert_array_equal(one(mask[1, 2]), distance[1, 2])


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (12, 1), (0, 10)])
def test_a_grid_of_another_size_than_the_mask_is_an_error(grid):
    with pytest.raises(ValueError, match="mask has 10 patches") as error:
        distance_map(jnp.zeros((2, 10), bool), grid)
    assert f"{grid[0]}x{grid[1]}" in str(error.value)


@pytest.mark.slow
def test_distance_costs_under_one_percent_of_a_vit_b16_train_steps_flops():
    batch, grid, num_masked = 2, (14, 14), 147
    method = ddae(
        ViT((224, 224), 16, *SIZES["B"]),
        None,
        sample_mask=lambda key, batch: random_mask(key, batch, grid, num_masked),
        num_masked=num_masked,
        depths=(6, 8, 10, 12),
    )
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: method.init(key, 3), key)
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    step = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    step_flops = step.lower(params, method.init_teacher(params), images, key).cost_analysis()[
        "flops"
    ]
    # A forward pass of ViT-B/16 is some 17.5 GMAC an image; a step holds several.
    assert step_flops > batch * 3 * 2 * 17e9

    mask = jax.ShapeDtypeStruct((batch, 196), bool)
    lowered = jax.jit(lambda mask: distance_map(mask, grid)).lower(mask)
    # What the passes need by hand: an addition and a minimum for each pair along each axis.
    assert lowered.cost_analysis()["flops"] >= batch * 196 * (14 + 14) * 2
    assert lowered.cost_analysis()["flops"] < 0.01 * step_flops

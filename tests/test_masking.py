"""Masks: exact counts, determinism, uniformity, and BEiT's blocks against BEiT's own algorithm."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from ddae_jax.masking import (
    block_mask,
    hidden_indices,
    num_masked_patches,
    random_mask,
    smallest_block,
    spread_hidden,
    visible_indices,
)
from ddae_jax.models.backend import compiled_for
from ddae_jax.models.gather import at_patches

SAMPLERS = {"random": random_mask, "block": block_mask}
every_sampler = pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS.keys())


sides, seeds = st.integers(1, 9), st.integers(0, 2**31)


def key(seed: int = 0):
    return jax.random.key(seed)


@functools.cache
def blocks(batch: int, side: int, num_masked: int) -> np.ndarray:
    masks = block_mask(key(), batch, (side, side), num_masked)
    return np.asarray(masks).reshape(batch, side, side)


def beit_mask(rng: np.random.Generator, side: int, num_masked: int) -> np.ndarray:
    """Algorithm 1 of BEiT with the choices of its released code; may hide a few too few."""
    mask = np.zeros((side, side), bool)
    while True:
        remaining = num_masked - mask.sum()
        for _ in range(10):
            area = 16 + (remaining - 16) * rng.uniform()
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
            block = np.zeros_like(mask)
            block[top : top + height, left : left + width] = True
            if 0 < (block & ~mask).sum() <= remaining:
                mask |= block
                break
        else:
            return mask
        if mask.sum() == num_masked:
            return mask


def nearness(masks: np.ndarray) -> tuple[float, float]:
    """Share of hidden patches next to a visible one, and the mean largest distance of a mask."""
    distances = [ndimage.distance_transform_edt(mask) for mask in masks]
    hidden = np.concatenate([d[d > 0] for d in distances])
    return float((hidden == 1).mean()), float(np.mean([d.max() for d in distances]))


def check_count(mask, grid, num_masked):
    assert mask.shape == (64, grid[0] * grid[1])
    assert mask.dtype == bool
    assert (np.asarray(mask).sum(axis=1) == num_masked).all()


@settings(max_examples=8)
@given(h=sides, w=sides, share=st.floats(0, 1), seed=seeds)
@example(h=3, w=4, share=0.0, seed=0)
@example(h=3, w=4, share=1.0, seed=0)
def test_random_mask_hides_exactly_the_asked_number_in_every_row(h, w, share, seed):
    num_masked = round(share * h * w)
    check_count(random_mask(key(seed), 64, (h, w), num_masked), (h, w), num_masked)


compiled_block_mask = jax.jit(block_mask, static_argnums=(1, 2, 3))  # a second each to compile
few_blocks = [((4, 5), 0), ((4, 5), 20), ((1, 9), 5), ((9, 7), 40)]


@pytest.mark.slow
@given(case=st.sampled_from(few_blocks), seed=seeds)
def test_block_mask_hides_exactly_the_asked_number_in_every_row(case, seed):
    check_count(compiled_block_mask(key(seed), 64, *case), *case)


@every_sampler
def test_a_mask_is_a_function_of_its_key_and_its_rows_differ(sample):
    compiled = jax.jit(lambda key: sample(key, 64, (8, 10), 48))
    mask = np.asarray(compiled(key(1)))
    np.testing.assert_array_equal(mask, compiled(key(1)))
    assert (mask != np.asarray(compiled(key(2)))).any(axis=1).all()
    assert len(np.unique(mask, axis=0)) == 64


def test_random_mask_makes_every_choice_equally_likely():
    mask = np.asarray(random_mask(key(), 6000, (2, 2), 2))
    choices, counts = np.unique(mask, axis=0, return_counts=True)
    assert len(choices) == math.comb(4, 2)
    assert stats.chisquare(counts).pvalue > 0.001


def test_random_mask_hides_every_patch_equally_often():
    mask = np.asarray(random_mask(key(), 4000, (6, 9), 40))
    share = 40 / 54
    deviation = math.sqrt(share * (1 - share) / 4000)
    assert np.abs(mask.mean(axis=0) - share).max() < 4.5 * deviation


@pytest.mark.slow
@pytest.mark.parametrize("num_masked", [78, 118])
def test_block_masks_are_as_near_and_far_as_beits(num_masked):
    rng = np.random.default_rng(0)
    beits = np.stack([beit_mask(rng, 14, num_masked) for _ in range(600)])
    near, farthest = nearness(blocks(2000, 14, num_masked))
    beits_near, beits_farthest = nearness(beits)
    # Standard errors: about 1 % of each. Exact counts and trimmed blocks explain the rest.
    assert near == pytest.approx(beits_near, rel=0.05)
    assert farthest == pytest.approx(beits_farthest, rel=0.05)


def test_block_masks_lie_in_blocks_unlike_random_ones():
    scattered = np.asarray(random_mask(key(), 500, (14, 14), 118)).reshape(-1, 14, 14)
    near, farthest = nearness(blocks(2000, 14, 118))
    scattered_near, scattered_farthest = nearness(scattered)
    assert near < 0.6 * scattered_near
    assert farthest > 1.5 * scattered_farthest


def test_a_block_has_the_asked_area_and_aspect_anywhere_on_the_grid():
    # The default smallest block of a 14x14 grid is 16 patches; with aspect 1 it is 4x4.
    masks = np.asarray(block_mask(key(), 3000, (14, 14), 16, min_aspect=1.0))
    corners = set()
    for mask in masks.reshape(-1, 14, 14):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (np.ptp(rows), np.ptp(columns)) == (3, 3)
        corners.add((rows[0], columns[0]))
    # 11x11 places; 3000 uniform draws miss one with probability 121 * exp(-3000/121) = 2e-9.
    assert len(corners) == 121


def test_the_smallest_block_is_free():
    masks = np.asarray(block_mask(key(), 50, (14, 14), 9, min_block=9, min_aspect=1.0))
    for mask in masks.reshape(-1, 14, 14):
        assert (np.ptp(np.argwhere(mask), axis=0) == 2).all()


def test_the_smallest_block_may_be_a_share_of_the_hidden_patches():
    assert smallest_block(78, 0.2) == 15  # MaskFeat's authors': 78 // 5, of 14 x 14 patches
    assert smallest_block(80, 0.2) == 16
    assert smallest_block(3, 0.2) == 1
    assert smallest_block(78, 1.0) == 78
    assert smallest_block(78, 0.0) is None


def test_trimming_prefers_neither_the_top_nor_the_bottom():
    # A 4x4 block, and four more patches of another: its upper or its lower ones.
    masks = np.asarray(block_mask(key(), 4000, (14, 14), 20, min_aspect=1.0))
    mean_row = (masks.reshape(-1, 14, 14) * np.arange(14)[:, None]).sum(axis=(1, 2)) / 20
    assert stats.ttest_1samp(mean_row, 6.5).pvalue > 0.001


@every_sampler
@pytest.mark.parametrize("num_masked", [-1, 13])
def test_hiding_a_number_of_patches_that_is_not_there_is_an_error(sample, num_masked):
    with pytest.raises(ValueError, match=f"num_masked={num_masked}") as error:
        sample(key(), 2, (3, 4), num_masked)
    assert "3x4 grid has 12 patches" in str(error.value)


@pytest.mark.parametrize("min_aspect", [0.0, -0.3, 1.5])
def test_an_aspect_outside_its_range_is_an_error(min_aspect):
    with pytest.raises(ValueError, match=f"min_aspect={min_aspect}"):
        block_mask(key(), 2, (3, 4), 6, min_aspect=min_aspect)


@pytest.mark.parametrize(
    ("grid", "ratio", "expected"),
    [((14, 14), 0.75, 147), ((14, 14), 0.4, 78), ((8, 8), 0.65, 42), ((1, 2), 0.5, 1)],
)
def test_a_ratio_hides_the_nearest_number_of_patches(grid, ratio, expected):
    assert num_masked_patches(grid, ratio) == expected


@pytest.mark.parametrize("ratio", [0, 1, 0.0, 1.0, 1.2, -0.1, math.nan])
def test_a_ratio_outside_its_range_is_an_error_that_says_what_it_is(ratio):
    with pytest.raises(ValueError, match=r"hidden share of patches and lies in \(0, 1\)") as error:
        num_masked_patches((14, 14), ratio)
    assert f"mask_ratio={ratio}" in str(error.value)


@pytest.mark.parametrize(("ratio", "what"), [(0.95, "no visible"), (0.05, "no hidden")])
def test_a_ratio_that_leaves_no_visible_or_no_hidden_patch_is_an_error(ratio, what):
    with pytest.raises(ValueError, match=f"leaves {what} patch of the 4 in a 2x2 grid"):
        num_masked_patches((2, 2), ratio)


def test_visible_indices_are_those_of_visible_patches_ascending():
    mask = np.asarray(random_mask(key(), 20, (5, 6), 22))
    expected = np.stack([np.flatnonzero(~row) for row in mask])
    np.testing.assert_array_equal(visible_indices(mask, 8), expected)


def test_hidden_values_go_to_hidden_places_and_visible_ones_are_0():
    mask = np.asarray(random_mask(key(), 20, (5, 6), 22))
    hidden = hidden_indices(mask, 22)
    np.testing.assert_array_equal(hidden, np.stack([np.flatnonzero(row) for row in mask]))
    values = np.random.default_rng(0).normal(size=(2, 3, 20, 22)).astype(np.float32)
    expected = np.zeros((2, 3, 20, 30), np.float32)
    for image, row in enumerate(mask):
        expected[:, :, image, row] = values[:, :, image]
    np.testing.assert_array_equal(spread_hidden(values, mask), expected)
    # and back
    found = at_patches(expected.reshape(6, 20, 30), hidden)
    np.testing.assert_array_equal(found, values.reshape(6, 20, 22))
    tokens = np.arange(20 * 30).reshape(1, 20, 30, 1).repeat(4, axis=-1)
    chosen = at_patches(tokens, hidden)
    assert chosen.shape == (1, 20, 22, 4)
    np.testing.assert_array_equal(chosen[0, 7, :, 2], 7 * 30 + np.flatnonzero(mask[7]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_that_chooses_patches_on_tpus_is_exact_and_so_is_its_gradient(dtype):
    hidden = hidden_indices(np.asarray(random_mask(key(), 20, (5, 6), 22)), 22)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 30, 8)), dtype)
    cotangents = jnp.asarray(np.random.default_rng(1).normal(size=(2, 20, 22, 8)), dtype)

    def chosen_and_gradient():
        chosen, pull_back = jax.vjp(lambda tokens: at_patches(tokens, hidden), tokens)
        return chosen, *pull_back(cotangents)

    expected = chosen_and_gradient()
    with compiled_for("tpu"):
        assert "gather" not in str(jax.make_jaxpr(at_patches)(tokens, hidden))
        found = chosen_and_gradient()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("grid", "unit"), [((8, 8), 2), ((6, 9), 3), ((14, 14), 2), ((4, 6), 1)])
def test_units_are_hidden_or_visible_as_a_whole(grid, unit):
    num_masked = num_masked_patches(grid, 0.6, unit)
    mask = np.asarray(random_mask(jax.random.key(0), 50, grid, num_masked, unit=unit))
    assert (mask.sum(axis=1) == num_masked).all()
    h, w = grid[0] // unit, grid[1] // unit
    units = mask.reshape(50, h, unit, w, unit)
    assert (units == units[:, :, :1, :, :1]).all()
    whole = round(0.6 * h * w) if unit == 1 else int(np.ceil(0.6 * h * w))
    assert num_masked == whole * unit**2
    # Every unit is hidden in some masks and visible in others.
    shares = units[:, :, 0, :, 0].mean(axis=0)
    assert shares.min() > 0.3
    assert shares.max() < 0.9


def test_a_grid_or_a_count_that_is_not_made_of_units_is_refused():
    with pytest.raises(ValueError, match="mask_unit=3; a 8x8 grid of patches is not made of"):
        num_masked_patches((8, 8), 0.5, unit=3)
    with pytest.raises(ValueError, match="num_masked=6 is not made of units of 2x2"):
        random_mask(jax.random.key(0), 2, (8, 8), 6, unit=2)


def test_simmim_hides_as_many_squares_as_its_authors():
    """Of 49 squares of 32 pixels, 60 % are 29.4; the authors take 30."""
    assert num_masked_patches((14, 14), 0.6, unit=2) == 120

"""Random resized crop: on the host against its definition, on the device against the host."""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from ddae_jax.data.augment import (
    Augmentation,
    Box,
    _random_box_on_device,
    augment_on_device,
    crop_and_resize_on_device,
    decoding_reduction,
    random_box,
    random_resized_crop,
)
from ddae_jax.data.images import Decoding, EncodedImage

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
sides = st.integers(1, 600)


def noise(height: int, width: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (height, width, 3), np.uint8)


def is_within(box: Box, width: int, height: int) -> bool:
    inside_x = 0 <= box.left <= box.left + box.width <= width
    inside_y = 0 <= box.top <= box.top + box.height <= height
    return inside_x and inside_y and box.width > 0 and box.height > 0


def has_area_and_aspect(box: Box, area: float, scale, ratio) -> bool:
    """Tells whether sides that round to the box's have an area and an aspect in the ranges."""
    least, most = np.array([box.width, box.height]) - 0.5, np.array([box.width, box.height]) + 0.5
    has_area = least.prod() <= area * scale[1] and most.prod() >= area * scale[0]
    return has_area and least[0] / most[1] <= ratio[1] and most[0] / least[1] >= ratio[0]


class TestRandomBox:
    @given(width=sides, height=sides, seed=st.integers(0, 2**32 - 1))
    def test_lies_inside_with_area_and_aspect_in_range_or_is_central(self, width, height, seed):
        box = random_box(np.random.default_rng(seed), width, height, SCALE, RATIO)
        assert is_within(box, width, height)
        central_width = max(min(width, round(height * RATIO[1])), 1)
        central_height = max(min(height, round(width / RATIO[0])), 1)
        is_central = (box.width, box.height) == (central_width, central_height)
        assert is_central or has_area_and_aspect(box, width * height, SCALE, RATIO)

    def test_one_pixel_wide_image_gets_the_largest_central_box(self):
        box = random_box(np.random.default_rng(0), 1, 50, (0.5, 1.0), RATIO)
        assert box == (0, 24, 1, 1)

    def test_area_share_is_uniform_on_a_large_image(self):
        """By a Kolmogorov-Smirnov test, with ratio 1 on a square image, so that every box fits."""
        rng = np.random.default_rng(0)
        boxes = [random_box(rng, 4000, 4000, SCALE, (1.0, 1.0)) for _ in range(2000)]
        shares = [box.width * box.height / 4000**2 for box in boxes]
        assert stats.kstest(shares, stats.uniform(0.2, 0.8).cdf).pvalue > 0.01


class TestRandomResizedCrop:
    def test_whole_image_at_its_own_size_is_the_identity(self):
        image = noise(32, 32)
        crop = random_resized_crop(
            Image.fromarray(image), np.random.default_rng(0), (32, 32), (1, 1), (1, 1), flip=False
        )
        np.testing.assert_array_equal(crop, image)

    def test_flips_half_of_the_images_and_all_of_one(self):
        image = noise(8, 8)
        rng = np.random.default_rng(0)
        crops = [
            random_resized_crop(Image.fromarray(image), rng, (8, 8), (1, 1), (1, 1))
            for _ in range(400)
        ]
        flipped = [np.array_equal(crop, image[:, ::-1]) for crop in crops]
        unchanged = [np.array_equal(crop, image) for crop in crops]
        assert all(one != other for one, other in zip(flipped, unchanged, strict=True))
        assert stats.binomtest(sum(flipped), 400, 0.5).pvalue > 0.01

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_flipped_crop_is_the_mirrored_crop(self, mode):
        image = Image.fromarray(noise(40, 50)).convert(mode)
        are_mirrored = []
        for seed in range(16):
            maybe, never = (
                random_resized_crop(image, np.random.default_rng(seed), (24, 17), flip=flip)
                for flip in (True, False)
            )
            are_mirrored.append(not np.array_equal(maybe, never))
            expected = never[:, ::-1] if are_mirrored[-1] else never
            np.testing.assert_array_equal(maybe, expected)
            assert maybe.shape == (24, 17, len(mode))
            assert maybe.flags.c_contiguous
        assert 0 < sum(are_mirrored) < 16

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("width", [1, 2, 37])
    def test_any_image_becomes_the_asked_shape(self, mode, width):
        image = Image.new(mode, (width, 50))
        crop = random_resized_crop(image, np.random.default_rng(0), (24, 16))
        assert crop.shape == (24, 16, len(mode))
        assert crop.dtype == np.uint8

    def test_same_generator_same_crop(self):
        image = Image.fromarray(noise(40, 50))
        first, again, other = (
            random_resized_crop(image, np.random.default_rng(seed), (16, 16)) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_jpeg_decoded_small_looks_like_decoded_whole(self):
        """Up to one level on average, as the two low-pass filters differ in details.

        A shift by one pixel would change more than ten levels.
        """
        smooth = ndimage.gaussian_filter(noise(603, 797).astype(float), (12, 12, 0)) - 127
        pixels = (smooth * 24 + 127).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        lazy = EncodedImage(buffer.getvalue, "smooth.jpg", Decoding())
        reductions = []
        decode = lazy.decode
        lazy.decode = lambda reduction=1: reductions.append(reduction) or decode(reduction)
        for seed in range(8):
            small, whole = (
                random_resized_crop(image, np.random.default_rng(seed), (64, 64))
                for image in (lazy, Image.open(io.BytesIO(buffer.getvalue())))
            )
            assert np.abs(small.astype(float) - whole).mean() < 1
        assert max(reductions) >= 4


class TestDecodingReduction:
    @given(width=sides, height=sides, out_width=sides, out_height=sides)
    def test_is_the_largest_that_leaves_the_part_at_least_as_large(
        self, width, height, out_width, out_height
    ):
        reduction = decoding_reduction((3, 4, 3 + width, 4 + height), (out_height, out_width))

        def is_enough(times: int) -> bool:
            return width / times >= out_width and height / times >= out_height

        assert is_enough(reduction) or reduction == 1
        assert not is_enough(reduction + 1)


class TestOnDevice:
    @pytest.mark.slow
    def test_whole_image_at_its_own_size_is_the_identity(self):
        image = noise(2, 32 * 32).reshape(2, 32, 32, 3)
        crops = augment_on_device(jax.random.key(0), image, (32, 32), (1, 1), (1, 1), flip=False)
        assert crops.dtype == jnp.float32
        np.testing.assert_allclose(crops, image, atol=1e-3)

    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def test_agrees_with_pillow_on_the_same_box(self, data):
        """Within 1.5 levels: Pillow rounds after each of its two passes.

        The kernel's negative lobes amplify the rounding. Values are in the middle of the range,
        since Pillow clips between the passes too.
        """
        height, width = 24, 32
        crop_width = data.draw(st.integers(1, width))
        crop_height = data.draw(st.integers(1, height))
        left = data.draw(st.integers(0, width - crop_width))
        top = data.draw(st.integers(0, height - crop_height))
        pixels = noise(height, width, 80, 176)
        expected = Image.fromarray(pixels).resize(
            (16, 12),
            Image.Resampling.BICUBIC,
            box=(left, top, left + crop_width, top + crop_height),
        )
        box = jnp.array([left, top, crop_width, crop_height])
        crop = jitted_crop(pixels, box)
        np.testing.assert_allclose(crop, np.asarray(expected).astype(float), atol=1.5)

    @pytest.mark.parametrize(("width", "height"), [(32, 32), (50, 20)])
    def test_boxes_are_distributed_as_on_the_host(self, width, height):
        """By a two-sample Kolmogorov-Smirnov test of each coordinate."""
        rng = np.random.default_rng(0)
        host = np.array([random_box(rng, width, height, SCALE, RATIO) for _ in range(4000)])
        keys = jax.random.split(jax.random.key(0), 4000)
        device = np.asarray(
            jax.vmap(lambda key: _random_box_on_device(key, width, height, SCALE, RATIO))(keys)
        )
        assert all(is_within(Box(*box), width, height) for box in device.tolist())
        for coordinate in range(4):
            test = stats.ks_2samp(host[:, coordinate], device[:, coordinate])
            assert test.pvalue > 0.01, Box._fields[coordinate]

    def test_one_pixel_wide_image_gets_the_central_box(self):
        box = _random_box_on_device(jax.random.key(0), 1, 50, (0.5, 1.0), RATIO)
        assert tuple(box.tolist()) == (0, 24, 1, 1)

    def test_deterministic_in_the_key_and_different_for_each_image(self):
        images = np.repeat(noise(32, 32)[None], 4, axis=0)
        first, again, other = (jitted_augment(jax.random.key(seed), images) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert not np.array_equal(first[0], first[1])

    def test_flips_half_of_the_images(self):
        images = np.repeat(noise(8, 8)[None], 400, axis=0)
        crops = jitted_identity(jax.random.key(0), images)
        flipped = np.abs(np.asarray(crops) - images[:, :, ::-1]).max((1, 2, 3)) < 1e-3
        unchanged = np.abs(np.asarray(crops) - images).max((1, 2, 3)) < 1e-3
        assert np.all(flipped != unchanged)
        assert stats.binomtest(int(flipped.sum()), 400, 0.5).pvalue > 0.01

    def test_stays_within_0_to_255(self):
        images = 255 * (noise(64, 1024) > 127).reshape(-1, 32, 32, 3)
        crops = jitted_augment(jax.random.key(0), images)
        assert crops.shape == (64, 16, 16, 3)
        assert float(crops.min()) == 0
        assert float(crops.max()) == 255
        assert math.isfinite(float(crops.sum()))


jitted_identity = jax.jit(
    lambda key, images: augment_on_device(key, images, images.shape[1:3], (1, 1), (1, 1))
)
jitted_crop = jax.jit(lambda image, box: crop_and_resize_on_device(image, box, (12, 16)))
jitted_augment = jax.jit(lambda key, images: augment_on_device(key, images, (16, 16)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 8)}, "image_size"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.2, 1.1)}, "crop_scale"),
        ({"crop_ratio": (0, 1)}, "crop_ratio"),
        ({"augment_in": "moon"}, "augment_in='moon'"),
    ],
)
def test_augmentation_refuses_sizes_and_ranges_that_make_no_crop(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**({"image_size": (8, 8)} | options))

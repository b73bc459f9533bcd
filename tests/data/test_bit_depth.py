"""Scaling of more than 8 bits to 8: the range of the values, and the warnings about it."""

import numpy as np
import pytest

from ddae_jax.data import warn_once
from ddae_jax.data.bit_depth import DeepImage, scaled_to_eight_bits

RAMP = np.linspace(0, 1, 4097)


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(warn_once, "_given", set())


def scaled(values, max_value=0.0, **header):
    return scaled_to_eight_bits(np.asarray(values), max_value, "an image", **header)


def expected(values, least, largest):
    share = (np.asarray(values, np.float64) - least) / (largest - least)
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


class TestRangeOfFloats:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize(("least", "largest"), [(0, 1), (0, 1.02), (-0.05, 1.05), (0, 2)])
    def test_some_overshoot_changes_nothing_between_0_and_1(self, dtype, least, largest):
        values = (least + RAMP * (largest - least)).astype(dtype)
        levels = scaled(values)
        np.testing.assert_array_equal(levels, expected(values, 0, 1))
        assert len(np.unique(levels)) == 256

    @pytest.mark.parametrize(
        ("least", "largest", "range_"),
        [
            (0, 200, (0, 255)),
            (-3, 254, (0, 255)),
            (100, 255, (0, 255)),
            (100, 256, (0, 256)),  # not from 100: a level more would change all
            (0, 3000, (0, 3000)),
            (-1, 1, (-1, 1)),
            (-20, 40, (-20, 40)),
        ],
    )
    def test_larger_floats_lie_from_0_to_255_or_to_their_largest_or_in_their_own_range(
        self, least, largest, range_
    ):
        values = least + RAMP * (largest - least)
        np.testing.assert_array_equal(scaled(values), expected(values, *range_))

    @pytest.mark.parametrize("largest", [1.0, 200.0])
    @pytest.mark.parametrize(
        ("no_value", "becomes"),
        [
            (-9999, 0),
            (-32768, 0),
            (-3.4028235e38, 0),
            (3.4028235e38, 0),
            (np.nan, 0),
            (-np.inf, 0),
            (np.inf, 255),
        ],
    )
    def test_numbers_that_are_no_values_change_no_other(self, no_value, becomes, largest, caplog):
        values = (RAMP * largest).astype(np.float32)
        values[7] = no_value
        want = expected(np.where(np.isfinite(values), values, 0), 0, 1 if largest == 1 else 255)
        want[7] = becomes
        np.testing.assert_array_equal(scaled(values), want)
        assert "an image has numbers that stand where nothing was measured" in caplog.text

    @pytest.mark.parametrize("no_value", [np.nan, np.inf, -9999.0])
    def test_numbers_that_are_no_values_change_no_other_in_a_given_range(self, no_value):
        values = np.array([no_value, 0.5, 1.0], np.float32)
        assert scaled(values, max_value=2.0).tolist()[1:] == [64, 128]

    def test_an_image_without_any_value_is_black(self):
        assert scaled(np.full((2, 2), np.nan, np.float32)).tolist() == [[0, 0], [0, 0]]

    def test_a_range_of_floats_that_may_be_wrong_is_warned_of(self, caplog):
        scaled(RAMP * 1.5)
        assert "an image has floats of up to 1.5: they are taken for values from 0 to 1" in (
            caplog.text
        )
        scaled(RAMP * 10)
        assert "floats of up to 10: they are taken for values from 0 to 255, and nearly" in (
            caplog.text
        )
        num_warnings = len(caplog.records)
        scaled(RAMP * 1.25)
        scaled(RAMP * 200)
        scaled(RAMP * 10, max_value=10.0)
        assert len(caplog.records) == num_warnings


class TestRangeOfWholeNumbers:
    @pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.uint64])
    def test_is_all_that_the_bits_of_the_largest_hold(self, dtype):
        values = np.arange(3000).astype(dtype)
        np.testing.assert_array_equal(scaled(values), expected(values, 0, 4095))

    def test_a_little_below_zero_is_black(self):
        values = np.arange(-5, 3000).astype(np.int16)
        np.testing.assert_array_equal(scaled(values), expected(values, 0, 4095))

    @pytest.mark.parametrize("no_value", [-9999, -32768])
    def test_numbers_that_are_no_values_change_no_other(self, no_value):
        values = np.arange(3000).astype(np.int16)
        values[0] = no_value
        np.testing.assert_array_equal(scaled(values), expected(values, 0, 4095))

    def test_the_number_that_the_file_names_as_no_value_is_black(self):
        values = np.array([0, 2000, 4095, 65535], np.uint16)
        assert scaled(values, no_value=65535.0).tolist() == [0, 125, 255, 0]
        assert scaled(values, 4095.0, no_value=65535.0).tolist() == [0, 125, 255, 0]

    def test_the_value_that_the_header_names_as_white_becomes_white(self):
        values = np.array([0, 500, 1000], np.uint16)
        assert scaled(values, white=1000.0).tolist() == [0, 128, 255]
        assert scaled(values, 2000.0, white=1000.0).tolist() == [0, 64, 128]
        # Runs from before the key existed have 65535: then the header counted.
        assert scaled(values, 65535.0, white=1000.0).tolist() == [0, 128, 255]

    @pytest.mark.parametrize("max_value", [0.0, 4095.0, 65535.0])
    def test_values_of_8_bits_and_booleans_keep_their_range(self, max_value):
        values = np.arange(256, dtype=np.uint8)
        np.testing.assert_array_equal(scaled(values, max_value), values)
        assert scaled([True, False], max_value).tolist() == [255, 0]


def test_premultiplied_colours_are_divided_before_they_are_scaled():
    colours, alpha = np.array([1000, 2000, 3000]), 32768
    image = DeepImage(
        np.array([[[*colours, alpha]]], np.uint16), "RGBA", is_premultiplied=True
    ).to_eight_bits(4095.0, "an image")
    opacity = alpha / 65535
    plain = np.clip(np.round(colours / opacity) / 4095 * 255, 0, 255).round()
    assert image.getpixel((0, 0)) == tuple(np.round(255 + (plain - 255) * opacity))

"""The view of evaluation: the same pixels as those of timm and transformers."""

import functools

import numpy as np
import pytest
from golden.make_view import SIZES, VIEWS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import golden_arrays
from ddae_jax.data.images import DecodedImage
from ddae_jax.data.view import INTERPOLATIONS, USUAL_VIEW, View

IMAGES = range(len(SIZES))
every_image = pytest.mark.parametrize("number", IMAGES)
every_view = pytest.mark.parametrize("view", range(len(VIEWS)), ids=lambda view: str(VIEWS[view]))


@functools.cache
def golden():
    return golden_arrays.load("view")[0]


def image_of(number):
    return Image.fromarray(golden()[f"image/{number}"])


def shown(number, view):
    size, *options = VIEWS[view]
    return View(*options).show(image_of(number), size).astype(int)


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@every_image
@every_view
def test_it_is_what_timm_shows_to_the_last_bit(number, view):
    np.testing.assert_array_equal(shown(number, view), golden()[f"timm/{number}/{view}"])


def test_all_images_and_kernels_are_among_them():
    assert {interpolation for _, _, interpolation, _ in VIEWS} == set(INTERPOLATIONS)
    assert len([name for name in golden() if "timm/" in name]) == len(SIZES) * len(VIEWS)


def test_a_processor_of_transformers_shows_the_same_or_begins_a_pixel_earlier():
    """Transformers rounds half a pixel down, where torchvision rounds to the even one."""
    arrays = {name: array for name, array in golden().items() if name.startswith("transformers/")}
    num_shifted = 0
    for name, theirs in arrays.items():
        number, view = map(int, name.split("/")[1:])
        (height, width), share, *_ = VIEWS[view]
        resized = [int(height / share) * side // min(SIZES[number]) for side in SIZES[number]]
        dx, dy = (
            (side - size) % 4 == 3 for side, size in zip(resized, (width, height), strict=True)
        )
        ours = shown(number, view)
        np.testing.assert_array_equal(
            theirs[dy:, dx:], ours[: height - dy, : width - dx], err_msg=name
        )
        num_shifted += dx or dy
    assert 0 < num_shifted < len(arrays)


def test_without_a_share_images_of_the_size_are_shown_whole_and_others_as_ever():
    image = Image.fromarray(noise(24, 40))
    np.testing.assert_array_equal(USUAL_VIEW.show(image, (24, 40)), np.asarray(image))
    assert (View(0.875).show(image, (24, 40)) != np.asarray(image)).any()
    for size in ((24, 24), (40, 24)):
        np.testing.assert_array_equal(USUAL_VIEW.show(image, size), View(0.875).show(image, size))


def test_256_to_224_is_the_middle_as_it_is():
    image = noise(256, 300)
    np.testing.assert_array_equal(
        View(0.875).show(Image.fromarray(image), (224, 224)), image[16:240, 38:262]
    )


def test_lazy_images_are_decoded():
    image = noise(30, 50)
    np.testing.assert_array_equal(
        USUAL_VIEW.show(DecodedImage(image), (8, 8)),
        USUAL_VIEW.show(Image.fromarray(image), (8, 8)),
    )


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    given=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    share=st.floats(0.3, 1) | st.just(0.0),
    mode=st.sampled_from(["center", "squash"]),
    is_grey=st.booleans(),
)
def test_any_image_becomes_the_asked_shape_and_nothing_is_padded(size, given, share, mode, is_grey):
    image = Image.new("L" if is_grey else "RGB", given, "white")
    pixels = View(share, mode=mode).show(image, size)
    assert pixels.shape == (*size, 1 if is_grey else 3)
    assert (pixels == 255).all()


def test_a_very_long_image_does_not_fill_the_memory():
    """Resized as a whole, it would take 16 TB."""
    rows = np.repeat(np.arange(256, dtype=np.uint8), 2**10)[:, None]
    pixels = View(0.875).show(Image.fromarray(rows), (224, 224))
    assert pixels.shape == (224, 224, 1)
    assert pixels.mean() == pytest.approx(127.5, abs=2)


def test_in_one_pass_the_pixels_are_the_same_but_for_rounding(monkeypatch):
    image = Image.fromarray(noise(37, 90))
    whole = View(0.8, "bilinear").show(image, (24, 24)).astype(int)
    monkeypatch.setattr("ddae_jax.data.view._MOST_RESIZED_PIXELS", 0)
    np.testing.assert_allclose(View(0.8, "bilinear").show(image, (24, 24)), whole, atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share=1.5; a share of the sides, from 0 to 1"),
        ({"share": float("nan")}, "share=nan"),
        ({"interpolation": "cubic"}, "interpolation='cubic'; known: bicubic, bilinear"),
        ({"mode": "border"}, "mode='border'; 'center' or 'squash'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        View(**options)

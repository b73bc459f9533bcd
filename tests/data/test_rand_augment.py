"""RandAugment: each operation against Pillow or NumPy by hand, and how operations are drawn."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ddae_jax.data import rand_augment as module
from ddae_jax.data.rand_augment import OPERATIONS, SIGNED, rand_augment

FILL = (10, 20, 30)


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((32, 24), Image.Resampling.BICUBIC)


def array(image):
    return np.asarray(image).astype(int)


def apply(name, image, strength):
    return array(OPERATIONS[name](image, strength, FILL[: len(image.getbands())]))


@pytest.mark.parametrize(
    ("name", "strength", "by_hand"),
    [
        ("autocontrast", 0.3, ImageOps.autocontrast),
        ("equalize", 0.3, ImageOps.equalize),
        ("invert", 0.3, lambda image: 255 - array(image)),
        ("posterize", 0.5, lambda image: array(image) & 0b11000000),
        ("posterize", 1.0, lambda image: 0 * array(image)),
        ("solarize", 0.5, lambda image: np.where(array(image) >= 128, 255 - array(image), image)),
        (
            "solarize_add",
            1.0,
            lambda image: np.where(array(image) < 128, array(image) + 110, array(image)),
        ),
        ("brightness", -0.5, lambda image: ImageEnhance.Brightness(image).enhance(0.55)),
        ("contrast", 0.5, lambda image: ImageEnhance.Contrast(image).enhance(1.45)),
        ("colour", -1.0, lambda image: ImageEnhance.Color(image).enhance(0.1)),
        ("sharpness", 1.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
        ("rotate", 0.5, lambda image: image.rotate(15, 3, fillcolor=FILL)),
    ],
)
def test_an_operation_by_hand(name, strength, by_hand, image):
    np.testing.assert_allclose(apply(name, image, strength), array(by_hand(image)), atol=1)


@pytest.mark.parametrize(("name", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_a_translation_moves_by_a_share_of_the_side(name, axis, image):
    side = array(image).shape[axis]
    changed = apply(name, image, 4 / (0.45 * side))
    moved = np.take(changed, range(side - 4), axis)
    np.testing.assert_allclose(moved, np.take(array(image), range(4, side), axis), atol=1)
    assert (np.take(changed, range(side - 4 + 1, side), axis) == FILL).all()


def test_a_shear_moves_rows_in_proportion_to_their_number(image):
    changed = apply("shear_x", image, 1.0)
    np.testing.assert_allclose(changed[10, :28], array(image)[10, 3:31], atol=60)
    assert np.abs(changed[0, 2:30] - array(image)[0, 2:30]).mean() < 15
    corner = changed[-1, -4:]  # the last row has moved by 0.3 * 24 pixels
    assert (corner == FILL).all()


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"autocontrast", "equalize", "invert"}))
def test_without_strength_next_to_nothing_happens(name, image):
    mask = 0b11110000 if name == "posterize" else 0b11111111
    expected = array(image) & mask
    np.testing.assert_allclose(apply(name, image, 0.0), expected, atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_size_and_mode_are_kept(mode, name, image):
    given = image.convert(mode)
    for strength in (-1.0, 1.0) if name in SIGNED else (0.0, 1.0):
        changed = OPERATIONS[name](given, strength, FILL)
        assert (changed.size, changed.mode) == (given.size, mode)


def drawn(monkeypatch, count=3000, **options):
    """Records the names and strengths of the operations that are applied."""
    done = []
    recording = {
        name: lambda image, strength, fill, name=name: done.append((name, strength)) or image
        for name in OPERATIONS
    }
    monkeypatch.setattr(module, "OPERATIONS", recording)
    rng = np.random.default_rng(0)
    for _ in range(count):
        rand_augment(Image.new("RGB", (4, 4)), rng, **options)
    return done


def test_operations_are_drawn_alike_and_done_half_of_the_time(monkeypatch):
    done = drawn(monkeypatch, num_operations=2, probability=0.5)
    assert abs(len(done) - 3000) < 5 * np.sqrt(1500)
    counts = collections.Counter(name for name, _ in done)
    assert counts.keys() == OPERATIONS.keys()
    assert max(abs(count - 200) for count in counts.values()) < 5 * np.sqrt(200)


@pytest.mark.slow
def test_strengths_are_drawn_around_the_magnitude_and_go_both_ways(monkeypatch):
    done = drawn(monkeypatch, magnitude=8.0, deviation=0.5, probability=1.0)
    strengths = np.array([strength for _, strength in done])
    signs = {name: {np.sign(s) for other, s in done if other == name} for name, _ in done}
    assert all(signs[name] == ({-1, 1} if name in SIGNED else {1}) for name in signs)
    assert abs(np.abs(strengths).mean() - 0.8) < 0.005
    assert abs(np.abs(strengths).std() - 0.05) < 0.005
    high = drawn(monkeypatch, magnitude=10.0, deviation=3.0, probability=1.0, count=300)
    assert max(abs(strength) for _, strength in high) == 1.0


def test_the_same_draws_give_the_same_image(image):
    first, again, other = (
        array(rand_augment(image, np.random.default_rng(seed), probability=1.0))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()

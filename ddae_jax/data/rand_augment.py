"""RandAugment: a few operations on an image, drawn from a table, each of about one strength."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MOST = 10.0
"""The largest magnitude."""

Fill = tuple[int, ...]
Operation = Callable[[Image.Image, float, Fill], Image.Image]
"""Takes an image, a strength and a fill, and returns the changed image; see ``OPERATIONS``."""


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_operations: int = 2,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    probability: float = 0.5,
    fill: Sequence[int] = (128, 128, 128),
) -> Image.Image:
    """Draws operations from ``OPERATIONS``, with repetition, and applies one after the other.

    Each operation's magnitude is drawn from a normal distribution and clipped to 0..``MOST``. The
    operations that have two directions (``SIGNED``) take each of them half of the time.

    Args:
        image: of mode ``L`` or ``RGB``; size and mode stay the same.
        rng: is drawn from.
        num_operations: how many are drawn.
        magnitude, deviation: mean and standard deviation of the magnitude.
        probability: that a drawn operation is applied.
        fill: a value for each channel, for parts that come into view from outside.

    Source: Cubuk et al. 2020, RandAugment; strengths that grow with the magnitude for all
    operations, and a magnitude with a deviation, as in the recipes of He et al. 2022 (table 9) and
    Bao et al. 2021.
    """
    names = tuple(OPERATIONS)
    for name in rng.choice(names, num_operations):
        is_done, sign = rng.random() < probability, rng.choice([-1.0, 1.0])
        strength = float(np.clip(rng.normal(magnitude, deviation), 0, MOST)) / MOST
        if is_done:
            signed = sign * strength if name in SIGNED else strength
            image = OPERATIONS[name](image, signed, tuple(fill))
    return image


def _autocontrast(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Rotates by up to 30 degrees."""
    fill_value = fill if image.mode == "RGB" else fill[0]
    return image.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=fill_value)


def _posterize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Keeps four bits at strength 0, and fewer down to none, which is black, at strength 1."""
    bits = 4 - int(4 * strength)
    if bits == 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


def _solarize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Inverts values from a threshold on, which falls from 256 to 0 with the strength."""
    return ImageOps.solarize(image, 256 - int(256 * strength))


def _solarize_add(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Adds up to 110 to values below 128."""
    added = int(110 * strength)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhanced_by(enhancer: Callable) -> Operation:
    """Returns the operation that enhances by a factor of 1 +- 0.9 at most, and at least 0.1."""

    def enhance(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + 0.9 * strength))

    return enhance


def _shear_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Shears rows by up to 0.3 of the height."""
    return _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Shears columns by up to 0.3 of the width."""
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill)


def _translate_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Translates by up to 0.45 of the width."""
    return _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill)


def _translate_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Translates by up to 0.45 of the height."""
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """Transforms an image by the first two rows of an affine matrix, from output to input."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=fill if image.mode == "RGB" else fill[0],
    )


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "autocontrast": _autocontrast,
        "equalize": _equalize,
        "invert": _invert,
        "rotate": _rotate,
        "posterize": _posterize,
        "solarize": _solarize,
        "solarize_add": _solarize_add,
        "colour": _enhanced_by(ImageEnhance.Color),
        "contrast": _enhanced_by(ImageEnhance.Contrast),
        "brightness": _enhanced_by(ImageEnhance.Brightness),
        "sharpness": _enhanced_by(ImageEnhance.Sharpness),
        "shear_x": _shear_x,
        "shear_y": _shear_y,
        "translate_x": _translate_x,
        "translate_y": _translate_y,
    }
)
"""The operations by name. Strengths lie in 0..1, or in -1..1 for those of ``SIGNED``.

``colour`` leaves grey images as they are; ``autocontrast``, ``equalize`` and ``invert`` ignore the
strength.
"""

SIGNED = frozenset({"rotate", "colour", "contrast", "brightness", "sharpness"}) | {
    f"{kind}_{axis}" for kind in ("shear", "translate") for axis in "xy"
}
"""Operations that have two directions, such as darker and brighter."""

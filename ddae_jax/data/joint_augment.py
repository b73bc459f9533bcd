"""Random scale, crop and flip of an image and its annotation, and distorted colours of the image.

The defaults are the recipe with which BEiT and MAE are fine-tuned on ADE20K. An image is scaled,
cropped and, if need be, shrunk while it is decoded, in one pass.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddae_jax.data.annotations import IGNORED, Labels, LazyAnnotation, check_same_size
from ddae_jax.data.augment import MakeRng, crop_and_resize
from ddae_jax.data.batches import Batch
from ddae_jax.data.images import LazyImage, Pixels
from ddae_jax.data.source_base import ExampleSource

_TRIES = 10
# Pillow's hues: a whole turn is 255 steps, as 0 and 255 are both red.
_HUES = 255
_LEVELS = np.arange(256)


class ScaledCrop(NamedTuple):
    """A crop of a scaled image, in pixels of the scaled image."""

    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int


def scaled_size(height: int, width: int, shorter: float, longer: float) -> tuple[int, int]:
    """Returns the (height, width) of an image scaled in proportion to the largest size allowed.

    Args:
        height, width: of the image, pixels.
        shorter, longer: the most that the shorter and the longer side may measure, pixels. One of
            them reaches its limit.
    """
    scale = min(shorter / min(height, width), longer / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def crop_labels(labels: Labels, crop: ScaledCrop) -> Labels:
    """Returns the labels of a crop, each that of the stored pixel in which its centre lies."""
    rows, columns = (
        np.minimum((first + np.arange(count) + 0.5) * (side / scaled_side), side - 1).astype(int)
        for first, count, side, scaled_side in (
            (crop.top, crop.height, labels.shape[0], crop.scaled_height),
            (crop.left, crop.width, labels.shape[1], crop.scaled_width),
        )
    )
    return labels[rows[:, None], columns]


def crop_pixels(image: Image.Image | LazyImage, crop: ScaledCrop) -> Pixels:
    """Returns the pixels of a crop, interpolated linearly, with a wider kernel when shrinking.

    Raises ``CorruptImage`` if the image cannot be decoded.
    """
    width, height = image.size
    x_step, y_step = width / crop.scaled_width, height / crop.scaled_height
    bounds = (
        crop.left * x_step,
        crop.top * y_step,
        min((crop.left + crop.width) * x_step, width),
        min((crop.top + crop.height) * y_step, height),
    )
    return crop_and_resize(image, bounds, (crop.height, crop.width), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Distortion:
    """Random brightness, contrast, saturation and hue, each changed half of the time.

    Contrast is changed before or after saturation and hue, by chance. Saturation and hue are
    changed in RGB images only.

    Args:
        brightness: up to so many of 255 levels are added or subtracted.
        contrast, saturation: range of the factor.
        hue: degrees by which colours are turned at most, either way. mmsegmentation's ``hue_delta``
            of 18 counts steps of two degrees, since OpenCV has 180 hues.

    Source: Howard 2013, "Some Improvements on Deep Convolutional Neural Network Based Image
    Classification", section 2.2; with these ranges Liu et al. 2016, SSD, and mmsegmentation.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Returns distorted pixels."""
        is_brighter, is_contrasted, is_saturated, is_turned, is_first = rng.random(5) < 0.5
        brightness = is_brighter * rng.uniform(-self.brightness, self.brightness)
        contrast = rng.uniform(*self.contrast) ** is_contrasted
        saturation = rng.uniform(*self.saturation) ** is_saturated
        hue = is_turned * rng.uniform(-self.hue, self.hue)
        pixels = change_levels(pixels, brightness, contrast if is_first else 1.0)
        pixels = change_colours(pixels, saturation, hue)
        return change_levels(pixels, 0.0, 1.0 if is_first else contrast)


def change_levels(pixels: Pixels, brightness: float, contrast: float) -> Pixels:
    """Returns ``(pixels + brightness) * contrast``, clipped to 0..255 after each of the two."""
    if brightness == 0 and contrast == 1:
        return pixels
    levels = (_LEVELS + brightness).clip(0, 255) * contrast
    return levels.clip(0, 255).round().astype(np.uint8)[pixels]


def change_colours(pixels: Pixels, saturation: float, hue: float) -> Pixels:
    """Multiplies the saturation and turns the hue by so many degrees, in HSV, of RGB images.

    Other images are returned as they are. Hue and saturation are rounded to 8 bits.
    """
    if pixels.shape[-1] != 3 or (saturation == 1 and hue == 0):
        return pixels
    hues = (_LEVELS + round(hue / 360 * _HUES)) % _HUES
    saturations = (_LEVELS * saturation).clip(0, 255).round().astype(int)
    table = [*hues.tolist(), *saturations.tolist(), *_LEVELS.tolist()]
    turned = Image.fromarray(pixels).convert("HSV").point(table)
    return np.asarray(turned.convert("RGB"))


@dataclass(frozen=True)
class JointAugmentation:
    """Random scale, crop, flip and distortion of a pair to a fixed size: an ``Augment`` of pairs.

    The image is scaled in proportion so that it fits into ``base_size`` times a random factor, and
    a random crop of it is taken. Where the scaled image is smaller than the crop, it is padded to
    the right and below. The annotation is treated alike, with the nearest label in place of
    interpolation.

    Args:
        crop_size: (height, width) of the result, pixels.
        base_size: the most that the shorter and the longer side may measure, before the factor.
        scale_range: range of the factor, drawn uniformly.
        max_class_share: a crop in which one class has a larger share of the pixels that are not
            ignored is drawn again, up to ten times. 1 takes any crop.
        flip: whether half of the pairs are mirrored left to right.
        distortion: of the image's colours; None for none.
        pad_colour: 0 to 255 for each channel; the default is ImageNet's mean.

    Raises:
        ValueError: for sizes and ranges that make no crop.

    Source: the defaults are mmsegmentation's pipeline ``Resize((2048, 512), ratio_range=(0.5,
    2))``, ``RandomCrop(cat_max_ratio=0.75)``, ``RandomFlip``, ``PhotoMetricDistortion``, ``Pad``,
    as the authors of BEiT (Bao et al. 2021) and MAE (He et al. 2022) use it on ADE20K.
    """

    crop_size: tuple[int, int] = (512, 512)
    base_size: tuple[int, int] = (512, 2048)
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: bool = True
    distortion: Distortion | None = field(default_factory=Distortion)
    pad_colour: tuple[int, ...] = (124, 116, 104)

    def __post_init__(self):
        if min(self.crop_size) < 1:
            raise ValueError(f"crop_size={self.crop_size}; (height, width), both at least 1")
        if not 1 <= self.base_size[0] <= self.base_size[1]:
            raise ValueError(f"base_size={self.base_size}; (shorter, longer) side, from 1 pixel on")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range={self.scale_range}; a range of factors above 0")
        if not 0 < self.max_class_share <= 1:
            raise ValueError(f"max_class_share={self.max_class_share}; a share within (0, 1]")

    def size_of(self, source: ExampleSource) -> tuple[int, int]:
        if len(self.pad_colour) != source.channels:
            raise ValueError(
                f"pad_colour={self.pad_colour}, but images of {source.channels} channels; one "
                "value for each"
            )
        return self.crop_size

    def num_bytes(self, image_size: tuple[int, int], channels: int) -> int:
        return math.prod(image_size) * (channels + 1)  # the annotation has a byte per pixel

    def __call__(self, opened: tuple[LazyImage, LazyAnnotation], make_rng: MakeRng) -> Batch:
        image, annotation = opened
        check_same_size(image, annotation)
        rng, labels = make_rng(), annotation.labels()
        crop = self._draw_crop(rng, labels)
        labels, pixels = crop_labels(labels, crop), crop_pixels(image, crop)
        if self.flip and rng.random() < 0.5:
            labels, pixels = labels[:, ::-1], pixels[:, ::-1]
        if self.distortion is not None:
            pixels = self.distortion(np.ascontiguousarray(pixels), rng)
        return self._padded(pixels, labels)

    def _draw_crop(self, rng: np.random.Generator, labels: Labels) -> ScaledCrop:
        """Draws a crop, again while one class has too large a share of it."""
        factor = rng.uniform(*self.scale_range)
        shorter, longer = (int(side * factor) for side in self.base_size)
        size = scaled_size(*labels.shape, max(shorter, 1), max(longer, 1))
        shape = [min(side, crop_side) for side, crop_side in zip(size, self.crop_size, strict=True)]
        for _ in range(_TRIES):
            corner = [int(rng.integers(s - c + 1)) for s, c in zip(size, shape, strict=True)]
            crop = ScaledCrop(*size, *corner, *shape)
            if self.max_class_share == 1 or self._is_varied(crop_labels(labels, crop)):
                break
        return crop

    def _is_varied(self, labels: Labels) -> bool:
        """Tells whether there is a class, and none has more than ``max_class_share``."""
        counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)[:IGNORED]
        return 0 < counts.max() <= self.max_class_share * counts.sum()

    def _padded(self, pixels: Pixels, labels: Labels) -> Batch:
        """Returns image and annotation, padded to the right and below to ``crop_size``."""
        height, width = labels.shape
        image = np.empty((*self.crop_size, pixels.shape[-1]), np.uint8)
        image[:] = self.pad_colour
        image[:height, :width] = pixels
        annotation = np.full(self.crop_size, IGNORED, np.uint8)
        annotation[:height, :width] = labels
        return {"image": image, "annotation": annotation}

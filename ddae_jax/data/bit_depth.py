"""Images of more than 8 bits, and how their values are scaled to 8 bits."""

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Num, UInt8
from PIL import Image

from ddae_jax.data.warn_once import warn_once

_log = logging.getLogger(__name__)

LARGEST_OF_16_BITS = 65535

_NO_VALUES = (-9999, -32768)
"""Numbers that programs write where nothing was measured, if the file names no other one."""

_NO_VALUE_FROM = 1e30
"""Floats of this size are no values: the limits of float types mark where nothing was measured."""

_LARGEST_FROM_0_TO_1 = 2.0
"""The largest float of an image that counts as 0 to 1; sharpening and resizing overshoot 1."""

_LEAST_SHARE = 0.1
"""Values less far below 0 than this share of the largest one are undershoot, and are clipped."""

_DARK = 32.0
"""Images of floats that lie below it, taken as 0 to 255, keep few of their levels."""


@dataclass(frozen=True)
class DeepImage:
    """An image of more than 8 bits, with the values that its file holds.

    Args:
        values: of shape (height, width, channel).
        mode: Pillow's name of the channels: ``L``, ``LA``, ``RGB``, ``RGBA`` or ``CMYK``.
        opaque: the value of ``A`` of fully opaque pixels.
        is_premultiplied: whether colours are stored multiplied by their opacity.
        white: the largest value by the file's header; 0 if it names none, or the limit of the type.
        is_inverted: whether 0 is white, as in some X-ray images.
        no_value: the number that stands where nothing was measured, if the file names one.
        transparent: the colour that is transparent, if there is one.
    """

    values: Num[np.ndarray, "height width channel"]
    mode: str
    opaque: float = LARGEST_OF_16_BITS
    is_premultiplied: bool = False
    white: float = 0.0
    is_inverted: bool = False
    no_value: float | None = None
    transparent: tuple[int, ...] | None = None

    def to_eight_bits(self, max_value: float, name: str) -> Image.Image:
        """Returns the image scaled to 8 bits, laid on white where it is transparent.

        Args:
            max_value: see ``ddae_jax.data.images.Decoding``.
            name: the image's name, for warnings.

        Returns:
            An image of mode ``L``, ``RGB`` or ``CMYK``.
        """
        colours = self.values[..., :-1] if self.mode.endswith("A") else self.values
        opacity = self._opacity(colours)
        if self.is_premultiplied and opacity is not None:
            colours = _divided(colours, opacity)
        pixels = scaled_to_eight_bits(colours, max_value, name, self.white, self.no_value)
        if self.is_inverted:
            pixels = 255 - pixels
        if opacity is not None:
            pixels = np.array(pixels)  # a copy: values of 8 bits are not scaled, but the file's own
            for channel in np.moveaxis(pixels, -1, 0):  # one by one, to save memory
                channel[...] = (255 + (channel - 255.0) * opacity).round()
        height, width, _ = pixels.shape
        mode = self.mode.removesuffix("A")
        return Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())

    def _opacity(
        self, colours: Num[np.ndarray, "height width channel"]
    ) -> Float64[np.ndarray, "height width"] | Bool[np.ndarray, "height width"] | None:
        """Returns the opacity of each pixel, from 0 to 1; None if all are opaque."""
        if self.mode.endswith("A"):
            opacity = np.nan_to_num(self.values[..., -1].astype(np.float64) / self.opaque)
            return opacity.clip(0, 1)
        if self.transparent is not None:
            return (colours != self.transparent).any(axis=-1)
        return None


def _divided(
    colours: Num[np.ndarray, "height width channel"], opacity: Float64[np.ndarray, "height width"]
) -> Num[np.ndarray, "height width channel"]:
    """Divides premultiplied colours by their opacity."""
    divided = np.empty_like(colours)
    channels = (np.moveaxis(a, -1, 0) for a in (divided, colours))
    for target, channel in zip(*channels, strict=True):
        quotient = channel / np.where(opacity > 0, opacity, 1)
        if colours.dtype.kind != "f":
            limits = np.iinfo(colours.dtype)
            quotient = quotient.round().clip(limits.min, limits.max)
        target[...] = quotient
    return divided


def scaled_to_eight_bits(
    values: Num[np.ndarray, "*shape"],
    max_value: float,
    name: str,
    white: float = 0.0,
    no_value: float | None = None,
) -> UInt8[np.ndarray, "*shape"]:
    """Scales values to 0..255; see ``ddae_jax.data.images.Decoding`` for the rules.

    Args:
        values: of one image, of their type in the file. Those of 8 bits are returned as they are.
        max_value: the value that becomes 255; 0 takes it from the header or from the values.
        name: the image's name, for warnings.
        white, no_value: see ``DeepImage``.
    """
    if values.dtype == np.uint8 and white in (0, 255):
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    # Runs from before data.max_value existed have 65535 here: they went by the header if it says.
    if max_value and not (white and max_value == LARGEST_OF_16_BITS):
        least, largest = 0.0, max_value
    else:
        least, largest = _range_of(values, white, no_value, name)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        # By a table, as the floats of a large image would take much memory.
        levels = np.arange(int(values.max()) + 1)
        return _scaled(levels, least, largest, no_value)[values]
    return _scaled(values, least, largest, no_value)


def _scaled(
    values: Num[np.ndarray, "*shape"], least: float, largest: float, no_value: float | None
) -> UInt8[np.ndarray, "*shape"]:
    """Maps ``least``..``largest`` to 0..255 and clips the rest; what is no value becomes 0."""
    scaled = values.astype(np.float64)  # changed in place below, to save memory
    if no_value is not None:
        scaled[values == no_value] = least
    scaled[np.isnan(scaled)] = least
    scaled[np.isfinite(scaled) & (scaled >= _NO_VALUE_FROM)] = least
    np.clip(scaled, least, largest, out=scaled)
    scaled -= least
    scaled *= 255 / (largest - least)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _range_of(
    values: Num[np.ndarray, "*shape"], white: float, no_value: float | None, name: str
) -> tuple[float, float]:
    """Returns the values that become 0 and 255, by the header or by the values themselves.

    The rules are those of ``ddae_jax.data.images.Decoding``.
    """
    if white:
        return 0.0, white
    are_whole = values.dtype.kind != "f"
    least, largest = _extremes(values, no_value, name)
    if least < -_LEAST_SHARE * max(largest, 0.0):
        limits = least, max(largest, least + 1)
    elif are_whole:
        limits = 0.0, max(255.0, 2.0 ** int(largest).bit_length() - 1)
    elif largest <= 255:
        limits = 0.0, 1.0 if largest <= _LARGEST_FROM_0_TO_1 else 255.0
        _warn_of_floats(name, largest)
    else:
        limits = 0.0, largest
    warn_once(
        _log,
        "scaling",
        "images of more than 8 bits are scaled to 8, each by its own range: %s from %g to %g. "
        "data.max_value sets what becomes white in all of them, such as 4095 for 12 bits",
        name,
        *limits,
    )
    return limits


def _extremes(
    values: Num[np.ndarray, "*shape"], no_value: float | None, name: str
) -> tuple[float, float]:
    """Returns the least and the largest number that is a value; 0 and 1 if none is."""

    def are_values(numbers: Num[np.ndarray, "*numbers"]) -> Bool[np.ndarray, "*numbers"]:
        are = np.isfinite(numbers) & (abs(numbers) < _NO_VALUE_FROM)
        for mark in (*_NO_VALUES, no_value):
            are &= True if mark is None else numbers != mark
        return are

    ends = np.array([values.min(), values.max()])
    if not are_values(ends).all():  # marks between the ends do not change the range
        warn_once(
            _log,
            "no value",
            "%s has numbers that stand where nothing was measured, such as NaN or -9999, or "
            "infinite ones: they are left out of its range. data.max_value sets a range for all",
            name,
        )
        values = values[are_values(values)]
        ends = np.array([values.min(), values.max()]) if values.size else np.array([0, 1])
    return float(ends[0]), float(ends[1])


def _warn_of_floats(name: str, largest: float) -> None:
    """Warns of the range that floats are taken to have, where that may be wrong."""
    if 1 < largest <= _LARGEST_FROM_0_TO_1:
        warn_once(
            _log,
            "above 1",
            "%s has floats of up to %g: they are taken for values from 0 to 1, and what is above "
            "becomes white. data.max_value sets what becomes white in all images",
            name,
            largest,
        )
    elif _LARGEST_FROM_0_TO_1 < largest < _DARK:
        warn_once(
            _log,
            "dark",
            "%s has floats of up to %g: they are taken for values from 0 to 255, and nearly all "
            "levels are lost. data.max_value sets what becomes white in all images",
            name,
            largest,
        )

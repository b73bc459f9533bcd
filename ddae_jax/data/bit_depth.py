"""Values of more than 8 bits: what an image of them is, and how they become values of 8 bits."""

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Num, UInt8
from PIL import Image

from ddae_jax.data.warn_once import warn_once

_log = logging.getLogger(__name__)

LARGEST_OF_16_BITS = 65535

_NO_VALUES = (-9999, -32768)
"""What programs write where nothing was measured, if the file says no other number for it."""

_NO_VALUE_FROM = 1e30
"""Larger than any value: the limits of the types of floats stand where nothing was measured."""

_LARGEST_FROM_0_TO_1 = 2.0
"""Of floats that lie from 0 to 1 but for some overshoot, as sharpening and resizing leave it."""

_LEAST_SHARE = 0.1
"""Of the largest value: so far below 0 values are an undershoot, and no range of their own."""


_DARK = 32.0
"""Floats below it have few of the levels that they have if they lie from 0 to 255."""


@dataclass(frozen=True)
class DeepImage:
    """An image of more than 8 bits, by the values that its file holds.

    **Arguments:**

    - `values`: of shape (height, width, channel).
    - `mode`: what the channels are, as Pillow calls them: `L`, `LA`, `RGB`, `RGBA` or `CMYK`.
    - `opaque`: the value of `A` of pixels that nothing shines through.
    - `is_premultiplied`: whether colours are stored multiplied by their opacity.
    - `white`: the largest value by the file's header; 0 if it says none, or what its type holds.
    - `is_inverted`: whether 0 is white, as in some X-ray images.
    - `no_value`: the number that stands where nothing was measured, if the file names one.
    - `transparent`: the colour that is transparent, if there is one.
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
        """Scales it to 8 bits, in mode `L`, `RGB` or `CMYK`; on white where it is transparent.

        **Arguments:**

        - `max_value`: see `ddae_jax.data.images.Decoding`.
        - `name`: of the image, for warnings.
        """
        colours = self.values[..., :-1] if self.mode.endswith("A") else self.values
        opacity = self._opacity(colours)
        if self.is_premultiplied and opacity is not None:
            colours = _divided(colours, opacity)
        pixels = scaled_to_eight_bits(colours, max_value, name, self.white, self.no_value)
        if self.is_inverted:
            pixels = 255 - pixels
        if opacity is not None:
            pixels = np.array(pixels)  # of 8 bits they may still be the file's
            for channel in np.moveaxis(pixels, -1, 0):  # all at once would fill the memory
                channel[...] = (255 + (channel - 255.0) * opacity).round()
        height, width, _ = pixels.shape
        mode = self.mode.removesuffix("A")
        return Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())

    def _opacity(
        self, colours: Num[np.ndarray, "height width channel"]
    ) -> Float64[np.ndarray, "height width"] | Bool[np.ndarray, "height width"] | None:
        """How opaque each pixel is, from 0 to 1; None if all of them are."""
        if self.mode.endswith("A"):
            opacity = np.nan_to_num(self.values[..., -1].astype(np.float64) / self.opaque)
            return opacity.clip(0, 1)
        if self.transparent is not None:
            return (colours != self.transparent).any(axis=-1)
        return None


def _divided(
    colours: Num[np.ndarray, "height width channel"], opacity: Float64[np.ndarray, "height width"]
) -> Num[np.ndarray, "height width channel"]:
    """Divides colours by their opacity, as they were before they were multiplied by it."""
    divided = np.empty_like(colours)
    for channel, of_it in zip(*(np.moveaxis(a, -1, 0) for a in (divided, colours)), strict=True):
        whole = of_it / np.where(opacity > 0, opacity, 1)
        if colours.dtype.kind != "f":
            limits = np.iinfo(colours.dtype)
            whole = whole.round().clip(limits.min, limits.max)
        channel[...] = whole
    return divided


def scaled_to_eight_bits(
    values: Num[np.ndarray, "*shape"],
    max_value: float,
    name: str,
    white: float = 0.0,
    no_value: float | None = None,
) -> UInt8[np.ndarray, "*shape"]:
    """Values scaled to 0..255; those of 8 bits as they are. See `ddae_jax.data.images.Decoding`.

    **Arguments:**

    - `values`: of one image, of the type that they have in its file.
    - `max_value`: what becomes 255, or 0 to go by the header or the values.
    - `name`: of the image, for warnings.
    - `white`, `no_value`: see `DeepImage`.
    """
    if values.dtype == np.uint8 and white in (0, 255):
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    # What 16 bits hold is what was white before there was a key: there the header counted.
    if max_value and not (white and max_value == LARGEST_OF_16_BITS):
        least, largest = 0.0, max_value
    else:
        least, largest = _range_of(values, white, no_value, name)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        # By a table: a large image would fill the memory as floats.
        levels = np.arange(int(values.max()) + 1)
        return _scaled(levels, least, largest, no_value)[values]
    return _scaled(values, least, largest, no_value)


def _scaled(
    values: Num[np.ndarray, "*shape"], least: float, largest: float, no_value: float | None
) -> UInt8[np.ndarray, "*shape"]:
    """Spreads values over 0..255; what is no value becomes 0."""
    scaled = values.astype(np.float64)  # all that follows is done in this memory
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
    """What becomes 0 and 255, by the header or the values; see `ddae_jax.data.images.Decoding`."""
    if white:
        return 0.0, white
    are_whole = values.dtype.kind != "f"
    least, largest = _extremes(values, no_value, name)
    if least < -_LEAST_SHARE * max(largest, 0.0):
        found = least, max(largest, least + 1)
    elif are_whole:
        found = 0.0, max(255.0, 2.0 ** int(largest).bit_length() - 1)
    elif largest <= 255:
        found = 0.0, 1.0 if largest <= _LARGEST_FROM_0_TO_1 else 255.0
        _warn_of_floats(name, largest)
    else:
        found = 0.0, largest
    warn_once(
        _log,
        "scaling",
        "images of more than 8 bits are scaled to 8, each by its own range: %s from %g to %g. "
        "data.max_value sets what becomes white in all of them, such as 4095 for 12 bits",
        name,
        *found,
    )
    return found


def _extremes(
    values: Num[np.ndarray, "*shape"], no_value: float | None, name: str
) -> tuple[float, float]:
    """The least and the largest of what is a value; 0 and 1 if nothing is."""

    def are_values(found: Num[np.ndarray, "*found"]) -> Bool[np.ndarray, "*found"]:
        are = np.isfinite(found) & (abs(found) < _NO_VALUE_FROM)
        for no in (*_NO_VALUES, no_value):
            are &= True if no is None else found != no
        return are

    ends = np.array([values.min(), values.max()])
    if not are_values(ends).all():  # what lies between them does not matter
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
    """Says what floats are taken for where that may be wrong."""
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

"""Images of any number of channels, as one grey Pillow image for each channel."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image


class Channels:
    """An image of several channels of 8 bits with the methods of ``PIL.Image.Image`` used here.

    Pillow itself has no images of, say, 5 channels.

    Args:
        channels: Pillow images of mode ``L`` and one size.
    """

    def __init__(self, channels: Sequence[Image.Image]):
        self._channels = tuple(channels)

    @classmethod
    def from_pixels(cls, pixels: UInt8[np.ndarray, "height width channel"]) -> Self:
        """Makes an image of an array of pixels."""
        return cls([Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(pixels, -1, 0)])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self._channels[0].size

    @property
    def width(self) -> int:
        """Pixels per row."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Pixels per column."""
        return self.size[1]

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        box: tuple[float, float, float, float] | None = None,
    ) -> Self:
        """Resizes each channel as ``PIL.Image.Image.resize`` does."""
        return type(self)([channel.resize(size, resample, box) for channel in self._channels])

    def crop(self, box: tuple[int, int, int, int]) -> Self:
        """Crops each channel as ``PIL.Image.Image.crop`` does."""
        return type(self)([channel.crop(box) for channel in self._channels])

    def transpose(self, method: Image.Transpose) -> Self:
        """Turns or mirrors each channel as ``PIL.Image.Image.transpose`` does."""
        return type(self)([channel.transpose(method) for channel in self._channels])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack([np.asarray(channel) for channel in self._channels], axis=-1, dtype=dtype)

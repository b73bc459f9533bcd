"""How evaluation cuts images: resized to whole pixels, then cropped in the middle.

The pixels are the same as those of the transforms ``Resize`` and ``CenterCrop`` of timm and
torchvision.
"""

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ddae_jax.data.channels import Channels
from ddae_jax.data.images import LazyImage, Pixels, to_pixels

USUAL_SHARE = 0.875
"""224 of 256 pixels, the share that is used throughout the field."""

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest")
"""Pillow's kernels, by the names that timm has for them."""

# A resized image may have so many pixels before it is cropped; else both are done in one pass.
_MOST_RESIZED_PIXELS = 2**25


@dataclass(frozen=True)
class View:
    """The way in which evaluation cuts images to the size that an encoder sees.

    Args:
        share: the part of the resized image's sides, in the middle, that is shown. 0 shows all of
            an image that already has the size, and ``USUAL_SHARE`` of any other one.
        interpolation: one of ``INTERPOLATIONS``; kernels are widened when shrinking.
        mode: "center" resizes in proportion, to the smallest image that holds the crop; "squash"
            stretches the image to the aspect ratio of the size.

    Raises:
        ValueError: if one of them is out of range or unknown.
    """

    share: float = 0.0
    interpolation: str = "bicubic"
    mode: Literal["center", "squash"] = "center"

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}; a share of the sides, from 0 to 1")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation={self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}"
            )
        if self.mode not in ("center", "squash"):
            raise ValueError(f"mode={self.mode!r}; 'center' or 'squash'")

    def show(self, image: Image.Image | Channels | LazyImage, size: tuple[int, int]) -> Pixels:
        """Cuts an image to a size.

        Args:
            image: of mode ``L`` or ``RGB``, or of several channels.
            size: (height, width) of the result, pixels.

        Returns:
            uint8[height, width, channel].

        Raises:
            CorruptImage: if the image cannot be decoded.
        """
        decoded = image if isinstance(image, Image.Image | Channels) else image.decode()
        height, width = size
        if not self.share and decoded.size == (width, height):
            return to_pixels(decoded)
        resized = self._resized(decoded.size, size)
        left, top = (
            round((side - shown) / 2) for side, shown in zip(resized, (width, height), strict=True)
        )
        box = (left, top, left + width, top + height)
        kernel = Image.Resampling[self.interpolation.upper()]
        if math.prod(resized) <= _MOST_RESIZED_PIXELS:
            return to_pixels(decoded.resize(resized, kernel).crop(box))
        # In one pass, as a very long image would fill the memory. The pixels are nearly the same:
        # Pillow rounds the box to float32.
        back = [old / new for old, new in zip(decoded.size, resized, strict=True)] * 2
        source = tuple(edge * scale for edge, scale in zip(box, back, strict=True))
        return to_pixels(decoded.resize((width, height), kernel, box=source))

    def _resized(self, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (width, height) to which an image of such a (width, height) is resized.

        ``size`` is the (height, width) of the crop.
        """
        least_height, least_width = (
            math.floor(side / (self.share or USUAL_SHARE)) for side in size
        )
        if self.mode == "squash":
            return least_width, least_height
        width, height = image_size
        if least_width == least_height:  # torchvision's Resize of the shorter side
            shorter = min(width, height)
            return least_width * width // shorter, least_height * height // shorter
        scale = min(width / least_width, height / least_height)  # timm's ResizeKeepRatio
        return round(width / scale), round(height / scale)


USUAL_VIEW = View()
"""The view that is usual for photographs, and all of images that already have the size."""

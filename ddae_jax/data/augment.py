"""Random resized crop and flip: on the host with Pillow, or on the device with JAX.

Both draw boxes as Inception and torchvision's ``RandomResizedCrop`` do: ten tries at a box of
random area and aspect ratio, then the largest central box within the ratio's range. Both resize
that box in one pass with Keys's cubic kernel (a = -0.5), widened when shrinking. The kernel reads a
few pixels beyond the box where the image has them. ``Augmentation`` does the one, or prepares for
the other, in a loader.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8
from PIL import Image

from ddae_jax.data.batches import Batch
from ddae_jax.data.channels import Channels
from ddae_jax.data.images import LazyImage, Pixels, to_image, to_pixels
from ddae_jax.data.source_base import ExampleSource
from ddae_jax.data.uniform_size import one_size

_TRIES = 10

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]
MakeRng = Callable[[], np.random.Generator]
"""Makes the random generator of an example. It takes as long as opening a small image."""


class Box(NamedTuple):
    """A part of an image, in pixels of the image."""

    left: int
    top: int
    width: int
    height: int


def random_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws a crop of an image of ``width`` x ``height`` pixels.

    Args:
        rng: is drawn from.
        width, height: of the image, pixels.
        scale: range of the crop's share of the image's area, drawn uniformly.
        ratio: range of the crop's width / height, drawn uniformly in the logarithm.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return Box(left, top, crop_width, crop_height)
    return _central_box(width, height, ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """Returns the largest box in the middle of an image whose width / height is within a range."""
    crop_width = max(min(width, round(height * ratio[1])), 1)
    crop_height = max(min(height, round(width / ratio[0])), 1)
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def random_resized_crop(
    image: Image.Image | Channels | LazyImage,
    rng: np.random.Generator,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Pixels:
    """Crops a random box, resizes it to ``size`` and mirrors it left to right half of the time.

    A JPEG that is not decoded yet is decoded at a half, a quarter or an eighth of its size where
    the crop remains at least as large as ``size``.

    Args:
        image: of mode ``L`` or ``RGB``, or of several channels.
        rng: is drawn from.
        size: (height, width) of the result, pixels.
        scale, ratio: see ``random_box``.
        flip: whether it is mirrored at all.

    Returns:
        uint8[height, width, channel].

    Raises:
        CorruptImage: if the image cannot be decoded.
    """
    width, height = image.size
    box = random_box(rng, width, height, scale, ratio)
    is_flipped = flip and rng.random() < 0.5
    bounds = (box.left, box.top, box.left + box.width, box.top + box.height)
    crop = _crop_and_resize(image, bounds, size)
    # Pillow mirrors whole pixels, which is several times faster than NumPy's copy by bytes.
    return to_pixels(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else crop)


def crop_and_resize(
    image: Image.Image | Channels | LazyImage,
    bounds: tuple[float, float, float, float],
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Pixels:
    """Resizes a part of an image in one pass, decoding a JPEG as small as the result allows.

    Args:
        image: of mode ``L`` or ``RGB``, or of several channels.
        bounds: left, top, right and bottom, in pixels of the whole image.
        size: (height, width) of the result, pixels.
        resampling: the kernel, widened when shrinking.

    Returns:
        uint8[height, width, channel].

    Raises:
        CorruptImage: if the image cannot be decoded.
    """
    return to_pixels(_crop_and_resize(image, bounds, size, resampling))


def decoding_reduction(bounds: tuple[float, float, float, float], size: tuple[int, int]) -> int:
    """Returns how many times smaller an image may be decoded for a part to be as large as ``size``.

    Args:
        bounds: left, top, right and bottom of the part, in pixels of the whole image.
        size: (height, width) that the part needs at least, pixels.
    """
    left, top, right, bottom = bounds
    return max(int(min((bottom - top) // size[0], (right - left) // size[1])), 1)


def _crop_and_resize(
    image: Image.Image | Channels | LazyImage,
    bounds: tuple[float, float, float, float],
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image | Channels:
    """Does what ``crop_and_resize`` does, but returns an image."""
    width, _ = image.size
    decoded = _decode(image, decoding_reduction(bounds, size))
    # JPEG is shrunk by a power of two, and its sides are rounded up: the last pixel may be partial.
    shrunk = 2 ** math.ceil(math.log2(width / decoded.width))
    size_in_pillow = size[1], size[0]
    return decoded.resize(size_in_pillow, resampling, box=tuple(edge / shrunk for edge in bounds))


def _decode(
    image: Image.Image | Channels | LazyImage, reduction: int = 1
) -> Image.Image | Channels:
    return image if isinstance(image, Image.Image | Channels) else image.decode(reduction)


# ---- a training example, on the host


class Augment(Protocol):
    """Protocol of augmentations, which turn an opened example into the arrays of a training one.

    They are pickled to worker processes.
    """

    def size_of(self, source: ExampleSource) -> tuple[int, int]:
        """Returns the (height, width) of every image made of those of a source.

        Raises ``ValueError`` if they would differ.
        """

    def num_bytes(self, image_size: tuple[int, int], channels: int) -> int:
        """Returns the bytes of one example whose image has this (height, width) and channels."""

    def __call__(self, opened: Any, make_rng: MakeRng) -> Batch:
        """Returns the arrays of one example, among them "image". Raises ``CorruptImage``."""


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and flip of labelled images: an ``Augment``.

    Args:
        image_size: (height, width) that the model sees, pixels.
        crop_scale: range of the crop's share of the image's area.
        crop_ratio: range of the crop's width / height.
        flip: whether half of the crops are mirrored left to right.
        augment_in: "workers" crops on the host. With "device" the loader hands out the source's
            images as they are, and the training step calls ``augment_on_device``.
        transform: a further change of each crop on the host, ``(image, rng) -> image``. It is
            pickled to worker processes.

    Raises:
        ValueError: for sizes and ranges that make no crop.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    augment_in: Literal["workers", "device"] = "workers"
    transform: Transform | None = None

    def __post_init__(self):
        if min(self.image_size) < 1:
            raise ValueError(f"image_size={self.image_size}; (height, width), both at least 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={self.crop_scale}; a range of shares within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio={self.crop_ratio}; a range of width / height above 0")
        if self.augment_in not in ("workers", "device"):
            raise ValueError(f"augment_in={self.augment_in!r}; 'workers' or 'device'")

    def size_of(self, source: ExampleSource) -> tuple[int, int]:
        if self.augment_in == "workers":
            return self.image_size
        return one_size(source)

    def num_bytes(self, image_size: tuple[int, int], channels: int) -> int:
        return math.prod(image_size) * channels

    def __call__(self, opened: tuple[LazyImage, int], make_rng: MakeRng) -> Batch:
        image, label = opened
        return {"image": self._pixels(image, make_rng), "label": np.int32(label)}

    def _pixels(self, image: LazyImage, make_rng: MakeRng) -> Pixels:
        """Returns the crop of an image, or all of it where the device crops."""
        if self.augment_in == "device":
            return image.pixels()
        rng = make_rng()
        pixels = random_resized_crop(
            image, rng, self.image_size, self.crop_scale, self.crop_ratio, self.flip
        )
        if self.transform is None:
            return pixels
        return to_pixels(self.transform(to_image(pixels), rng))


# ---- on the device


def augment_on_device(
    key: PRNGKeyArray,
    images: UInt8[Array, "batch in_height in_width channel"],
    size: tuple[int, int],
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Float[Array, "batch height width channel"]:
    """Does what ``random_resized_crop`` does to a batch, inside ``jax.jit``.

    All arguments but ``key`` and ``images`` are static.

    Args:
        key: one key; the same key and images give the same result.
        images: of one size.
        size: (height, width) of the result, pixels.
        scale, ratio: see ``random_box``.
        flip: whether half of the crops are mirrored left to right.

    Returns:
        float32[batch, height, width, channel] in 0..255.
    """

    def augment(key: PRNGKeyArray, image: UInt8[Array, "in_height in_width channel"]) -> Array:
        box_key, flip_key = jax.random.split(key)
        height, width, _ = image.shape
        box = _random_box_on_device(box_key, width, height, scale, ratio)
        crop = crop_and_resize_on_device(image, box, size)
        is_flipped = flip & jax.random.bernoulli(flip_key)
        return jnp.where(is_flipped, crop[:, ::-1], crop)

    return jax.vmap(augment)(jax.random.split(key, len(images)), images)


def crop_and_resize_on_device(
    image: UInt8[Array, "in_height in_width channel"],
    box: Int[Array, "4"],
    size: tuple[int, int],
) -> Float[Array, "height width channel"]:
    """Resizes a box of an image to ``size``, inside ``jax.jit``.

    Args:
        image: the whole image.
        box: left, top, width and height in pixels, as in ``Box``; may be traced.
        size: (height, width) of the result, pixels; static.

    Returns:
        float32[height, width, channel] in 0..255.
    """
    left, top, crop_width, crop_height = box
    zoom = jnp.stack([size[0] / crop_height, size[1] / crop_width])
    crop = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        (*size, image.shape[-1]),
        spatial_dims=(0, 1),
        scale=zoom,
        translation=-jnp.stack([top, left]) * zoom,
        method="cubic",
        antialias=True,
    )
    return crop.clip(0, 255)


def _random_box_on_device(
    key: PRNGKeyArray,
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int[Array, "4"]:
    """Does what ``random_box`` does without a loop: draws all tries and takes the first that fits.

    Returns left, top, width and height.
    """
    area_key, aspect_key, left_key, top_key = jax.random.split(key, 4)
    uniform: Callable[..., Float[Array, " tries"]] = jax.random.uniform
    area = width * height * uniform(area_key, (_TRIES,), minval=scale[0], maxval=scale[1])
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(uniform(aspect_key, (_TRIES,), minval=log_ratio[0], maxval=log_ratio[1]))
    crop_width = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    crop_height = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits: Bool[Array, " tries"] = (
        (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    )
    first = jnp.argmax(fits)
    crop_width, crop_height = crop_width[first], crop_height[first]
    left = jax.random.randint(left_key, (), 0, width - crop_width + 1)
    top = jax.random.randint(top_key, (), 0, height - crop_height + 1)
    drawn = jnp.stack([left, top, crop_width, crop_height])
    return jnp.where(fits[first], drawn, jnp.array(_central_box(width, height, ratio)))

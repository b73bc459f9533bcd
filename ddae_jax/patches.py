"""Conversion between images and sequences of patches. Pure functions on arrays."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

Grid = tuple[int, int]
"""Rows and columns of patches, ``(h, w)``. The ``N = h * w`` patches are counted row by row."""


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """Returns the patch grid ``(h, w)`` of an image of ``(height, width)`` pixels.

    Raises:
        ValueError: if a side is not a positive multiple of ``patch_size``.
    """
    height, width = image_size
    if patch_size < 1 or height < patch_size or width < patch_size:
        raise ValueError(
            f"image_size={(height, width)}, patch_size={patch_size}; "
            "an image holds at least one patch of at least one pixel"
        )
    if height % patch_size or width % patch_size:
        nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
        raise ValueError(
            f"image_size={(height, width)} is not divisible by patch_size={patch_size}; "
            f"the nearest size that is: {nearest}"
        )
    return height // patch_size, width // patch_size


def patchify(
    images: Num[ArrayLike, "batch height width channels"], patch_size: int
) -> Num[Array, "batch patches values"]:
    """Cuts images into patches of ``patch_size**2 * channels`` values.

    The values of a patch are ordered by row, then column, then channel.

    Raises:
        ValueError: if the image size is not divisible by ``patch_size``.
    """
    images = jnp.asarray(images)
    batch, height, width, channels = images.shape
    h, w = patch_grid((height, width), patch_size)
    patches = images.reshape(batch, h, patch_size, w, patch_size, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h * w, patch_size**2 * channels)


def unpatchify(
    patches: Num[ArrayLike, "*batch patches values"], grid: Grid, patch_size: int
) -> Num[Array, "*batch height width channels"]:
    """Puts patches back together: the inverse of :func:`patchify`, for any leading axes."""
    patches = jnp.asarray(patches)
    *batch, _, values = patches.shape
    h, w = grid
    channels = values // patch_size**2
    images = patches.reshape(*batch, h, w, patch_size, patch_size, channels)
    images = jnp.moveaxis(images, -4, -3)
    return images.reshape(*batch, h * patch_size, w * patch_size, channels)


def patch_statistics(
    patches: Float[ArrayLike, "*batch values"], epsilon: float = 1e-6
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
    """Returns the mean and the standard deviation of each patch.

    The standard deviation is ``sqrt(var + epsilon)``, where ``var`` is the unbiased variance.

    Raises:
        ValueError: if a patch has a single value, and so no variance.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 4.1
    ("w/ norm"), whose reference implementation uses the unbiased variance.
    """
    patches = jnp.asarray(patches)
    if patches.shape[-1] < 2:
        raise ValueError(
            "a patch of one value cannot be normalised: raise model.patch_size or data.channels, "
            "or set targets.normalize_pixels=False"
        )
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return mean, jnp.sqrt(variance + epsilon)


def normalize_patches(patches: Float[ArrayLike, "*batch values"]) -> Float[Array, "*batch values"]:
    """Subtracts each patch's mean and divides by its deviation, see :func:`patch_statistics`."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation

"""Attention distance: how far attention reaches, and which share of it stays near.

Distances are Euclidean, between the centres of patches, in units of patches; multiplied by the
patch size they are in pixels. The class token has no position, so it is left out as a query and as
a key; the remaining weights of each query are scaled to sum to one again.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 and appendix D.7; Raghu
et al. 2021, "Do Vision Transformers See Like Convolutional Neural Networks?", section 5.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from ddae_jax.models.vit import ViT, attention_by_block
from ddae_jax.patches import Grid
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated

RADII = (1.0, 2.0, 4.0)
"""Radii in patches; the first holds a patch and its neighbours above, below, left and right."""


@dataclasses.dataclass(frozen=True)
class Locality:
    """Locality of an encoder's attention, averaged over images and query patches.

    Attributes:
        distance: mean attention distance, patches.
        mass: by radius in patches, the share of attention to keys within that radius.
        num_images: number of images that were averaged over.
        grid: ``(h, w)`` patches.
        patch_size: side of a patch, pixels.
    """

    distance: Float[np.ndarray, "depth heads"]
    mass: Mapping[float, Float[np.ndarray, "depth heads"]]
    num_images: int
    grid: Grid
    patch_size: int

    @property
    def distance_in_pixels(self) -> Float[np.ndarray, "depth heads"]:
        """Mean attention distance, pixels."""
        return self.patch_size * self.distance


def patch_distances(grid: Grid) -> Float[np.ndarray, "patches patches"]:
    """Returns the Euclidean distances between the centres of all patches of a grid, in patches."""
    centres = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 2)
    return np.sqrt(((centres[:, None] - centres) ** 2).sum(axis=-1))


def attention_distance(
    weights: Float[Array, "batch heads tokens tokens"], grid: Grid, has_class_token: bool
) -> Float[Array, "heads"]:
    """Returns the attention distance in patches: ``sum_j a_ij d_ij``, averaged over queries i.

    Args:
        weights: ``a``, the attention of queries (rows) to keys (columns); the class token, if there
            is one, comes first.
        grid: ``(h, w)`` patches.
        has_class_token: whether there is a class token.

    Returns:
        The mean over images and query patches, for each head.

    Raises:
        ValueError: if the weights have another number of patches than the grid.
    """
    return _attended(weights, patch_distances(grid), has_class_token).mean(axis=0)


def mass_within(
    weights: Float[Array, "batch heads tokens tokens"],
    grid: Grid,
    has_class_token: bool,
    radius: float,
) -> Float[Array, "heads"]:
    """Returns the share of attention to patches at most ``radius`` patches away.

    Args:
        weights, grid, has_class_token: as in :func:`attention_distance`.
        radius: radius, patches.

    Returns:
        The mean over images and query patches, for each head.

    Raises:
        ValueError: as :func:`attention_distance` does.
    """
    return _attended(weights, _is_within(grid, radius), has_class_token).mean(axis=0)


def uniform_distance(grid: Grid) -> float:
    """Returns the distance of uniform attention: the mean over all pairs of patches, in patches."""
    return float(patch_distances(grid).mean())


def uniform_mass(grid: Grid, radius: float) -> float:
    """Returns the share of uniform attention within a radius, in patches."""
    return float(_is_within(grid, radius).mean())


def measure_locality(
    encoder: ViT,
    params: PyTree,
    normalize: Callable[[Array], Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    radii: Sequence[float] = RADII,
) -> Locality:
    """Measures the locality of every head of every block, averaged over all valid images.

    Args:
        encoder: vision transformer; it sees the images whole.
        params: its parameters.
        normalize: turns pixel values into the encoder's input.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`). One
            block's weights, ``batch * heads * tokens**2`` float32 values, must fit the devices
            together.
        mesh: images are split over all its devices.
        radii: radii of the shares of attention, patches.

    Raises:
        ValueError: if no image is valid.
    """
    measure = _make_measure(encoder, normalize, mesh, tuple(radii))
    total, num_images = 0.0, 0
    for batch in batches:
        placed = put_batch({name: batch[name] for name in ("image", "valid")}, mesh)
        sums, count = jax.device_get(measure(params, placed["image"], placed["valid"]))
        total, num_images = total + sums.astype(np.float64), num_images + int(count)
    if not num_images:
        raise ValueError("there is no image to look at: none could be decoded, or there are none")
    distance, *mass = total / num_images
    return Locality(
        distance, dict(zip(radii, mass, strict=True)), num_images, encoder.grid, encoder.patch_size
    )


def _make_measure(
    encoder: ViT, normalize: Callable[[Array], Array], mesh: Mesh, radii: tuple[float, ...]
) -> Callable[..., tuple[Float[Array, "measures depth heads"], Float[Array, ""]]]:
    """Makes the jitted ``(params, uint8 images, valid) -> sums over valid images, their number``.

    The measures are the distance, and the mass within each radius.
    """
    tables = [patch_distances(encoder.grid)]
    tables += [_is_within(encoder.grid, radius) for radius in radii]

    def measure(params, images, valid):
        def total(weights, table):
            by_image = _attended(weights, table, encoder.use_class_token)
            return jnp.where(valid[:, None], by_image, 0.0).sum(axis=0)

        by_block = attention_by_block(encoder, params, normalize(images))
        totals = [[total(weights, table) for weights in by_block] for table in tables]
        return jnp.asarray(totals), valid.sum()

    whole, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(measure, in_shardings=(None, split, split), out_shardings=whole)


def _is_within(grid: Grid, radius: float) -> Bool[np.ndarray, "patches patches"]:
    return patch_distances(grid) <= radius


def _attended(
    weights: Float[Array, "batch heads tokens tokens"],
    table: Float[np.ndarray, "patches patches"],
    has_class_token: bool,
) -> Float[Array, "batch heads"]:
    """Returns the attention-weighted mean of each query's row of a table, averaged over queries."""
    first = int(has_class_token)
    if weights.shape[-1] - first != len(table):
        raise ValueError(
            f"weights are of {weights.shape[-1]} tokens, {'with' if first else 'without'} a class "
            f"token; the grid has {len(table)} patches"
        )
    weights = weights[..., first:, first:].astype(jnp.float32)
    weighted = (weights * jnp.asarray(table, jnp.float32)).sum(axis=-1)
    # If the class token gets all attention of a query, its value is 0 rather than 0 / 0.
    to_patches = jnp.maximum(weights.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
    return (weighted / to_patches).mean(axis=-1)

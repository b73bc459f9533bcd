"""How local attention is: how far it reaches, and how much of it stays near.

Distances are Euclidean, between the centres of patches, in patches; times the patch size they are
pixels. The class token lies nowhere, so it is left out: as a query, and as a key, where the rest of
each query's weights is scaled to sum to one again.

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
"""Patches; within the first are a patch and its neighbours above, below, left and right."""


@dataclasses.dataclass(frozen=True)
class Locality:
    """How local the attention of an encoder is, on average over images and query patches.

    Attributes:
        distance: mean distance to what is attended to, patches.
        mass: by radius, patches, the share of attention to keys at most so far away.
        num_images: that it was measured on.
        grid: ``(h, w)`` of patches.
        patch_size: side of a patch, pixels.
    """

    distance: Float[np.ndarray, "depth heads"]
    mass: Mapping[float, Float[np.ndarray, "depth heads"]]
    num_images: int
    grid: Grid
    patch_size: int

    @property
    def distance_in_pixels(self) -> Float[np.ndarray, "depth heads"]:
        """Mean distance to what is attended to, pixels."""
        return self.patch_size * self.distance


def patch_distances(grid: Grid) -> Float[np.ndarray, "patches patches"]:
    """Euclidean distance between the centres of every two patches of a grid, in patches."""
    centres = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 2)
    return np.sqrt(((centres[:, None] - centres) ** 2).sum(axis=-1))


def attention_distance(
    weights: Float[Array, "batch heads tokens tokens"], grid: Grid, has_class_token: bool
) -> Float[Array, "heads"]:
    """Mean distance of patches to what they attend to: ``sum_j a_ij d_ij``, in patches.

    Args:
        weights: ``a``, of queries (rows) over keys (columns); the class token first, if there is
            one.
        grid: ``(h, w)`` of patches.
        has_class_token: whether there is one.

    Raises:
        ValueError: if the grid does not hold as many patches as the weights.
    """
    return _attended(weights, patch_distances(grid), has_class_token).mean(axis=0)


def mass_within(
    weights: Float[Array, "batch heads tokens tokens"],
    grid: Grid,
    has_class_token: bool,
    radius: float,
) -> Float[Array, "heads"]:
    """Share of the attention of patches to patches at most ``radius`` patches away.

    Arguments and errors are those of :func:`attention_distance`.
    """
    return _attended(weights, _is_within(grid, radius), has_class_token).mean(axis=0)


def uniform_distance(grid: Grid) -> float:
    """The distance of attention that all patches get alike: the mean over all pairs of patches."""
    return float(patch_distances(grid).mean())


def uniform_mass(grid: Grid, radius: float) -> float:
    """The share of attention within a radius if all patches get alike."""
    return float(_is_within(grid, radius).mean())


def measure_locality(
    encoder: ViT,
    params: PyTree,
    normalize: Callable[[Array], Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    radii: Sequence[float] = RADII,
) -> Locality:
    """How local every head of every block is, over all images that are valid.

    Args:
        encoder: the vision transformer; it sees the images whole.
        params: its parameters.
        normalize: pixel values to what the encoder was trained on.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`). One
            block's weights, ``batch * heads * tokens**2`` float32 values, must fit the devices
            together.
        mesh: images are split over all its devices.
        radii: patches.

    Raises:
        ValueError: if no image is valid.
    """
    measure = _make_measure(encoder, normalize, mesh, tuple(radii))
    total, num_images = 0.0, 0
    for batch in batches:
        placed = put_batch({name: batch[name] for name in ("image", "valid")}, mesh)
        found, count = jax.device_get(measure(params, placed["image"], placed["valid"]))
        total, num_images = total + found.astype(np.float64), num_images + int(count)
    if not num_images:
        raise ValueError("there is no image to look at: none could be decoded, or there are none")
    distance, *mass = total / num_images
    return Locality(
        distance, dict(zip(radii, mass, strict=True)), num_images, encoder.grid, encoder.patch_size
    )


def _make_measure(
    encoder: ViT, normalize: Callable[[Array], Array], mesh: Mesh, radii: tuple[float, ...]
) -> Callable[..., tuple[Float[Array, "measures depth heads"], Float[Array, ""]]]:
    """Jitted ``(parameters, uint8 images, valid) -> sums over valid images, their number``."""
    tables = [patch_distances(encoder.grid)]
    tables += [_is_within(encoder.grid, radius) for radius in radii]

    def measure(params, images, valid):
        def total(weights, table):
            of_images = _attended(weights, table, encoder.use_class_token)
            return jnp.where(valid[:, None], of_images, 0.0).sum(axis=0)

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
    """What queries find in their row of the table, weighted by attention; mean over queries."""
    first = int(has_class_token)
    if weights.shape[-1] - first != len(table):
        raise ValueError(
            f"weights are of {weights.shape[-1]} tokens, {'with' if first else 'without'} a class "
            f"token; the grid has {len(table)} patches"
        )
    weights = weights[..., first:, first:].astype(jnp.float32)
    found = (weights * jnp.asarray(table, jnp.float32)).sum(axis=-1)
    # A query whose whole attention underflows onto the class token finds 0 rather than 0 / 0.
    to_patches = jnp.maximum(weights.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
    return (found / to_patches).mean(axis=-1)

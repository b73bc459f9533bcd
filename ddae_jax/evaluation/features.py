"""Frozen features of a whole dataset, extracted over all devices and cached."""

import functools
import hashlib
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ddae_jax.models.transformer import layer_norm
from ddae_jax.models.vit import ViT
from ddae_jax.training.multihost import agreed
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated
from ddae_jax.training.workdir import written_atomically

_log = logging.getLogger(__name__)

Pool = Literal["mean", "class_token", "normed_mean"]
Examples = tuple[Float[np.ndarray, "examples width"], Int[np.ndarray, "examples"]]
"""Features and labels."""
Encode = Callable[[PyTree, Array], Float[Array, "batch width"]]

_SETS = ("train", "test")

MOST_RAW_PIXELS = 32
"""The longer side, in pixels, to which images are shrunk where their raw pixels are features."""


def make_encode(
    encoder: ViT, normalize: Callable[[Array], Array], mesh: Mesh, *, depth: int, pool: Pool
) -> Encode:
    """Jitted ``(encoder parameters, uint8 images) -> features``, over the mesh.

    Args:
        encoder: the vision transformer.
        normalize: pixel values to what the encoder was trained on.
        mesh: images are split over all its devices; features come back whole on each.
        depth: block after which features are read; the encoder's final norm is applied.
        pool: ``mean`` over patches, each of which is normed; or the ``class_token``; or
            ``normed_mean``, where the norm is that of the mean, as in networks with timm's
            ``fc_norm``.
    """
    norms_mean = pool == "normed_mean"
    norm = layer_norm(jnp.float32, encoder.norm_epsilon)

    def encode(params, images):
        features = encoder.apply(
            {"params": params}, normalize(images), depths=(depth,), normalize=not norms_mean
        )
        if pool == "class_token":
            return features.class_token[0].astype(jnp.float32)
        mean = features.patches[0].astype(jnp.float32).mean(axis=1)
        return norm.apply({"params": params["norm"]}, mean) if norms_mean else mean

    return jax.jit(
        encode,
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def encode_dataset(
    encode: Encode, params: PyTree, batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Examples:
    """Features and labels of every valid and labelled example.

    Their order depends on the number of processes.

    Args:
        encode: from :func:`make_encode`.
        params: the encoder's.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: the same as ``encode``'s.
    """
    return _collect(lambda images: encode(params, images), batches, mesh)


def raw_pixels(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Examples:
    """The pixels themselves as features, 0..1: the baseline that knows nothing.

    Images of more than :data:`MOST_RAW_PIXELS` a side are shrunk to that first, in their
    proportions: at 224 x 224, ImageNet's pixels would fill 700 GiB.
    """

    def flatten(images):
        batch, *size, channels = images.shape
        images = images.astype(jnp.float32) / 255
        if raw_pixel_size(size) != tuple(size):
            shape = (batch, *raw_pixel_size(size), channels)
            images = jax.image.resize(images, shape, "linear", antialias=True)
        return images.reshape(batch, -1)

    return _collect(jax.jit(flatten, out_shardings=replicated(mesh)), batches, mesh)


def raw_pixel_size(image_size: Sequence[int]) -> tuple[int, ...]:
    """(height, width) at which the raw pixels of images of a size are compared."""
    shrink = max(1, max(image_size) / MOST_RAW_PIXELS)
    return tuple(max(1, round(side / shrink)) for side in image_size)


def encoded_batches(
    encode: Callable[[Array], Array], batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """``features``, ``label`` and ``index`` of the valid examples of each batch, on every process.

    Args:
        encode: ``uint8 images -> features``, whole on each device.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: of devices.
    """
    share = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    for batch in batches:
        placed = put_batch(dict(batch), mesh)
        features = encode(placed.pop("image"))
        found = jax.device_get({"features": features, **share(placed)})
        is_valid = found.pop("valid")
        yield {name: array[is_valid] for name, array in found.items()}


def _collect(
    encode: Callable[[Array], Array], batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Examples:
    found = list(encoded_batches(encode, batches, mesh))
    features, labels = (
        np.concatenate([batch[name] for batch in found]) for name in ("features", "label")
    )
    is_labelled = labels >= 0
    if not is_labelled.all():
        _say_unlabelled(int((~is_labelled).sum()), len(labels))
    return features[is_labelled], labels[is_labelled]


@functools.cache
def _say_unlabelled(count: int, of: int) -> None:
    """Warns once in a process, though a set is walked through several times."""
    _log.warning("%d of %d images have no label, and are left out of evaluation", count, of)


def cached(
    folder: pathlib.Path, key: Mapping[str, Any], compute: Callable[[], tuple[Examples, Examples]]
) -> tuple[Examples, Examples]:
    """``compute()``, or what it gave the last time it was asked for with the same key.

    Of several processes, all compute unless all can read what is kept. What cannot be kept or read
    is computed, with a warning.

    Args:
        folder: of the cache.
        key: all that the result depends on, as JSON can store it.
        compute: gives features and labels, of the training and the test set.
    """
    described = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = folder / f"{digest}.npz"
    kept = _read(path) if path.exists() else None
    if agreed(kept is not None):
        return kept
    examples = compute()
    if jax.process_index() == 0:
        _keep(path, described, examples)
    return examples


def _read(path: pathlib.Path) -> tuple[Examples, Examples] | None:
    try:
        with np.load(path) as stored:
            train, test = ((stored[f"{s}_features"], stored[f"{s}_labels"]) for s in _SETS)
            return train, test
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be read (%s); its features are computed anew", path, error)
        return None


def _keep(path: pathlib.Path, key: str, examples: tuple[Examples, Examples]) -> None:
    arrays = {
        f"{name}_{what}": array
        for name, pair in zip(_SETS, examples, strict=True)
        for what, array in zip(("features", "labels"), pair, strict=True)
    }
    try:
        with written_atomically(path) as half_written, open(half_written, "wb") as file:
            np.savez(file, key=key, **arrays)
    except OSError as error:
        _log.warning("features could not be kept for the next time: %s", error)

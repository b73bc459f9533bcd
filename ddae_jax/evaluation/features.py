"""Frozen features of a whole dataset, extracted over all devices and cached."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ddae_jax.models.vit import ViT
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated

Pool = Literal["mean", "class_token"]
Examples = tuple[Float[np.ndarray, "examples width"], Int[np.ndarray, "examples"]]
"""Features and labels."""
Encode = Callable[[PyTree, Array], Float[Array, "batch width"]]

_SETS = ("train", "test")


def make_encode(
    encoder: ViT, normalize: Callable[[Array], Array], mesh: Mesh, *, depth: int, pool: Pool
) -> Encode:
    """Jitted ``(encoder parameters, uint8 images) -> features``, over the mesh.

    Args:
        encoder: the vision transformer.
        normalize: pixel values to what the encoder was trained on.
        mesh: images are split over all its devices; features come back whole on each.
        depth: block after which features are read; the encoder's final norm is applied.
        pool: ``mean`` over patches, or the ``class_token``.
    """

    def encode(params, images):
        features = encoder.apply({"params": params}, normalize(images), depths=(depth,))
        if pool == "mean":
            return features.patches[0].astype(jnp.float32).mean(axis=1)
        return features.class_token[0].astype(jnp.float32)

    return jax.jit(
        encode,
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def encode_dataset(
    encode: Encode, params: PyTree, batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Examples:
    """Features and labels of every valid example, in an order that depends on the processes.

    Args:
        encode: from :func:`make_encode`.
        params: the encoder's.
        batches: this process's share (see :func:`ddae_jax.data.pipeline.eval_batches`).
        mesh: the same as ``encode``'s.
    """
    return _collect(lambda images: encode(params, images), batches, mesh)


def raw_pixels(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Examples:
    """The pixels themselves as features, 0..1: the baseline that knows nothing."""
    flatten = jax.jit(
        lambda images: images.reshape(images.shape[0], -1).astype(jnp.float32) / 255,
        out_shardings=replicated(mesh),
    )
    return _collect(flatten, batches, mesh)


def _collect(
    encode: Callable[[Array], Array], batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Examples:
    share = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    features, labels = [], []
    for batch in batches:
        placed = put_batch(dict(batch), mesh)
        found, label, is_valid = jax.device_get(
            (encode(placed["image"]), *share((placed["label"], placed["valid"])))
        )
        features.append(found[is_valid])
        labels.append(label[is_valid])
    return np.concatenate(features), np.concatenate(labels)


def cached(
    folder: pathlib.Path, key: Mapping[str, Any], compute: Callable[[], tuple[Examples, Examples]]
) -> tuple[Examples, Examples]:
    """``compute()``, or what it gave the last time it was asked for with the same key.

    Args:
        folder: of the cache.
        key: all that the result depends on, as JSON can store it.
        compute: gives features and labels, of the training and the test set.
    """
    described = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = folder / f"{digest}.npz"
    if path.exists():
        with np.load(path) as stored:
            train, test = ((stored[f"{s}_features"], stored[f"{s}_labels"]) for s in _SETS)
            return train, test
    examples = compute()
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        half_written = folder / f".{digest}.{os.getpid()}.npz"
        arrays = {
            f"{name}_{what}": array
            for name, pair in zip(_SETS, examples, strict=True)
            for what, array in zip(("features", "labels"), pair, strict=True)
        }
        np.savez(half_written, key=described, **arrays)
        os.replace(half_written, path)
    return examples

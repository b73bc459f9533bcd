"""Frozen features of whole datasets, extracted over all devices and cached on disk."""

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
from ddae_jax.training.multihost import all_true
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated
from ddae_jax.training.workdir import written_atomically

_log = logging.getLogger(__name__)

Pool = Literal["mean", "class_token", "normed_mean"]
Examples = tuple[Float[np.ndarray, "examples features"], Int[np.ndarray, "examples"]]
"""Features and labels."""
Encode = Callable[[PyTree, Array], Float[Array, "batch features"]]
"""``(encoder params, uint8 images) -> features``."""

_SETS = ("train", "test")

MOST_RAW_PIXELS = 32
"""Longer side, in pixels, to which images are shrunk before their raw pixels serve as features."""


def make_encode(
    encoder: ViT, normalize: Callable[[Array], Array], mesh: Mesh, *, depth: int, pool: Pool
) -> Encode:
    """Makes the jitted ``(encoder params, uint8 images) -> features``, over the mesh.

    Args:
        encoder: vision transformer.
        normalize: turns pixel values into the encoder's input.
        mesh: images are split over all its devices; every device gets all features.
        depth: block after which features are read; the encoder's final norm is applied to them.
        pool: ``mean``: the mean over normed patches; ``class_token``: the normed class token;
            ``normed_mean``: the norm of the mean over patches, as in networks with timm's
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
    """Returns features and labels of every valid and labelled example, in all processes.

    Their order depends on the number of processes.

    Args:
        encode: function from :func:`make_encode`.
        params: parameters of the encoder.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: mesh that ``encode`` was made for.
    """
    return _collect(lambda images: encode(params, images), batches, mesh)


def raw_pixels(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Examples:
    """Returns pixels in [0, 1] as features, with labels: the baseline without any learning.

    Images whose longer side exceeds :data:`MOST_RAW_PIXELS` are shrunk to it first, in proportion:
    at 224 x 224, the pixels of ImageNet would fill 700 GiB.

    Args:
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: images are split over all its devices.
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
    """Returns the ``(height, width)`` that :func:`raw_pixels` shrinks images of a size to."""
    shrink = max(1, max(image_size) / MOST_RAW_PIXELS)
    return tuple(max(1, round(side / shrink)) for side in image_size)


def encoded_batches(
    encode: Callable[[Array], Array], batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """Yields ``features``, ``label`` and ``index`` of the valid examples of each batch.

    All processes get the examples of all of them.

    Args:
        encode: ``uint8 images -> features``, replicated over the devices.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: images are split over all its devices.
    """
    share = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    for batch in batches:
        placed = put_batch(dict(batch), mesh)
        features = encode(placed.pop("image"))
        encoded = jax.device_get({"features": features, **share(placed)})
        is_valid = encoded.pop("valid")
        yield {name: array[is_valid] for name, array in encoded.items()}


def _collect(
    encode: Callable[[Array], Array], batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Examples:
    encoded = list(encoded_batches(encode, batches, mesh))
    features, labels = (
        np.concatenate([batch[name] for batch in encoded]) for name in ("features", "label")
    )
    is_labelled = labels >= 0
    if not is_labelled.all():
        _warn_of_unlabelled(int((~is_labelled).sum()), len(labels))
    return features[is_labelled], labels[is_labelled]


@functools.cache
def _warn_of_unlabelled(count: int, num_images: int) -> None:
    """Warns once per process, though a set is read several times."""
    _log.warning("%d of %d images have no label, and are left out of evaluation", count, num_images)


def cached(
    folder: pathlib.Path, key: Mapping[str, Any], compute: Callable[[], tuple[Examples, Examples]]
) -> tuple[Examples, Examples]:
    """Returns ``compute()``, or its earlier result for the same key from a cache on disk.

    All processes compute unless all of them can read the cached result. A result that cannot be
    read or written is computed and returned, with a warning.

    Args:
        folder: folder of the cache.
        key: everything that the result depends on, in a form that JSON can store.
        compute: returns features and labels of the training and the test set.
    """
    key_text = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(key_text.encode()).hexdigest()[:16]
    path = folder / f"{digest}.npz"
    stored = _read(path) if path.exists() else None
    if all_true(stored is not None):
        return stored
    examples = compute()
    if jax.process_index() == 0:
        _write(path, key_text, examples)
    return examples


def _read(path: pathlib.Path) -> tuple[Examples, Examples] | None:
    try:
        with np.load(path) as stored:
            train, test = ((stored[f"{s}_features"], stored[f"{s}_labels"]) for s in _SETS)
            return train, test
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be read (%s); its features are computed anew", path, error)
        return None


def _write(path: pathlib.Path, key: str, examples: tuple[Examples, Examples]) -> None:
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

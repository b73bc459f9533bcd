"""Builders of data: sources, training loaders and evaluation batches, from a config."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.array_source import in_memory
from ddae_jax.data.augment import Augmentation, Transform, augment_on_device
from ddae_jax.data.batches import Batch
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.labels import validated, with_classes
from ddae_jax.data.readable import check_any_is_readable
from ddae_jax.data.sources import Source, make_source
from ddae_jax.data.splits import warn_of_shared_examples
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.data.view import USUAL_SHARE, View
from ddae_jax.training.multihost import union
from ddae_jax.training.program import Preprocess


def build_source(config: ConfigDict, split: str) -> Source:
    """Builds the source of a split's images."""
    data = config.data
    make = _decoded_source if data.in_memory else make_source
    return make(
        data.source, name=data.name, data_dir=data.data_dir, split=split, **decoding(config)
    )


def decoding(config: ConfigDict) -> dict[str, Any]:
    """Returns the decoding options of the config, as arguments of functions that make sources."""
    return {name: config.data[name] for name in ("channels", "max_pixels", "max_value")}


@functools.lru_cache(maxsize=2)
def _decoded_source(*args, **kwargs) -> Source:
    """Decodes a source into memory, once per process: training and evaluation share the result."""
    return in_memory(make_source(*args, **kwargs))


def build_loader(
    config: ConfigDict, source: Source, transform: Transform | None = None
) -> TrainLoader:
    """Builds the loader of this process's share of the training batches.

    Args:
        config: of the run.
        source: images to train on.
        transform: applied to each crop; None for nothing.
    """
    return TrainLoader(
        source,
        Augmentation(
            image_size=tuple(config.model.image_size),
            augment_in=config.data.get("augment_in", "workers"),
            transform=transform,
            **_crops(config),
        ),
        **reading_options(config),
    )


def reading_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the ``TrainLoader`` arguments that select and read this process's share."""
    return {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "num_workers": config.data.num_workers,
        "num_threads": config.data.num_threads or None,
        "max_corrupt_share": config.data.max_corrupt_share,
        "unite": union,
    }


def build_preprocess(config: ConfigDict) -> Preprocess:
    """Builds the step's preprocessing: augmentation, if done on the device, and normalisation."""
    normalize = build_normalize(config)
    if config.data.augment_in == "workers":
        return lambda key, batch: normalize(batch["image"])
    options = {"size": tuple(config.model.image_size)} | {
        name.removeprefix("crop_"): value for name, value in _crops(config).items()
    }
    return lambda key, batch: normalize(augment_on_device(key, batch["image"], **options))


def _crops(config: ConfigDict) -> dict:
    """Returns the options of random crops and flips."""
    data = config.data
    return {
        "crop_scale": tuple(data.crop_scale),
        "crop_ratio": tuple(data.crop_ratio),
        "flip": data.flip,
    }


def build_eval_batches(
    config: ConfigDict, source: Source, mesh: Mesh, limit: int | None = None
) -> Iterator[Batch]:
    """Yields all images once, preprocessed for evaluation.

    Args:
        config: of the run.
        source: images to read.
        mesh: of devices; the batch size is rounded up to a multiple of its size.
        limit: reads at most so many images, spread evenly; None for all.
    """
    return eval_batches(
        source,
        image_size=tuple(config.model.image_size),
        batch_size=-(-config.evaluation.batch_size // mesh.size) * mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        limit=limit,
        num_threads=config.data.num_threads or None,
        view=build_view(config),
    )


def build_view(config: ConfigDict) -> View:
    """Builds the view of an image that evaluation uses: how it is resized and cropped."""
    options = config.evaluation
    return View(options.crop_share, options.interpolation, options.crop_mode)


def settle_crop_share(config: ConfigDict, source: Source) -> None:
    """Sets ``evaluation.crop_share`` from the source's image size if the config leaves it at 0.

    All images get the same share, because exported models can describe only one.
    """
    if not config.evaluation.crop_share:
        is_uncut = source.image_size == tuple(config.model.image_size)
        config.evaluation.crop_share = 1.0 if is_uncut else USUAL_SHARE


def warn_if_trained_on(config: ConfigDict, split: str, within: str = "") -> None:
    """Warns if a split shares images with the training split.

    Args:
        config: of the run.
        split: whose images are evaluated.
        within: see :func:`ddae_jax.data.splits.warn_of_shared_examples`.
    """
    data = config.data
    warn_of_shared_examples(data.source, data.data_dir, data.train_split, split, within)


def checked_test(train: Source, test: Source, config: ConfigDict) -> Source:
    """Returns the test images, with labels numbered as in training, after checking them.

    Raises:
        ValueError: as :func:`with_classes_of` does.
        BadLabel: as :func:`ddae_jax.data.labels.validated` does.
        NothingReadable: if no image can be decoded.
    """
    test = validated(with_classes_of(train, test, config))
    check_any_is_readable(test, f"the {config.data.test_split!r} split")
    return test


def with_classes_of(train: Source, test: Source, config: ConfigDict) -> Source:
    """Returns the test images, with their labels renumbered to the training's classes.

    Raises ``ValueError`` as :func:`ddae_jax.data.labels.with_classes` does.
    """
    data = config.data
    if train.num_classes is None or test.num_classes is None:
        counts = {data.train_split: train.num_classes, data.test_split: test.num_classes}
        class_counts = " and ".join(
            f"the {split!r} split has {count or 'no'} classes" for split, count in counts.items()
        )
        raise ValueError(f"evaluation needs labelled images of the same classes: {class_counts}")
    return with_classes(
        test,
        train.class_names,
        train.num_classes,
        what=f"the {data.test_split!r} split",
        of=f"the {data.train_split!r} split",
    )


def class_names(source: Source, num_classes: int) -> tuple[str, ...]:
    """Returns the names of a source's classes, or their numbers as text if they have no names."""
    return source.class_names or tuple(map(str, range(num_classes)))


def sample_images(source: Source, config: ConfigDict, count: int) -> np.ndarray:
    """Reads at most ``count`` images, spread evenly, preprocessed for evaluation.

    Returns:
        ``uint8 [images, height, width, channels]``, the same in all processes.
    """
    size = tuple(config.model.image_size)
    batch = next(eval_batches(source, size, count, limit=count, view=build_view(config)))
    return batch["image"][batch["valid"]]

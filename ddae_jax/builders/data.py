"""Data: sources, loaders and passes for evaluation, as the config asks for them."""

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
    """The images of a split."""
    data = config.data
    make = _decoded_source if data.in_memory else make_source
    return make(
        data.source, name=data.name, data_dir=data.data_dir, split=split, **decoding(config)
    )


def decoding(config: ConfigDict) -> dict[str, Any]:
    """How files become pixels, as arguments of the functions that make sources."""
    return {name: config.data[name] for name in ("channels", "max_pixels", "max_value")}


@functools.lru_cache(maxsize=2)
def _decoded_source(*args, **kwargs) -> Source:
    """Once in a process: training and evaluation share what takes long to decode."""
    return in_memory(make_source(*args, **kwargs))


def build_loader(
    config: ConfigDict, source: Source, transform: Transform | None = None
) -> TrainLoader:
    """This process's share of the training batches; ``transform`` is done to each crop."""
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
    """Arguments of a ``TrainLoader``: this process's share, and how it is read."""
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
    """What the step does to a batch first: augmentation, if on the device, and normalisation."""
    normalize = build_normalize(config)
    if config.data.augment_in == "workers":
        return lambda key, batch: normalize(batch["image"])
    options = {"size": tuple(config.model.image_size)} | {
        name.removeprefix("crop_"): value for name, value in _crops(config).items()
    }
    return lambda key, batch: normalize(augment_on_device(key, batch["image"], **options))


def _crops(config: ConfigDict) -> dict:
    data = config.data
    return {
        "crop_scale": tuple(data.crop_scale),
        "crop_ratio": tuple(data.crop_ratio),
        "flip": data.flip,
    }


def build_eval_batches(
    config: ConfigDict, source: Source, mesh: Mesh, limit: int | None = None
) -> Iterator[Batch]:
    """A pass over images as evaluation sees them, in batches that the mesh divides.

    Of at most ``limit`` images, spread evenly.
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
    """Builds what evaluation shows of an image."""
    options = config.evaluation
    return View(options.crop_share, options.interpolation, options.crop_mode)


def settle_crop_share(config: ConfigDict, source: Source) -> None:
    """Sets the share of images that evaluation shows, where the config leaves it to the images.

    One share for all images is what other libraries can be told, too.
    """
    if not config.evaluation.crop_share:
        is_uncut = source.image_size == tuple(config.model.image_size)
        config.evaluation.crop_share = 1.0 if is_uncut else USUAL_SHARE


def warn_if_trained_on(config: ConfigDict, split: str, within: str = "") -> None:
    """Warns where images that are tested on are trained on too; ``within`` is for a folder."""
    data = config.data
    warn_of_shared_examples(data.source, data.data_dir, data.train_split, split, within)


def checked_test(train: Source, test: Source, config: ConfigDict) -> Source:
    """The test images, by the numbers of the training's classes, if any of them can be decoded.

    Raises ``ValueError`` as :func:`with_classes_of` does, ``BadLabel`` as
    :func:`ddae_jax.data.labels.checked` does, and ``NothingReadable``.
    """
    test = validated(with_classes_of(train, test, config))
    check_any_is_readable(test, f"the {config.data.test_split!r} split")
    return test


def with_classes_of(train: Source, test: Source, config: ConfigDict) -> Source:
    """The test images, with labels by the numbers that their classes have among the training's.

    Raises ``ValueError`` as :func:`ddae_jax.data.labels.with_classes` does.
    """
    data = config.data
    if train.num_classes is None or test.num_classes is None:
        counts = {data.train_split: train.num_classes, data.test_split: test.num_classes}
        found = " and ".join(
            f"the {split!r} split has {count or 'no'} classes" for split, count in counts.items()
        )
        raise ValueError(f"evaluation needs labelled images of the same classes: {found}")
    return with_classes(
        test,
        train.class_names,
        train.num_classes,
        what=f"the {data.test_split!r} split",
        of=f"the {data.train_split!r} split",
    )


def class_names(source: Source, num_classes: int) -> tuple[str, ...]:
    """Returns the names of a source's classes; their numbers, where they have none."""
    return source.class_names or tuple(map(str, range(num_classes)))


def sample_images(source: Source, config: ConfigDict, count: int) -> np.ndarray:
    """Reads at most so many images, spread evenly, as evaluation sees them.

    They are the same in all processes: ``uint8 [images, height, width, channels]``.
    """
    size = tuple(config.model.image_size)
    batch = next(eval_batches(source, size, count, limit=count, view=build_view(config)))
    return batch["image"][batch["valid"]]

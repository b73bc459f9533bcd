"""Builders of segmentation: network and data of its training, and segmenters of whole images."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.data import decoding, reading_options
from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.eval_pairs import eval_pairs
from ddae_jax.data.joint_augment import Distortion, JointAugmentation
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.segmentation import PairSource, make_pair_source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.evaluation.segmentation import Confusion, WholeImageSegmenter, confusion_matrix
from ddae_jax.methods.supervised import LabelledTask, resized_logits, segmentation_error
from ddae_jax.models.upernet import Segmenter
from ddae_jax.training.multihost import all_sum
from ddae_jax.training.program import Preprocess


def build_pairs(config: ConfigDict, split: str) -> PairSource:
    """Builds the source of a split's images and their annotations."""
    data = config.data
    return make_pair_source(
        data.source,
        num_classes=data.num_classes,
        ignore_label=None if data.ignore_label < 0 else data.ignore_label,
        reduce_zero_label=data.reduce_zero_label,
        name=data.name,
        data_dir=data.data_dir,
        split=split,
        **decoding(config),
    )


def build_segmentation_task(config: ConfigDict) -> LabelledTask:
    """Builds the task that trains the config's segmenter to minimise its segmentation error."""
    encoder, head = build_encoder(config), config.head
    network = Segmenter(
        encoder,
        num_classes=config.data.num_classes,
        head=head.kind,
        depths=tuple(head.depths) or default_depths(encoder.depth),
        head_width=head.width,
    )
    error = functools.partial(segmentation_error, auxiliary_weight=head.auxiliary_weight)
    return LabelledTask(network, error, keeps_average=config.average.decay > 0)


def default_depths(depth: int) -> tuple[int, ...]:
    """Returns the default depths that a head reads: 4, 6, 8, 12 for ViT-B, as in BEiT and MAE.

    In general they are 1/3, 1/2, 2/3 and all of the blocks.

    Raises ``ValueError`` for an encoder with so few blocks that two depths would be the same.
    """
    depths = tuple(max(1, round(depth * k / 6)) for k in (2, 3, 4, 6))
    if len(set(depths)) < 4:
        raise ValueError(
            f"an encoder of {depth} blocks has no four depths to read out; set head.kind='linear'"
        )
    return depths


def build_pair_loader(config: ConfigDict, source: PairSource) -> TrainLoader:
    """Builds the loader of this process's share of the training batches."""
    augment = config.augment
    return TrainLoader(
        source,
        JointAugmentation(
            crop_size=tuple(config.model.image_size),
            base_size=tuple(augment.base_size),
            scale_range=tuple(augment.scale_range),
            max_class_share=augment.max_class_share,
            flip=config.data.flip,
            distortion=Distortion() if augment.distorts_colours else None,
            pad_colour=tuple(round(255 * mean) for mean in config.data.mean),
        ),
        **reading_options(config),
    )


def build_segmentation_preprocess(config: ConfigDict) -> Preprocess:
    """Builds the step's preprocessing: normalisation."""
    normalize = build_normalize(config)

    def preprocess(key: PRNGKeyArray, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        return normalize(batch["image"]), batch["annotation"].astype(jnp.int32)

    return preprocess


def build_segment(config: ConfigDict, task: LabelledTask) -> Callable[[PyTree], Callable]:
    """Builds the segmenter of whole images.

    Returns:
        A function from ``(params, teacher)`` of the task to a function from a ``uint8`` image to
        the class of each pixel.
    """
    crop_size, evaluation = tuple(config.model.image_size), config.evaluation
    normalize = build_normalize(config)

    @jax.jit
    def logits(variables: PyTree, crops: Float[Array, "batch height width channels"]) -> Array:
        outputs, _ = task.predict(*variables, crops)
        return resized_logits(outputs, crop_size)

    def with_variables(variables: PyTree) -> Callable[[np.ndarray], np.ndarray]:
        segmenter = WholeImageSegmenter(
            functools.partial(logits, variables),
            config.data.num_classes,
            crop_size,
            stride=tuple(
                step or max(1, round(side * 2 / 3))
                for step, side in zip(evaluation.stride, crop_size, strict=True)
            ),
            base_size=tuple(config.augment.base_size),
            scales=tuple(evaluation.scales),
            flip=evaluation.flip,
            batch_size=evaluation.batch_size,
        )
        return lambda image: segmenter.labels(np.asarray(normalize(image)))

    return with_variables


def count_pixels(
    config: ConfigDict,
    segment: Callable[[PyTree], Callable],
    variables: PyTree,
    source: PairSource,
    limit: int | None = None,
) -> Confusion:
    """Counts the confusion matrix of all pixels; each process segments its share of the images.

    Args:
        config: of the run.
        segment: from :func:`build_segment`.
        variables: parameters and teacher of the task, on one device.
        source: images with annotations.
        limit: segments at most so many images, spread evenly; None for all.

    Raises:
        NothingReadable: if no image can be decoded, or no pixel has a class.
    """
    num_classes = config.data.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    num_read = 0
    of_image = segment(variables)
    pairs = eval_pairs(
        source,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        limit=limit,
        num_threads=config.data.num_threads or None,
    )
    for pair in pairs:
        num_read += 1
        confusion += confusion_matrix(
            pair["annotation"], of_image(pair["image"]), num_classes, IGNORED
        )
    confusion, num_read = all_sum(confusion), int(all_sum(np.array(num_read)))
    if not confusion.any():
        raise NothingReadable(
            f"no pixel of {num_read:,} images has a class, by data.ignore_label and "
            "data.reduce_zero_label"
            if num_read
            else f"none of {len(source):,} annotated images can be decoded; the log names them"
        )
    return confusion

"""Builders for the evaluation of frozen features: labelled images, encoders and classifiers."""

import functools

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.data import (
    build_eval_batches,
    build_source,
    checked_test,
    warn_if_trained_on,
)
from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.data.labels import validated
from ddae_jax.data.readable import check_any_is_readable
from ddae_jax.evaluation.features import Encode, make_encode
from ddae_jax.evaluation.knn import knn_predict
from ddae_jax.evaluation.labelled_images import LabelledImages, Predict
from ddae_jax.evaluation.linear_probe import linear_predict


def build_labelled_images(
    config: ConfigDict, mesh: Mesh, limit: int | None = None
) -> LabelledImages:
    """Builds the labelled training and test images that frozen features are evaluated on.

    Args:
        config: of the run.
        mesh: of devices.
        limit: at most so many images of each split, spread evenly; None for all.

    Raises:
        ValueError: if the source has no labels, if the test images have other classes than the
            training images, or if no image of a split can be decoded.
        ddae_jax.data.labels.BadLabel: for a label outside the classes; here, or later when the
            image is read.
    """
    train, test = (
        build_source(config, split) for split in (config.data.train_split, config.data.test_split)
    )
    warn_if_trained_on(config, config.data.test_split)
    test = checked_test(train, test, config)
    train = validated(train)
    check_any_is_readable(train, f"the {config.data.train_split!r} split")
    return LabelledImages(
        train_batches=functools.partial(build_eval_batches, config, train, mesh, limit),
        test_batches=functools.partial(build_eval_batches, config, test, mesh, limit),
        num_classes=train.num_classes,
        mesh=mesh,
        fingerprint=f"{train.fingerprint}; {test.fingerprint}",
    )


def build_encode(config: ConfigDict, mesh: Mesh, *, depth: int, pool: str) -> Encode:
    """Builds the function from images to frozen features.

    Args:
        config: of the run.
        mesh: of devices.
        depth: block after which features are read; 0 for the last.
        pool: how tokens become one feature vector, a value of ``evaluation.pool``.
    """
    encoder = build_encoder(config)
    return make_encode(
        encoder, build_normalize(config), mesh, depth=depth or encoder.depth, pool=pool
    )


def build_predict(config: ConfigDict, task: str) -> Predict:
    """Builds the classifier of a task: ``knn`` or ``linear``."""
    if task == "linear":
        return linear_predict
    return functools.partial(
        knn_predict, k=config.evaluation.k, temperature=config.evaluation.temperature
    )

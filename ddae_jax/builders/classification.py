"""Builders of image classification: network, preprocessing, optimizer and scoring function."""

import functools
from collections.abc import Callable, Mapping

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.builders.optimization import build_finetuning_optimizer, build_learning_rate
from ddae_jax.data.batch_augment import mixup_or_cutmix, random_erasing, smoothed_one_hot
from ddae_jax.data.rand_augment import rand_augment
from ddae_jax.evaluation.classification import make_count
from ddae_jax.methods.supervised import LabelledTask, classification_error
from ddae_jax.models.classifier import Classifier
from ddae_jax.training.program import Preprocess, TrainProgram
from ddae_jax.training.schedules import Schedule


def build_classification_task(config: ConfigDict, num_classes: int) -> LabelledTask:
    """Builds the task that trains the config's classifier to minimise its classification error."""
    classifier = Classifier(
        build_encoder(config),
        num_classes,
        pool=config.model.pool,
        normalization=config.head.normalization,
        init_deviation=config.head.init_deviation,
        is_frozen=config.model.is_frozen,
    )
    return LabelledTask(classifier, classification_error, keeps_average=config.average.decay > 0)


def build_crop_transform(config: ConfigDict) -> Callable | None:
    """Builds the RandAugment function applied to each crop; returns None if it is switched off."""
    augment = config.augment
    if not augment.rand_augment:
        return None
    return functools.partial(
        rand_augment,
        num_operations=augment.num_operations,
        magnitude=augment.magnitude,
        deviation=augment.magnitude_deviation,
        fill=tuple(round(255 * mean) for mean in config.data.mean),
    )


def build_classification_preprocess(config: ConfigDict, num_classes: int) -> Preprocess:
    """Builds the step's preprocessing: normalisation, erasing, label smoothing and mixing."""
    normalize, augment = build_normalize(config), config.augment
    erase = functools.partial(random_erasing, probability=augment.erasing_probability)
    mix = functools.partial(
        mixup_or_cutmix,
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        probability=augment.mix_probability,
    )
    smoothing = augment.label_smoothing

    def preprocess(key: PRNGKeyArray, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        erase_key, mix_key = jax.random.split(key)
        images = erase(erase_key, normalize(batch["image"]))
        return mix(mix_key, images, smoothed_one_hot(batch["label"], num_classes, smoothing))

    return preprocess


def build_labelled_program(
    config: ConfigDict, schedule: Schedule, task: LabelledTask, preprocess: Preprocess
) -> TrainProgram:
    """Builds the program that trains on labels, of whole images or of pixels."""
    learning_rate = build_learning_rate(config, schedule)
    return TrainProgram(
        task=task,
        preprocess=preprocess,
        optimizer=build_finetuning_optimizer(config, learning_rate, task.encoder.depth),
        learning_rate=learning_rate,
        momentum=optax.constant_schedule(config.average.decay),
        channels=config.data.channels,
        seed=config.seed,
        micro_batches=config.optimizer.micro_batches,
        max_skipped=config.optimizer.skip_nonfinite,
    )


def build_count(
    config: ConfigDict, task: LabelledTask, num_classes: int, mesh: Mesh
) -> Callable[..., PyTree]:
    """Builds the function that counts a batch's correct predictions on a mesh.

    :func:`ddae_jax.evaluation.classification.score` calls it with ``(params, teacher)`` of the
    task as its variables.
    """
    normalize = build_normalize(config)

    def logits(variables: PyTree, images: jax.Array) -> jax.Array:
        return task.predict(*variables, normalize(images))

    return make_count(logits, num_classes, mesh)

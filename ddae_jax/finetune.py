"""Fine-tunes an encoder, or a linear probe on it, to classify labelled images.

    python -m ddae_jax.finetune --config=configs/cifar10_finetune.py --workdir=runs/finetuned \\
        --config.init_from=runs/pretrained

``init_from`` is the workdir of a pretraining run, or somebody else's weights. The same command
continues a run that was stopped or killed. docs/finetuning.md has the recipes and what they reach.
"""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.initialization import begin, start_params, take_over
from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.config.downstream import check_architecture, check_size_is_known
from ddae_jax.data.batch_augment import mixup_or_cutmix, random_erasing, smoothed_one_hot
from ddae_jax.data.labels import labelled_subset, with_classes
from ddae_jax.data.rand_augment import rand_augment
from ddae_jax.hooks.classification import ClassificationWatch
from ddae_jax.jobs import cli, runner
from ddae_jax.methods.supervised import LabelledTask, classification_error
from ddae_jax.models.classifier import Classifier
from ddae_jax.patches import patch_grid
from ddae_jax.training.optimizer import make_finetuning_optimizer
from ddae_jax.training.program import Program
from ddae_jax.training.step import Prepare
from ddae_jax.training.workdir import Workdir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(JOB, argv)


def complete(
    config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str] = ()
) -> None:
    """Takes the encoder's architecture over; its positions are learned from now on.

    Raises as :func:`ddae_jax.builders.initialization.take_over` does, and ``ValueError`` for
    keys that ask for what the encoder does not have.
    """
    take_over(config, stored, given, learns_positions=True)
    check_size_is_known(config)
    check_architecture(config)


def build_parts(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> runner.Parts:
    """What a fine-tuning run is made of."""
    train, test = (
        build.build_source(config, split)
        for split in (config.data.train_split, config.data.test_split)
    )
    build.warn_if_trained_on(config, config.data.test_split)
    build.settle_crop_share(config, train)
    names = workdir.read_classes() if workdir.has_checkpoint() else None
    if names:
        what = f"the {config.data.train_split!r} split"
        train = with_classes(train, names, len(names), what=what, of="the run so far")
    test = build.checked_test(train, test, config)
    train = labelled_subset(train, config.data.labelled_share, config.seed)
    schedule = build.build_schedule(config, len(train))
    program = build_program(config, schedule, runner.Data(num_classes=train.num_classes))
    task = program.method
    has_checkpoint = workdir.has_checkpoint()
    return runner.Parts(
        program=program,
        source=train,
        loader=build.build_loader(config, train, transform=build_transform(config)),
        schedule=schedule,
        class_names=train.class_names,
        watch=ClassificationWatch(config, workdir, task, test, schedule, mesh),
        description=describe(config, train.num_classes),
        begin=functools.partial(
            begin, method=task, params=None if has_checkpoint else start_params(config)
        ),
    )


def build_program(config: ConfigDict, schedule: build.Schedule, data: runner.Data) -> Program:
    """The step of a fine-tuning run."""
    prepare = build_prepare(config, data.num_classes)
    return labelled_program(config, schedule, build_task(config, data.num_classes), prepare)


def labelled_program(
    config: ConfigDict, schedule: build.Schedule, task: LabelledTask, prepare: Prepare
) -> Program:
    """The step that trains a network with labels."""
    learning_rate = build.build_learning_rate(config, schedule)
    return Program(
        method=task,
        prepare=prepare,
        optimizer=build_optimizer(config, learning_rate, task.encoder.depth),
        learning_rate=learning_rate,
        momentum=optax.constant_schedule(config.average.decay),
        channels=config.data.channels,
        seed=config.seed,
        micro_batches=config.optimizer.micro_batches,
        skips_nonfinite=config.optimizer.skip_nonfinite > 0,
    )


def batch_shapes(config: ConfigDict, data: runner.Data) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch."""
    return runner.image_batch(config, tuple(config.model.image_size))


def build_task(config: ConfigDict, num_classes: int) -> LabelledTask:
    """The network that the config describes, and its error."""
    classifier = Classifier(
        build_encoder(config),
        num_classes,
        pool=config.model.pool,
        normalization=config.head.normalization,
        init_deviation=config.head.init_deviation,
        is_frozen=config.model.is_frozen,
    )
    return LabelledTask(classifier, classification_error, keeps_average=config.average.decay > 0)


def build_transform(config: ConfigDict) -> Callable | None:
    """RandAugment of the config, or nothing."""
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


def build_prepare(config: ConfigDict, num_classes: int) -> Prepare:
    """What the step does to a batch: normalisation, random erasing, smooth labels, and mixing."""
    normalize, augment = build_normalize(config), config.augment
    erase = functools.partial(random_erasing, probability=augment.erasing_probability)
    mix = functools.partial(
        mixup_or_cutmix,
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        probability=augment.mix_probability,
    )
    smoothing = augment.label_smoothing

    def prepare(key: PRNGKeyArray, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        erase_key, mix_key = jax.random.split(key)
        images = erase(erase_key, normalize(batch["image"]))
        return mix(mix_key, images, smoothed_one_hot(batch["label"], num_classes, smoothing))

    return prepare


def build_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule, depth: int
) -> optax.GradientTransformation:
    """The config's optimizer of an encoder of so many blocks, and of its head."""
    options = config.optimizer
    return make_finetuning_optimizer(
        learning_rate,
        depth=depth,
        kind=options.get("kind", "adamw"),
        weight_decay=options.weight_decay,
        decay_also=options.decay_also,
        b1=options.b1,
        b2=options.b2,
        clip_norm=options.clip_norm or None,
        layer_decay=options.layer_decay,
        is_frozen=config.model.get("is_frozen", False),
    )


def describe(config: ConfigDict, num_classes: int) -> str:
    """One line on what is trained."""
    what = "a linear probe on" if config.model.is_frozen else "fine-tuning of"
    size, patch_size = config.model.size, config.model.patch_size
    height, width = config.model.image_size
    h, w = patch_grid((height, width), patch_size)
    return (
        f"{what} a ViT-{size}/{patch_size} to {num_classes} classes, at {height} x {width} pixels "
        f"({h} x {w} patches), {starting_point(config)}"
    )


def starting_point(config: ConfigDict) -> str:
    """Where the encoder is from, in words."""
    is_fresh = not config.init_from or config.from_scratch
    return "from scratch" if is_fresh else f"from {config.init_from}"


JOB = runner.Job("finetune", __doc__, build_parts, build_program, batch_shapes, complete)


if __name__ == "__main__":
    cli.run(main)

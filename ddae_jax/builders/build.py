"""From a config to the objects that a job works with. The config goes no further than here."""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.networks import (
    build_decoder,
    build_encoder,
    build_normalize,
    build_tokenizer,
)
from ddae_jax.builders.pretrained import load_teacher, load_tokenizer
from ddae_jax.config.pretraining import mask_unit
from ddae_jax.data.array_source import in_memory
from ddae_jax.data.augment import Augmentation, Transform, augment_on_device
from ddae_jax.data.batches import Batch, batches_per_epoch
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.labels import validated, with_classes
from ddae_jax.data.readable import check_any_is_readable
from ddae_jax.data.source_base import Source
from ddae_jax.data.sources import make_source
from ddae_jax.data.splits import warn_of_shared_examples
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.data.view import USUAL_SHARE, View
from ddae_jax.evaluation.features import Encode, make_encode
from ddae_jax.evaluation.knn import knn_predict
from ddae_jax.evaluation.labelled_images import LabelledImages, Predict
from ddae_jax.evaluation.linear_probe import linear_predict
from ddae_jax.masking import block_mask, num_masked_patches, random_mask, smallest_block
from ddae_jax.methods import Method, find_method, options_of
from ddae_jax.methods.supervision import supervised_depths
from ddae_jax.methods.task import Trainable
from ddae_jax.methods.vqkd import VqKd
from ddae_jax.training.multihost import united
from ddae_jax.training.optimizer import make_optimizer
from ddae_jax.training.schedules import (
    copy_schedule,
    half_life_schedule,
    learning_rate_schedule,
    momentum_schedule,
)
from ddae_jax.training.step import Prepare

_log = logging.getLogger(__name__)

MAX_STEPS = 2**31 - 1
"""The longest run: its steps are counted in an int32."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run's length in steps."""

    steps_per_epoch: int
    total_steps: int

    def steps(self, epochs: float) -> int:
        """Steps of so many epochs, from 1 to :data:`MAX_STEPS`, which is never."""
        return max(1, round(min(epochs * self.steps_per_epoch, MAX_STEPS)))


def build_schedule(config: ConfigDict, num_images: int) -> Schedule:
    """Steps an epoch of so many images, and of the whole run; warns if a batch is larger.

    Raises ``ValueError`` for more than :data:`MAX_STEPS`.
    """
    steps_per_epoch = batches_per_epoch(num_images, config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise ValueError(
            f"epochs={config.epochs:g} of {steps_per_epoch} steps are {total_steps:g} steps; a run "
            f"has at most {MAX_STEPS}, here epochs={MAX_STEPS // steps_per_epoch}"
        )
    if config.batch_size > num_images:
        _log.warning(
            "batch_size=%d is more than the %d images to train on: a batch repeats them, and "
            "counts as an epoch",
            config.batch_size,
            num_images,
        )
    return Schedule(steps_per_epoch, max(1, round(total_steps)))


def build_trainable(config: ConfigDict) -> Trainable:
    """What the config trains: a method, or the tokenizer of one.

    Raises ``ValueError`` or ``FileNotFoundError`` for a tokenizer or teacher that is not there or
    does not fit.
    """
    return build_vqkd(config) if config.method == "vqkd" else build_method(config)


def build_method(config: ConfigDict) -> Method:
    """The method that the config describes, around its encoder."""
    encoder = build_encoder(config)
    num_masked = num_masked_patches(encoder.grid, config.mask.ratio, mask_unit(config))
    masks = {
        "random": functools.partial(random_mask, unit=config.mask.unit),
        "block": functools.partial(
            block_mask, min_block=smallest_block(num_masked, config.mask.min_block_share)
        ),
    }
    supervision = config.supervision
    is_last = supervision.mode == "last"
    return find_method(config.method)(
        encoder,
        build_decoder(config),
        sample_mask=functools.partial(
            masks[config.mask.kind], grid=encoder.grid, num_masked=num_masked
        ),
        num_masked=num_masked,
        depths=supervised_depths(supervision.mode, encoder.depth, tuple(supervision.depths)),
        mode=supervision.mode,
        weighting=supervision.weighting,
        normalizes_intermediate=supervision.normalize_intermediate,
        intermediate_share=config.decoder.intermediate_share,
        has_decoder_per_depth=not config.decoder.is_shared,
        # Given for several depths, of which this mode reads out one.
        depth_weights=None if is_last else tuple(supervision.depth_weights) or None,
        beta_init=supervision.beta_init,
        beta_gradient=supervision.beta_gradient,
        **_own_options(config),
    )


def build_vqkd(config: ConfigDict) -> VqKd:
    """The tokenizer that the config describes, and the teacher that it learns from."""
    teacher = load_teacher(config.tokenizer.teacher, config)
    return VqKd(
        build_tokenizer(config, teacher.module.width),
        teacher,
        num_codes=config.tokenizer.num_codes,
        decay=config.tokenizer.decay,
        commitment=config.tokenizer.commitment,
        revive_below=config.tokenizer.revive_below,
    )


def _own_options(config: ConfigDict) -> dict[str, Any]:
    """The method's own options, which not all methods have."""
    names = options_of(config.method)
    found = {name: value for name, value in config.targets.items() if name in names}
    if "channels" in names:
        found["channels"] = config.data.channels
    if "tokenizer" in names:
        found["tokenizer"] = load_tokenizer(config.targets.tokenizer, config)
    return found


def build_optimizer(
    config: ConfigDict, schedule: Schedule
) -> tuple[optax.GradientTransformation, optax.Schedule, optax.Schedule]:
    """The optimizer, its learning rate by step, and the teacher's momentum by step."""
    options = config.optimizer
    learning_rate = build_learning_rate(config, schedule)
    optimizer = make_optimizer(
        learning_rate,
        total_steps=schedule.total_steps,
        weight_decay=options.weight_decay,
        decay_also=options.decay_also,
        b1=options.b1,
        b2=options.b2,
        clip_norm=options.clip_norm or None,
        beta_step=config.supervision.beta_step,
        beta_range=tuple(config.supervision.beta_range),
    )
    return optimizer, learning_rate, build_momentum(config, schedule)


def build_momentum(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """The teacher's momentum by step."""
    options, per_epoch = config.teacher, schedule.steps_per_epoch
    if options.copy_every_epochs:
        return copy_schedule(schedule.steps(options.copy_every_epochs))
    if options.half_life_epochs:
        hold = options.hold * schedule.total_steps
        start = (options.half_life_start_epochs or options.half_life_epochs) * per_epoch
        if options.half_life_start_epochs and hold and options.min_half_lives:
            start = min(start, hold / options.min_half_lives)
        return half_life_schedule(
            start,
            options.half_life_epochs * per_epoch,
            hold,
            options.warmup * schedule.total_steps,
        )
    return momentum_schedule(options.momentum_start, options.momentum_end, schedule.total_steps)


def build_learning_rate(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """The learning rate by step."""
    options = config.optimizer
    return learning_rate_schedule(
        options.learning_rate,
        config.batch_size,
        round(min(options.warmup_epochs * schedule.steps_per_epoch, schedule.total_steps)),
        schedule.total_steps,
        options.end_learning_rate,
        options.get("decay", "cosine"),
    )


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
        "unite": united,
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


def build_labelled_images(
    config: ConfigDict, mesh: Mesh, limit: int | None = None
) -> LabelledImages:
    """The labelled training and test images of the config, to evaluate frozen features on.

    Raises ``ValueError`` if the source has no labels, or the test images other classes, or if no
    image of one of the two can be decoded; and :class:`ddae_jax.data.labels.BadLabel`, now or
    where it is read, for a label of no class.
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


def warn_if_trained_on(config: ConfigDict, split: str, within: str = "") -> None:
    """Warns where images that are tested on are trained on too; ``within`` is for a folder."""
    data = config.data
    warn_of_shared_examples(data.source, data.data_dir, data.train_split, split, within)


def checked_test(train: Source, test: Source, config: ConfigDict) -> Source:
    """The test images, by the numbers of the training's classes, if any of them can be decoded.

    Raises ``ValueError`` as :func:`with_classes_of` does, ``BadLabel`` as
    :func:`ddae_jax.data.labels.validated` does, and ``NothingReadable``.
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


def build_encode(config: ConfigDict, mesh: Mesh, *, depth: int, pool: str) -> Encode:
    """From images to frozen features, read after block ``depth``, or the last one if it is 0."""
    encoder = build_encoder(config)
    return make_encode(
        encoder, build_normalize(config), mesh, depth=depth or encoder.depth, pool=pool
    )


def build_predict(config: ConfigDict, task: str) -> Predict:
    """The classifier of a task, ``knn`` or ``linear``."""
    if task == "linear":
        return linear_predict
    return functools.partial(
        knn_predict, k=config.evaluation.k, temperature=config.evaluation.temperature
    )


def build_prepare(config: ConfigDict) -> Prepare:
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

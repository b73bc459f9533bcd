"""Builders of a run's learning rate, optimizer and teacher momentum."""

import optax
from ml_collections import ConfigDict

from ddae_jax.training.optimizer import make_finetuning_optimizer, make_optimizer
from ddae_jax.training.schedules import (
    Schedule,
    copy_schedule,
    half_life_schedule,
    learning_rate_schedule,
    momentum_schedule,
)


def build_learning_rate(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """Builds the schedule of the learning rate, by step."""
    options = config.optimizer
    return learning_rate_schedule(
        options.learning_rate,
        config.batch_size,
        round(min(options.warmup_epochs * schedule.steps_per_epoch, schedule.total_steps)),
        schedule.total_steps,
        options.end_learning_rate,
        options.get("decay", "cosine"),
    )


def build_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule, schedule: Schedule
) -> optax.GradientTransformation:
    """Builds the optimizer of pretraining."""
    options = config.optimizer
    return make_optimizer(
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


def build_momentum(config: ConfigDict, schedule: Schedule) -> optax.Schedule:
    """Builds the schedule of the teacher's momentum, by step."""
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


def build_finetuning_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule, depth: int
) -> optax.GradientTransformation:
    """Builds the optimizer of a fine-tuned encoder, which has ``depth`` blocks, and of its head."""
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

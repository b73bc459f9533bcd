"""What a single key of a config may hold: words, ranges, lengths."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.schema import DEFAULTS_VERSION, TUPLES, defaults_by_key, flatten
from ddae_jax.config.values import check_keys, on_command_line, type_in_words
from ddae_jax.data.images import PILLOW_MAX_PIXELS
from ddae_jax.data.view import INTERPOLATIONS
from ddae_jax.interop.preprocessing import POOLS
from ddae_jax.methods import METHODS
from ddae_jax.methods.hog import FORMS
from ddae_jax.methods.supervision import MODES
from ddae_jax.models.vit import SIZES
from ddae_jax.models.weight_decay import check_decay_also
from ddae_jax.suggestions import did_you_mean

CHOICES = {
    "method": tuple(METHODS),
    "model.size": tuple(SIZES),
    "model.encoder_input": ("full", "visible"),
    "model.positions": ("sincos", "learned", "none"),
    "model.relative_positions": ("none", "shared", "per_block"),
    "model.dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("float32", "bfloat16", "as_trained"),
    "model.rematerialization": ("none", "dots", "full"),
    "model.attention_form": ("auto", "batched_matmul", "dot_product", "cudnn", "einsum"),
    "mask.kind": ("random", "block"),
    "supervision.mode": MODES,
    "supervision.weighting": ("power", "normalised", "neighbourhood"),
    "supervision.beta_gradient": ("relative", "absolute"),
    "decoder.kind": ("self", "cross"),
    "targets.hog_form": FORMS,
    "targets.feature_normalization": ("layer", "batch", "position", "instance"),
    "targets.feature_places": ("hidden", "visible", "both"),
    "data.source": ("digits", "tfds", "folder"),
    "data.augment_in": ("workers", "device"),
    "evaluation.pool": POOLS,
    "evaluation.crop_mode": ("center", "squash"),
    "evaluation.interpolation": INTERPOLATIONS,
    "evaluation.encoder": ("student", "teacher"),
    "init_encoder": ("student", "teacher"),
    "init_activation": ("", "gelu", "quick_gelu", "gelu_tanh"),
    "model.pool": ("mean", "class_token"),
    "model.activation": ("gelu", "quick_gelu", "gelu_tanh"),
    "head.normalization": ("layer", "batch"),
    "head.kind": ("upernet", "linear"),
    "optimizer.decay": ("cosine", "linear"),
    "optimizer.kind": ("adamw", "lars"),
}
"""The words that a key may hold."""

Ignored = tuple[bool, tuple[str, ...], str]
"""Whether keys with some prefixes have no effect, and why."""

_ABOVE_0 = 5e-324  # the smallest number there is
_MANY = 10**9  # of whatever is counted: more can only be a slip of the keyboard

RANGES = {
    "defaults_version": (1, DEFAULTS_VERSION),
    "seed": (0, 2**32 - 1),
    "init_heads": (0, 1024),
    "batch_size": (1, 10**6),
    "epochs": (_ABOVE_0, math.inf),  # but see build.build_schedule
    "model.patch_size": (1, 2**14),
    "model.drop_path_rate": (0, 0.99),
    "model.layer_scale": (0, 10),
    "mask.unit": (1, 2**14),
    "mask.min_block_share": (0, 1),
    "decoder.width": (1, 2**16),
    "decoder.depth": (0, 1000),
    "decoder.num_heads": (1, 2**16),
    "decoder.intermediate_blocks": (0, 1000),
    "decoder.intermediate_share": (_ABOVE_0, 1),
    "targets.pixel_weight": (0, 10**6),
    "targets.pixel_fade": (0, 1),
    "targets.feature_start": (0, 1),
    "targets.feature_warmup": (0, 1),
    "teacher.half_life_epochs": (0, 10**6),
    "teacher.half_life_start_epochs": (0, 10**6),
    "teacher.hold": (0, 1),
    "teacher.min_half_lives": (0, 1000),
    "teacher.warmup": (0, 1),
    "teacher.copy_every_epochs": (0, 10**6),
    "targets.feature_weight": (0, 10**6),
    "targets.hog_cell": (1, 2**14),
    "targets.aggregation_blocks": (1, 1000),
    "targets.aggregated_patches_from": (0, 1000),
    "tokenizer.num_codes": (2, 2**20),
    "tokenizer.code_width": (1, 2**12),
    "tokenizer.decoder_depth": (0, 1000),
    "tokenizer.decay": (0, 0.999999),
    "tokenizer.commitment": (0, 10**6),
    "tokenizer.revive_below": (0, 1),
    "tokenizer.min_perplexity_share": (0, 1),
    "supervision.beta_init": (-10, 10),  # no distance ** beta leaves float32
    "supervision.beta_step": (0, 10**6),
    "teacher.momentum_start": (0, 1),
    "teacher.momentum_end": (0, 1),
    "optimizer.learning_rate": (0, 1e30),  # scaled to the batch, it stays within float32
    "optimizer.end_learning_rate": (0, 1e30),
    "optimizer.warmup_epochs": (0, math.inf),
    "optimizer.weight_decay": (0, 1000),
    "optimizer.b1": (0, 0.999999),
    "optimizer.b2": (0, 0.999999),
    "optimizer.clip_norm": (0, 10**6),
    "optimizer.layer_decay": (_ABOVE_0, 1),
    "optimizer.micro_batches": (1, 10**6),
    "optimizer.skip_nonfinite": (0, 10**6),
    "model.norm_epsilon": (1e-12, 0.1),
    "head.init_deviation": (0, 10),
    "head.width": (1, 2**14),
    "head.auxiliary_weight": (0, 1000),
    "augment.max_class_share": (0.01, 1),
    "data.num_classes": (2, 255),
    "data.channels": (1, 1000),
    "data.ignore_label": (-1, 2**16),
    "augment.num_operations": (1, 100),
    "augment.magnitude": (0, 10),
    "augment.magnitude_deviation": (0, 10),
    "augment.erasing_probability": (0, 1),
    "augment.mixup": (0, 1000),
    "augment.cutmix": (0, 1000),
    "augment.mix_probability": (0, 1),
    "augment.label_smoothing": (0, 0.99),
    "average.decay": (0, 0.9999999),
    "data.labelled_share": (_ABOVE_0, 1),
    "data.num_workers": (0, 1024),
    "data.num_threads": (0, 1024),
    "data.max_corrupt_share": (0, 1),
    "data.max_pixels": (0, PILLOW_MAX_PIXELS),
    "data.max_value": (0, 1e38),
    "checkpoint.every_epochs": (_ABOVE_0, math.inf),
    "checkpoint.keep_last": (1, _MANY),
    "checkpoint.keep_every": (0, _MANY),
    "log.every_steps": (1, _MANY),
    "log.figures_every_epochs": (0, math.inf),
    "evaluation.every_epochs": (0, math.inf),
    "evaluation.knn_every_epochs": (0, math.inf),
    "evaluation.crop_share": (0, 1),
    "evaluation.k": (1, _MANY),
    "evaluation.temperature": (0, 1000),
    "evaluation.batch_size": (1, 10**6),
    "evaluation.max_examples": (0, _MANY),
}
"""The least and the most that a number may be."""

_ASCENDING = ("supervision.beta_range", "data.crop_scale", "data.crop_ratio")
_ASCENDING += ("augment.scale_range", "augment.base_size")

_NOT_ABOVE = (
    ("optimizer.end_learning_rate", "optimizer.learning_rate"),
    ("teacher.momentum_start", "teacher.momentum_end"),
)
"""Pairs of keys of which the first must not exceed the second."""


def check_each_key(config: ConfigDict) -> None:
    """Raises ``ValueError``, naming key, value and what is allowed, for what no config may hold."""
    check_keys(config)
    flat = flatten(config)
    for key, known in {**CHOICES, "method": tuple(METHODS)}.items():  # which may be added to
        if key in flat and flat[key] not in known:
            raise ValueError(
                f"{key}={flat[key]!r}; known: {_listed(known)}{did_you_mean(flat[key], known)}"
            )
    for key, (least, most) in RANGES.items():
        if key in flat:
            _check_number(key, flat[key], least, most)
    for key, (length, _, (least, most)) in TUPLES.items():
        if key not in flat:
            continue
        _check_length(key, flat, length)
        for value in flat[key]:
            _check_number(key, value, least, most, shown=flat[key])
    with named_by_key(decay_also="optimizer.decay_also"):
        check_decay_also(config.optimizer.decay_also)
    for key in _ASCENDING:
        if key in flat and flat[key][0] > flat[key][1]:
            raise ValueError(f"{key}={flat[key]}; its start must not exceed its end")
    for low, high in _NOT_ABOVE:
        if high in flat and flat[low] > flat[high]:
            raise ValueError(f"{low}={flat[low]} must not exceed {high}={flat[high]}")
    if config.data.source == "tfds" and not config.data.name:
        raise ValueError(
            "data.source='tfds' needs the name of a dataset, such as data.name='cifar10'"
        )


def ignored_of_data(config: ConfigDict) -> list[Ignored]:
    """Keys of the data that its source does not ask for."""
    source = config.data.source
    return [
        (source != "tfds", ("data.name",), f"data.source={source!r} reads no dataset by name"),
        (source == "digits", ("data.data_dir",), "data.source='digits' comes with scikit-learn"),
    ]


def ignored_of_weight_decay(config: ConfigDict) -> list[Ignored]:
    """What is to be decayed, where nothing is."""
    is_none = config.optimizer.weight_decay == 0
    return [(is_none, ("optimizer.decay_also",), "optimizer.weight_decay=0 decays nothing")]


def _check_number(key: str, value: float, least: float, most: float, shown: Any = None) -> None:
    if least <= value <= most and abs(value) < math.inf:  # also refuses what is not a number
        return
    if least == _ABOVE_0 and most == math.inf:
        allowed = "more than 0" if abs(value) < math.inf else "a finite number, more than 0"
    elif least == _ABOVE_0:
        allowed = f"more than 0, at most {most}"
    elif most < math.inf:
        allowed = f"in [{least}, {most}]"
    else:
        allowed = f"at least {least}" if abs(value) < math.inf else f"finite, at least {least}"
    if key in ("data.mean", "data.std"):
        allowed += ", as pixel values are divided by 255"
    it_is = f"{value}; it is" if shown is None else f"{shown}; each is"
    raise ValueError(f"{key}={it_is} {allowed}")


def _check_length(key: str, flat: Mapping[str, Any], length: int | str | None) -> None:
    values = flat[key]
    if isinstance(length, str):
        wanted = flat[length]
        if len(values) != wanted:
            message = (
                f"{key}={values}; {length}={wanted} asks for {_count(wanted, 'value')} in each of "
                "data.mean and data.std: set both"
            )
            if wanted not in (1, 3):
                raise ValueError(
                    f"{message}; python -m ddae_jax.pixel_statistics, with the same --config "
                    "arguments, computes them of the images"
                )
            such_as = (0.5,) if wanted == 1 else defaults_by_key(flat["job"])[key]
            raise ValueError(
                f"{message}, such as {key}={such_as} in the config file, or "
                f"--config.{key}={on_command_line(such_as)}"
            )
    elif length is not None and len(values) != length:
        raise ValueError(f"{key}={values}; it is {type_in_words(key, flat['job'])}")


@contextlib.contextmanager
def named_by_key(**keys: str) -> Iterator[None]:
    """Lets an error about a function's argument name the key that it comes from."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, key in keys.items():
            message = re.sub(rf"(?<![\w.]){name}=", f"{key}=", message)
        raise ValueError(message) from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(known: Iterable) -> str:
    return ", ".join(repr(word) for word in known)

"""What a config may hold: words, ranges, and what goes together."""

import contextlib
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config import (
    TUPLES,
    check_keys,
    defaults_by_key,
    flatten,
    on_command_line,
    type_in_words,
)
from ddae_jax.masking import num_masked_patches
from ddae_jax.methods import METHODS, options_of
from ddae_jax.methods.supervision import MODES, supervised_depths
from ddae_jax.models.vit import SIZES
from ddae_jax.patches import patch_grid

CHOICES = {
    "method": (*METHODS, "vqkd"),
    "model.size": tuple(SIZES),
    "model.encoder_input": ("full", "visible"),
    "model.positions": ("sincos", "learned", "none"),
    "model.relative_positions": ("none", "shared", "per_block"),
    "model.dtype": ("float32", "bfloat16"),
    "model.rematerialization": ("none", "dots", "full"),
    "model.attention_form": ("auto", "batched_matmul", "dot_product"),
    "mask.kind": ("random", "block"),
    "supervision.mode": MODES,
    "supervision.weighting": ("power", "normalised"),
    "data.source": ("digits", "tfds", "folder"),
    "data.augment_in": ("workers", "device"),
    "data.channels": (1, 3),
    "evaluation.pool": ("mean", "class_token"),
    "evaluation.encoder": ("student", "teacher"),
}
"""The words that a key may hold."""

_ABOVE_0 = 5e-324  # the smallest number there is
_MANY = 10**9  # of whatever is counted: more can only be a slip of the keyboard

RANGES = {
    "seed": (0, 2**32 - 1),
    "batch_size": (1, 10**6),
    "epochs": (_ABOVE_0, math.inf),  # but see build.build_schedule
    "model.patch_size": (1, 2**14),
    "model.drop_path_rate": (0, 0.99),
    "model.layer_scale": (0, 10),
    "mask.unit": (1, 2**14),
    "decoder.width": (1, 2**16),
    "decoder.depth": (0, 1000),
    "decoder.num_heads": (1, 2**16),
    "decoder.intermediate_blocks": (0, 1000),
    "targets.pixel_weight": (0, 10**6),
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
    "tokenizer.min_perplexity": (0, 2**20),
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
    "data.num_workers": (0, 1024),
    "data.num_threads": (0, 1024),
    "data.max_corrupt_share": (0, 1),
    "checkpoint.every_epochs": (_ABOVE_0, math.inf),
    "checkpoint.keep_last": (1, _MANY),
    "checkpoint.keep_every": (0, _MANY),
    "log.every_steps": (1, _MANY),
    "log.figures_every_epochs": (0, math.inf),
    "evaluation.knn_every_epochs": (0, math.inf),
    "evaluation.k": (1, _MANY),
    "evaluation.temperature": (0, 1000),
    "evaluation.batch_size": (1, 10**6),
    "evaluation.max_examples": (0, _MANY),
}
"""The least and the most that a number may be."""

_ASCENDING = ("supervision.beta_range", "data.crop_scale", "data.crop_ratio")

_NOT_ABOVE = (
    ("optimizer.end_learning_rate", "optimizer.learning_rate"),
    ("teacher.momentum_start", "teacher.momentum_end"),
)
"""Pairs of keys of which the first must not exceed the second."""


def check_config(config: ConfigDict) -> None:
    """Raises ``ValueError``, naming key, value and what is allowed, for what can be seen here.

    Nothing is built, read or compiled.
    """
    check_keys(config)
    flat = flatten(config)
    for key, known in CHOICES.items():
        if flat[key] not in known:
            raise ValueError(
                f"{key}={flat[key]!r}; known: {_listed(known)}{_near(flat[key], known)}"
            )
    for key, (least, most) in RANGES.items():
        _check_number(key, flat[key], least, most)
    for key, (length, _, (least, most)) in TUPLES.items():
        _check_length(key, flat, length)
        for value in flat[key]:
            _check_number(key, value, least, most, shown=flat[key])
    for key in _ASCENDING:
        if flat[key][0] > flat[key][1]:
            raise ValueError(f"{key}={flat[key]}; its start must not exceed its end")
    for low, high in _NOT_ABOVE:
        if flat[low] > flat[high]:
            raise ValueError(f"{low}={flat[low]} must not exceed {high}={flat[high]}")
    _check_model(config)
    _check_method(config)
    _check_supervision(config)
    _check_evaluation(config)
    if config.data.source == "tfds" and not config.data.name:
        raise ValueError(
            "data.source='tfds' needs the name of a dataset, such as data.name='cifar10'"
        )


def ignored_keys(config: ConfigDict) -> list[str]:
    """One line for each key that is set but has no effect, as others switch off what it is about.

    Set means: to something else than the default.
    """
    flat, defaults = flatten(config), defaults_by_key()
    mode, source, method = flat["supervision.mode"], flat["data.source"], flat["method"]
    switched_off = [
        (
            mode == "last",
            ("supervision.depths", "supervision.depth_weights"),
            "supervision.mode='last' reads out the last block alone",
        ),
        (
            mode in ("last", "deep"),
            ("supervision.weighting", "supervision.beta_"),
            f"supervision.mode={mode!r} weighs all hidden patches alike",
        ),
        (
            flat["model.encoder_input"] == "full",
            ("decoder.",),
            "model.encoder_input='full' has no decoder",
        ),
        (
            flat["model.encoder_input"] == "visible" and mode == "last",
            ("decoder.intermediate_blocks",),
            "supervision.mode='last' decodes no intermediate depth",
        ),
        (method != "vqkd", ("tokenizer.",), f"method={method!r} trains no tokenizer"),
        (
            method == "vqkd",
            ("mask.", "supervision."),
            "method='vqkd' hides nothing, and is supervised at its end",
        ),
        (
            True,
            tuple(f"targets.{name}" for name in config.targets if name not in _options(config)),
            f"method={method!r} has no such option",
        ),
        (
            not has_momentum_encoder(config),
            ("teacher.",),
            "targets.feature_weight=0 leaves out the teacher"
            if "feature_weight" in _options(config)
            else f"method={method!r} has no teacher",
        ),
        (
            "pixel_weight" in _options(config) and not _predicts_pixels(config),
            ("targets.normalize_pixels",),
            "targets.pixel_weight=0 leaves out the pixels",
        ),
        (flat["mask.kind"] == "block", ("mask.unit",), "mask.kind='block' hides blocks of patches"),
        (source != "tfds", ("data.name",), f"data.source={source!r} reads no dataset by name"),
        (source == "digits", ("data.data_dir",), "data.source='digits' comes with scikit-learn"),
        (
            flat["evaluation.knn_every_epochs"] == 0,
            ("evaluation.max_examples",),
            "evaluation.knn_every_epochs=0 leaves out k-NN during training",
        ),
    ]
    return [
        f"{key}={flat[key]!r} is ignored: {reason}"
        for holds, prefixes, reason in switched_off
        for key in flat
        if holds and key.startswith(prefixes) and flat[key] != defaults[key]
    ]


def mask_unit(config: ConfigDict) -> int:
    """The side of what a mask hides as a whole, patches; blocks are made of single patches."""
    return config.mask.unit if config.mask.kind == "random" else 1


def has_momentum_encoder(config: ConfigDict) -> bool:
    """Whether the run keeps one."""
    return "feature_weight" in _options(config) and config.targets.feature_weight > 0


def _options(config: ConfigDict) -> frozenset[str]:
    """The method's own ones; a tokenizer, which hides nothing, has none."""
    return options_of(config.method) if config.method in METHODS else frozenset()


def _predicts_pixels(config: ConfigDict) -> bool:
    options = _options(config)
    if "pixel_weight" in options:
        return config.targets.pixel_weight > 0
    return "normalize_pixels" in options


def _check_number(key: str, value: float, least: float, most: float, shown: Any = None) -> None:
    if least <= value <= most and abs(value) < math.inf:  # also refuses what is not a number
        return
    if least == _ABOVE_0:
        allowed = "more than 0" if abs(value) < math.inf else "a finite number, more than 0"
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
            such_as = (0.5,) if wanted == 1 else defaults_by_key()[key]
            raise ValueError(
                f"{key}={values}; {length}={wanted} asks for {_count(wanted, 'value')} in each of "
                f"data.mean and data.std: set both, such as {key}={such_as} in the config file, or "
                f"--config.{key}={on_command_line(such_as)}"
            )
    elif length is not None and len(values) != length:
        raise ValueError(f"{key}={values}; it is {type_in_words(key)}")


def _check_model(config: ConfigDict) -> None:
    model, decoder = config.model, config.decoder
    with _named_by_key(
        image_size="model.image_size",
        patch_size="model.patch_size",
        mask_ratio="mask.ratio",
        mask_unit="mask.unit",
    ):
        grid = patch_grid(model.image_size, model.patch_size)
        num_masked_patches(grid, config.mask.ratio, mask_unit(config))
    if decoder.intermediate_blocks > decoder.depth:
        raise ValueError(
            f"decoder.intermediate_blocks={decoder.intermediate_blocks} are more than "
            f"decoder.depth={decoder.depth}"
        )
    if model.encoder_input == "visible" and model.relative_positions != "none":
        raise ValueError(
            f"model.relative_positions={model.relative_positions!r} are those of all patches, but "
            "model.encoder_input='visible' encodes some; set one of them to 'none' or 'full'"
        )
    is_one_value = model.patch_size**2 * config.data.channels == 1
    if is_one_value and config.targets.normalize_pixels and _predicts_pixels(config):
        raise ValueError(
            "model.patch_size=1, data.channels=1: a patch of one value cannot be normalised; "
            "raise one of them, or set targets.normalize_pixels=False"
        )
    if decoder.width % decoder.num_heads or decoder.width % 4:
        raise ValueError(
            f"decoder.width={decoder.width}, decoder.num_heads={decoder.num_heads}; the width is a "
            "multiple of the heads, and of 4"
        )


def _check_method(config: ConfigDict) -> None:
    model, targets = config.model, config.targets
    if model.encoder_input == "visible" and config.method in ("beit2", "vqkd"):
        raise ValueError(
            f"method={config.method!r} encodes all patches; set model.encoder_input='full'"
        )
    if config.method == "beit2" and not model.use_class_token:
        raise ValueError(
            "method='beit2' aggregates in the class token: set model.use_class_token=True"
        )
    if "tokenizer" in _options(config) and not targets.tokenizer:
        raise ValueError(
            f"method={config.method!r} predicts the tokens of a trained tokenizer: give the "
            "workdir of a run with method='vqkd' as targets.tokenizer"
        )
    if config.method == "vqkd" and not config.tokenizer.teacher:
        raise ValueError(
            "method='vqkd' learns from a teacher: give the workdir of an earlier run, or a folder "
            "with model.safetensors, as tokenizer.teacher"
        )
    if "hog_cell" in _options(config) and model.patch_size % targets.hog_cell:
        raise ValueError(
            f"targets.hog_cell={targets.hog_cell} does not divide model.patch_size="
            f"{model.patch_size}"
        )
    weights = {"pixel_weight", "feature_weight"} & _options(config)
    if weights and not any(targets[name] for name in weights):
        raise ValueError(
            "targets.pixel_weight and targets.feature_weight are both 0; nothing is left to learn"
        )


def _check_supervision(config: ConfigDict) -> None:
    size, supervision = SIZES[config.model.size], config.supervision
    with _named_by_key(depths="supervision.depths"):
        depths = supervised_depths(supervision.mode, size.depth, supervision.depths)
    if depths[-1] != size.depth:
        raise ValueError(
            f"supervision.depths={depths}; the last one must be {size.depth}, the depth of "
            f"model.size={config.model.size!r}, or the blocks after it are never trained"
        )
    weights = supervision.depth_weights if supervision.mode != "last" else ()
    if weights and len(weights) != len(depths):
        raise ValueError(
            f"supervision.depth_weights={weights}; one for each of the supervised depths {depths}, "
            f"or () for 1 each"
        )
    if weights and not weights[-1]:
        raise ValueError(
            f"supervision.depth_weights={weights}; the last one, of depth {depths[-1]}, must be "
            "more than 0, or the blocks before it are never trained"
        )
    low, high = supervision.beta_range
    if not low <= supervision.beta_init <= high:
        raise ValueError(
            f"supervision.beta_init={supervision.beta_init} lies outside "
            f"supervision.beta_range={supervision.beta_range}"
        )


def _check_evaluation(config: ConfigDict) -> None:
    depth, evaluation = SIZES[config.model.size].depth, config.evaluation
    if not 0 <= evaluation.depth <= depth:
        raise ValueError(
            f"evaluation.depth={evaluation.depth}; it lies in [1, {depth}], or is 0 for the last"
        )
    if 0 < evaluation.temperature < 0.001:
        raise ValueError(
            f"evaluation.temperature={evaluation.temperature}; it is at least 0.001, or 0 for "
            "votes that count alike"
        )
    if evaluation.encoder == "teacher" and not has_momentum_encoder(config):
        raise ValueError(
            "evaluation.encoder='teacher' needs a teacher: method='ddae' with "
            "targets.feature_weight > 0"
        )
    if evaluation.pool == "class_token" and not config.model.use_class_token:
        raise ValueError("evaluation.pool='class_token' needs model.use_class_token=True")


@contextlib.contextmanager
def _named_by_key(**keys: str) -> Iterator[None]:
    """Lets an error about a function's argument name the key that it comes from."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, key in keys.items():
            message = message.replace(f"{name}=", f"{key}=")
        raise ValueError(message) from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _near(value: Any, known: Iterable) -> str:
    by_lower_case = {str(word).lower(): word for word in known}
    near = difflib.get_close_matches(str(value).lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""


def _listed(known: Iterable) -> str:
    return ", ".join(repr(word) for word in known)

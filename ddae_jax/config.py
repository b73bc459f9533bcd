"""The config of a run: its keys, their defaults and types, and how two configs differ."""

import contextlib
import difflib
import functools
import json
import math
import os
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

TUPLES = {
    "model.image_size": (2, int, (1, 2**14)),
    "supervision.depths": (None, int, (-math.inf, math.inf)),  # but see supervised_depths
    "supervision.depth_weights": (None, float, (0, 10**6)),
    "supervision.beta_range": (2, float, (-10, 10)),
    "data.crop_scale": (2, float, (0.001, 1)),
    "data.crop_ratio": (2, float, (0.01, 100)),
    "data.mean": ("data.channels", float, (0, 1)),
    "data.std": ("data.channels", float, (0.001, 1)),
}
"""How many values a tuple has (None: any number), of which type, and their least and most."""

RENAMED = {"evaluation.max_train_examples": "evaluation.max_examples"}
"""Keys that stored configs may have by an older name, and what they are called now."""

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

# Where the default is empty, and so says little.
_EXAMPLES = {
    "supervision.depths": (6, 12),
    "supervision.depth_weights": (0.5, 1.0),
    "data.name": "cifar10",
    "data.data_dir": "/data",
    "targets.tokenizer": "runs/tokenizer",
    "tokenizer.teacher": "runs/teacher",
}

FREE_TO_CHANGE = ("checkpoint", "log", "evaluation", "mesh", "data.data_dir", "data.num_workers")
FREE_TO_CHANGE += ("data.num_threads", "data.max_corrupt_share", "tokenizer.min_perplexity")
FREE_TO_CHANGE += ("targets.tokenizer", "tokenizer.teacher")  # where it is; not what
"""Keys that may differ when a run is continued: they do not change what it computes."""


def pretrain_defaults() -> ConfigDict:
    """Every key of a pretraining config, with its default; keys cannot be added to it.

    A config file starts from these and sets what is particular to its run.
    """
    config = ConfigDict()
    config.seed = 0  # 0 to 2**32 - 1
    config.method = "ddae"
    config.batch_size = 256  # images a step, over all devices
    config.epochs = 100.0  # of fewer than 2**31 steps

    config.model = ConfigDict()
    config.model.size = "B"
    config.model.image_size = (224, 224)  # height, width; pixels
    config.model.patch_size = 16
    config.model.encoder_input = "full"  # or "visible", with the decoder
    config.model.positions = "sincos"
    config.model.relative_positions = "none"  # or a learned bias, "shared" or "per_block"
    config.model.layer_scale = 0.0  # where the factors of each branch start; 0 for no factors
    config.model.has_key_bias = True
    config.model.use_class_token = True
    config.model.drop_path_rate = 0.0
    config.model.dtype = "bfloat16"  # of the computation; parameters are float32
    config.model.rematerialization = "none"
    config.model.attention_form = "auto"

    config.decoder = ConfigDict()  # used with encoder_input="visible"
    config.decoder.width = 512
    config.decoder.depth = 8
    config.decoder.num_heads = 16
    config.decoder.intermediate_blocks = 0  # that decode depths before the last; 0 for all

    config.mask = ConfigDict()
    config.mask.kind = "random"
    config.mask.ratio = 0.75  # hidden share of patches
    config.mask.unit = 1  # side of the squares that a random mask hides as a whole, patches

    config.targets = ConfigDict()
    config.targets.normalize_pixels = True
    config.targets.pixel_weight = 1.0  # lambda of each objective; 0 leaves it out
    config.targets.feature_weight = 1.0
    config.targets.hog_cell = 8  # side of the cells of gradient histograms, pixels
    config.targets.tokenizer = ""  # workdir of a run with method="vqkd"
    config.targets.aggregation_blocks = 2  # of BEiT v2's patch-aggregation head
    config.targets.aggregated_patches_from = 0  # the block they come from; 0 for that at 3/4

    config.tokenizer = ConfigDict()  # used with method="vqkd"
    config.tokenizer.teacher = ""  # workdir of a run, or a folder with model.safetensors
    config.tokenizer.num_codes = 8192
    config.tokenizer.code_width = 32
    config.tokenizer.decoder_depth = 3
    config.tokenizer.decay = 0.99  # of the codebook's moving averages
    config.tokenizer.commitment = 1.0  # weight of the loss that draws vectors to codes
    config.tokenizer.revive_below = 0.1  # dead is a code of less than this share of mean usage
    config.tokenizer.min_perplexity = 16.0  # less than this for long is warned of; 0 for never

    config.supervision = ConfigDict()
    config.supervision.mode = "deep_dynamic"
    config.supervision.depths = ()  # ascending, the last L; () for L/2, 2L/3, 5L/6, L
    config.supervision.depth_weights = ()  # alpha of each depth; () for 1 each
    config.supervision.weighting = "power"
    config.supervision.beta_init = -0.5  # within beta_range
    config.supervision.beta_step = 5.0  # beta's way in a whole run, for a gradient of -1
    config.supervision.beta_range = (-2.0, 2.0)  # within -10 to 10

    config.teacher = ConfigDict()
    config.teacher.momentum_start = 0.996
    config.teacher.momentum_end = 1.0  # at least momentum_start

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.5e-4  # for 256 images; scaled by batch_size / 256
    config.optimizer.end_learning_rate = 0.0  # scaled likewise
    config.optimizer.warmup_epochs = 10.0  # cut to the run's length
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.clip_norm = 3.0  # largest gradient norm; 0 for no clipping

    config.data = ConfigDict()
    config.data.source = "folder"
    config.data.name = ""  # of the tfds dataset
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.test_split = "validation"  # for evaluation; not needed for pretraining
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)  # of each channel, of values in [0, 1]
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop_scale = (0.2, 1.0)  # area of a random crop, 0.001 to 1 of the image's
    config.data.crop_ratio = (3 / 4, 4 / 3)  # its width over its height; 0.01 to 100
    config.data.flip = True
    config.data.augment_in = "workers"  # or "device", for images of one size
    config.data.num_workers = 0  # processes; 0 for threads of this one
    config.data.num_threads = 0  # in each process; 0 for what suits the images
    config.data.in_memory = False  # decode all images once; for small ones of one size
    config.data.max_corrupt_share = 0.01  # more unreadable images than this stop the run

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along each axis; -1 takes what the other leaves
    config.mesh.fsdp = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1.0  # and at the end, always
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # every k-th is kept for good; 0 for none

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.figures_every_epochs = 0.0  # 0, or more than the run has: at the end only
    config.log.tensorboard = True

    config.evaluation = ConfigDict()
    config.evaluation.knn_every_epochs = 0.0  # 0 for never
    config.evaluation.encoder = "student"
    config.evaluation.depth = 0  # 0 for the last
    config.evaluation.pool = "mean"
    config.evaluation.k = 20
    config.evaluation.temperature = 0.07
    config.evaluation.batch_size = 256
    config.evaluation.max_examples = 0  # of each set, for k-NN during training; 0 for all
    config.lock()
    return config


def check_keys(config: ConfigDict) -> None:
    """Raises ``ValueError`` unless a config has every key, no other one, and the right types."""
    flat = flatten(config)
    for key, value in flat.items():
        typed(key, value)
    missing = [key for key in defaults_by_key() if key not in flat]
    if missing:
        raise ValueError(
            f"config.{missing[0]} is missing; a config starts from "
            "ddae_jax.config.pretrain_defaults(), which has every key"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key: ``{"model.size": "B", ...}``."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists, as JSON stores it."""
    return json.loads(config.to_json())


def from_plain(plain: Mapping[str, Any], file: str | os.PathLike = "config.json") -> ConfigDict:
    """A stored config as it was; keys that have been renamed since have their new names.

    Args:
        plain: as :func:`to_plain` gives it.
        file: that it was read from, for messages.

    Raises:
        ValueError: naming file and key, if it is no dict, has keys that no config has, or values
            of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{file} holds {plain!r}; it must hold the keys of a config, in {{}}")
    config = pretrain_defaults()
    for key, value in flatten(plain).items():
        key = RENAMED.get(key, key)
        try:
            config.update_from_flattened_dict({key: typed(key, value)})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return config


def contradictions(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    file: str | os.PathLike = "config.json",
) -> list[str]:
    """One line for each key in which a run's config contradicts the one given to continue it.

    Keys that came into being after the config was stored have their defaults. Raises ``ValueError``
    as :func:`from_plain` does, of which ``stored`` and ``file`` are the arguments.
    """
    stored, given = flatten(to_plain(from_plain(stored, file))), flatten(given)
    return [
        f"{key}: {stored[key]!r} in the workdir, {value!r} given"
        for key, value in given.items()
        if stored[key] != value and not _is_free(key)
    ]


def typed(key: str, value: Any) -> Any:
    """A value as its key holds it: lists become tuples, and whole numbers floats where they must.

    Raises ``ValueError`` for a value of the wrong type, and for what is no key.
    """
    if key not in defaults_by_key():
        raise ValueError(unknown_key(key))
    kind = type(defaults_by_key()[key])
    if kind is tuple and isinstance(value, list | tuple):
        if all(_is_number(item, TUPLES[key][1]) for item in value):
            return tuple(value)
    elif kind in (int, float):
        if _is_number(value, kind):
            with contextlib.suppress(OverflowError):
                return kind(value)
    elif isinstance(value, kind):
        return value
    raise ValueError(f"config.{key}={value!r} is of the wrong type; it is {type_in_words(key)}")


def parse_value(key: str, text: str) -> Any:
    """The value of a key as a command line has it: ``3``, ``true``, ``224,224``.

    Raises ``ValueError`` for a text that is no such value, and for what is no key.
    """
    if key not in defaults_by_key():
        raise ValueError(unknown_key(key))
    kind = type(defaults_by_key()[key])
    with contextlib.suppress(ValueError, KeyError):
        if kind is bool:
            return _BOOLEANS[text.strip().lower()]
        if kind is not tuple:
            return kind(text)
        values, length = typed(key, _parse_numbers(text)), TUPLES[key][0]
        if length is None or isinstance(length, str) or len(values) == length:
            return values
    raise ValueError(
        f"config.{key}={text!r} is of the wrong type; it is {_kind_in_words(key)}, such as "
        f"--config.{key}={on_command_line(_example(key))}"
    )


def type_in_words(key: str) -> str:
    """What the value of a key is: ``2 whole numbers, such as (224, 224)``."""
    words, example = _kind_in_words(key), _example(key)
    return words if isinstance(example, bool) else f"{words}, such as {example!r}"


def unknown_key(key: str) -> str:
    """Message for a key that no config has: the nearest known ones, or all of its section."""
    known = list(defaults_by_key())
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"config.{key} is a section; its keys are {', '.join(below)}"
    near = _nearest_keys(key, known)
    if near:
        hint = f"did you mean {' or '.join(f'config.{name}' for name in near)}?"
    else:
        beside = [name for name in known if name.startswith(f"{key.rpartition('.')[0]}.")]
        hint = f"known: {', '.join(beside or known)}"
    return f"config.{key} is no key of a pretraining config; {hint}"


def _nearest_keys(key: str, known: list[str]) -> list[str]:
    """The key that is meant; several if that is undecided, none if there is no such key."""
    if key in RENAMED:
        return [RENAMED[key]]
    parents = [name for name in known if key.startswith(f"{name}.")]
    if parents:
        return parents
    current = {name: name for name in known} | RENAMED
    section, _, leaf = key.rpartition(".")
    of_that_name = [name for name in current if name.rpartition(".")[2] == leaf]
    if of_that_name:
        in_like_section = difflib.get_close_matches(key, of_that_name, n=1, cutoff=0.8)
        return [current[name] for name in (section and in_like_section) or of_that_name]
    near = difflib.get_close_matches(key, current, n=1, cutoff=0.7)
    if not near:
        leaves = {name.rpartition(".")[2]: name for name in current}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)]
    return [current[name] for name in near]


def _parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, in brackets or not. Raises ``ValueError`` for anything else."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":  # (), or the comma of (1,)
        items.pop()
    return tuple(_parse_number(item) for item in items)


def _parse_number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _kind_in_words(key: str) -> str:
    kind = type(defaults_by_key()[key])
    if kind is not tuple:
        words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        return words[kind]
    length, kind, _ = TUPLES[key]
    words = "whole numbers" if kind is int else "numbers"
    return f"{length} {words}" if isinstance(length, int) else words


def _example(key: str) -> Any:
    return _EXAMPLES.get(key, defaults_by_key()[key])


def on_command_line(value: Any) -> str:
    """A value as it is written after ``--config.KEY=``."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@functools.cache
def defaults_by_key() -> Mapping[str, Any]:
    """The defaults by dotted key: ``{"model.size": "B", ...}``."""
    return types.MappingProxyType(flatten(pretrain_defaults()))


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)

"""The config of a run: its keys and defaults, what they may be, and how two configs differ."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.masking import num_masked_patches
from ddae_jax.methods import METHODS
from ddae_jax.methods.supervision import MODES, supervised_depths
from ddae_jax.models.vit import SIZES
from ddae_jax.patches import patch_grid

CHOICES = {
    "method": tuple(METHODS),
    "model.size": tuple(SIZES),
    "model.encoder_input": ("full", "visible"),
    "model.positions": ("sincos", "learned"),
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

_POSITIVE = (5e-324, math.inf)  # from the smallest number above 0
_ANY = (-math.inf, math.inf)

RANGES = {
    "seed": (0, math.inf),
    "batch_size": (1, math.inf),
    "epochs": _POSITIVE,
    "model.patch_size": (1, math.inf),
    "model.drop_path_rate": (0, 0.99),
    "decoder.width": (1, math.inf),
    "decoder.depth": (0, math.inf),
    "decoder.num_heads": (1, math.inf),
    "targets.pixel_weight": (0, math.inf),
    "targets.feature_weight": (0, math.inf),
    "supervision.beta_init": _ANY,
    "supervision.beta_step": (0, math.inf),
    "teacher.momentum_start": (0, 1),
    "teacher.momentum_end": (0, 1),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.end_learning_rate": (0, math.inf),
    "optimizer.warmup_epochs": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.b1": (0, 0.999999),
    "optimizer.b2": (0, 0.999999),
    "optimizer.clip_norm": (0, math.inf),
    "data.num_workers": (0, math.inf),
    "data.num_threads": (0, math.inf),
    "data.max_corrupt_share": (0, 1),
    "checkpoint.every_epochs": _POSITIVE,
    "checkpoint.keep_last": (1, math.inf),
    "checkpoint.keep_every": (0, math.inf),
    "log.every_steps": (1, math.inf),
    "log.figures_every_epochs": (0, math.inf),
    "evaluation.knn_every_epochs": (0, math.inf),
    "evaluation.k": (1, math.inf),
    "evaluation.temperature": (0, math.inf),
    "evaluation.batch_size": (1, math.inf),
    "evaluation.max_train_examples": (0, math.inf),
}
"""The least and the most that a number may be."""

TUPLES = {
    "model.image_size": (2, int, (1, math.inf)),
    "supervision.depths": (None, int, (1, math.inf)),
    "supervision.depth_weights": (None, float, (0, math.inf)),
    "supervision.beta_range": (2, float, _ANY),
    "data.crop_scale": (2, float, (5e-324, 1)),
    "data.crop_ratio": (2, float, _POSITIVE),
    "data.mean": ("data.channels", float, _ANY),
    "data.std": ("data.channels", float, _POSITIVE),
}
"""How many values a tuple has (None: any number), of which type, and their least and most."""

_ASCENDING = ("supervision.beta_range", "data.crop_scale", "data.crop_ratio")

FREE_TO_CHANGE = ("checkpoint", "log", "evaluation", "mesh", "data.data_dir", "data.num_workers")
FREE_TO_CHANGE += ("data.num_threads", "data.max_corrupt_share", "data.in_memory")
"""Keys that may differ when a run is continued: they do not change what it computes."""


def pretrain_defaults() -> ConfigDict:
    """Every key of a pretraining config, with its default; keys cannot be added to it.

    A config file starts from these and sets what is particular to its run.
    """
    config = ConfigDict()
    config.seed = 0
    config.method = "ddae"
    config.batch_size = 256  # images a step, over all devices
    config.epochs = 100.0

    config.model = ConfigDict()
    config.model.size = "B"
    config.model.image_size = (224, 224)  # height, width; pixels
    config.model.patch_size = 16
    config.model.encoder_input = "full"  # or "visible", with the decoder
    config.model.positions = "sincos"
    config.model.use_class_token = True
    config.model.drop_path_rate = 0.0
    config.model.dtype = "bfloat16"  # of the computation; parameters are float32
    config.model.rematerialization = "none"
    config.model.attention_form = "auto"

    config.decoder = ConfigDict()  # used with encoder_input="visible"
    config.decoder.width = 512
    config.decoder.depth = 8
    config.decoder.num_heads = 16

    config.mask = ConfigDict()
    config.mask.kind = "random"
    config.mask.ratio = 0.75  # hidden share of patches

    config.targets = ConfigDict()
    config.targets.normalize_pixels = True
    config.targets.pixel_weight = 1.0  # lambda of each objective; 0 leaves it out
    config.targets.feature_weight = 1.0

    config.supervision = ConfigDict()
    config.supervision.mode = "deep_dynamic"
    config.supervision.depths = ()  # () for L/2, 2L/3, 5L/6, L
    config.supervision.depth_weights = ()  # alpha of each depth; () for 1 each
    config.supervision.weighting = "power"
    config.supervision.beta_init = -0.5
    config.supervision.beta_step = 5.0  # beta's way in a whole run, for a gradient of -1
    config.supervision.beta_range = (-2.0, 2.0)

    config.teacher = ConfigDict()
    config.teacher.momentum_start = 0.996
    config.teacher.momentum_end = 1.0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.5e-4  # for 256 images; scaled by batch_size / 256
    config.optimizer.end_learning_rate = 0.0
    config.optimizer.warmup_epochs = 10.0
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
    config.data.crop_scale = (0.2, 1.0)  # area of a random crop, as a share of the image's
    config.data.crop_ratio = (3 / 4, 4 / 3)  # its width over its height
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
    config.checkpoint.every_epochs = 1.0
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # every k-th is kept for good; 0 for none

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.figures_every_epochs = 0.0  # 0 for at the end only
    config.log.tensorboard = True

    config.evaluation = ConfigDict()
    config.evaluation.knn_every_epochs = 0.0  # 0 for never
    config.evaluation.encoder = "student"
    config.evaluation.depth = 0  # 0 for the last
    config.evaluation.pool = "mean"
    config.evaluation.k = 20
    config.evaluation.temperature = 0.07
    config.evaluation.batch_size = 256
    config.evaluation.max_train_examples = 0  # for k-NN during training; 0 for all
    config.lock()
    return config


def check_config(config: ConfigDict) -> None:
    """Raises ``ValueError``, naming key, value and what is allowed, for what can be seen here.

    Nothing is built, read or compiled.
    """
    flat = flatten(config)
    for key, known in CHOICES.items():
        if flat[key] not in known:
            raise ValueError(
                f"{key}={flat[key]!r}; known: {_listed(known)}{_near(flat[key], known)}"
            )
    for key, (least, most) in RANGES.items():
        _check_number(key, flat[key], least, most)
    for key, (length, kind, (least, most)) in TUPLES.items():
        values = tuple(flat[key])
        length = flat[length] if isinstance(length, str) else length
        if length is not None and len(values) != length:
            raise ValueError(f"{key}={values}; it has {length} values")
        for value in values:
            if isinstance(value, bool) or not isinstance(
                value, int if kind is int else int | float
            ):
                names = {int: "whole numbers", float: "numbers"}
                raise ValueError(f"{key}={values}; its values are {names[kind]}")
            _check_number(key, value, least, most, shown=values)
    for key in _ASCENDING:
        if flat[key][0] > flat[key][1]:
            raise ValueError(f"{key}={tuple(flat[key])}; its start must not exceed its end")
    _check_model(config)


def _check_number(key: str, value: float, least: float, most: float, shown: Any = None) -> None:
    if least <= value <= most and abs(value) < math.inf:  # also refuses what is not a number
        return
    if most < math.inf:
        allowed = f"in [{least}, {most}]" if least in (0, 1) else f"more than 0, at most {most}"
    elif least > -math.inf:
        allowed = f"at least {least}" if least in (0, 1) else "more than 0"
    else:
        allowed = "a finite number"
    it_is = f"{value}; it is" if shown is None else f"{shown}; each is"
    raise ValueError(f"{key}={it_is} {allowed}")


def _check_model(config: ConfigDict) -> None:
    size = SIZES[config.model.size]
    grid = patch_grid(tuple(config.model.image_size), config.model.patch_size)
    num_masked_patches(grid, config.mask.ratio)
    is_one_value = config.model.patch_size**2 * config.data.channels == 1
    if is_one_value and config.targets.normalize_pixels and config.targets.pixel_weight:
        raise ValueError(
            "model.patch_size=1, data.channels=1: a patch of one value cannot be normalised; "
            "raise one of them, or set targets.normalize_pixels=False"
        )
    mode, depths = config.supervision.mode, tuple(config.supervision.depths)
    try:
        read_out = supervised_depths(mode, size.depth, depths)
    except ValueError as error:
        raise ValueError(
            f"supervision.{error} (model.size={config.model.size!r} has {size.depth} blocks)"
        ) from None
    if read_out[-1] != size.depth:
        raise ValueError(
            f"supervision.depths={read_out}; the last one must be {size.depth}, the depth of "
            f"model.size={config.model.size!r}, or the blocks after it are never trained"
        )
    alphas = tuple(config.supervision.depth_weights)
    if alphas and len(alphas) != len(read_out):
        raise ValueError(
            f"supervision.depth_weights={alphas}; one for each supervised depth, {read_out}"
        )
    if not 0 <= config.evaluation.depth <= size.depth:
        raise ValueError(
            f"evaluation.depth={config.evaluation.depth}; it lies in [1, {size.depth}], "
            "or is 0 for the last"
        )
    decoder = config.decoder
    if decoder.width % decoder.num_heads or decoder.width % 4:
        raise ValueError(
            f"decoder.width={decoder.width}, decoder.num_heads={decoder.num_heads}; the width is a "
            "multiple of the heads, and of 4"
        )
    if not config.targets.pixel_weight and not config.targets.feature_weight:
        raise ValueError(
            "targets.pixel_weight and targets.feature_weight are both 0; nothing is left"
        )
    if config.evaluation.encoder == "teacher" and not config.targets.feature_weight:
        raise ValueError("evaluation.encoder='teacher' needs a teacher: targets.feature_weight > 0")
    if config.evaluation.pool == "class_token" and not config.model.use_class_token:
        raise ValueError("evaluation.pool='class_token' needs model.use_class_token=True")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key: ``{"model.size": "B", ...}``."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists, as JSON stores it."""
    return json.loads(config.to_json())


def from_plain(plain: Mapping[str, Any]) -> ConfigDict:
    """A stored config as it was. Raises ``ValueError`` for keys that no config has."""
    config = pretrain_defaults()
    flat = flatten(config)
    for key, value in flatten(plain).items():
        if key not in flat:
            raise ValueError(unknown_key(key))
        parent, _, leaf = key.rpartition(".")
        node = config[parent] if parent else config
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return config


def contradictions(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line for each key in which a run's config contradicts the one given to continue it.

    Keys that came into being after the config was stored have their defaults.
    """
    stored, given = flatten(to_plain(from_plain(stored))), flatten(given)
    return [
        f"{key}: {stored[key]!r} in the workdir, {value!r} given"
        for key, value in given.items()
        if stored[key] != value and not _is_free(key)
    ]


def unknown_key(key: str) -> str:
    """Message for a key that no config has: the nearest known ones, or all of its section."""
    known = list(flatten(pretrain_defaults()))
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    leaf = key.rpartition(".")[2]
    near = [by_leaf[leaf]] if leaf in by_leaf else []
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    near = near or [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1)]
    hint = f"did you mean config.{near[0]}?" if near else f"known: {', '.join(known)}"
    return f"config.{key} is no key of a pretraining config; {hint}"


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)


def _near(value: Any, known: Iterable) -> str:
    near = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(known: Iterable) -> str:
    return ", ".join(repr(word) for word in known)

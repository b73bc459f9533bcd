"""The config of a run: its keys and defaults, what they may be, and how two configs differ."""

import difflib
import json
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
    for key, low, high in (
        ("model.drop_path_rate", 0, 0.99),
        ("teacher.momentum_start", 0, 1),
        ("teacher.momentum_end", 0, 1),
        ("data.max_corrupt_share", 0, 1),
        ("batch_size", 1, None),
        ("epochs", 0, None),
        ("model.patch_size", 1, None),
        ("log.every_steps", 1, None),
        ("checkpoint.keep_last", 1, None),
        ("checkpoint.keep_every", 0, None),
        ("optimizer.learning_rate", 0, None),
        ("optimizer.weight_decay", 0, None),
        ("optimizer.warmup_epochs", 0, None),
        ("optimizer.clip_norm", 0, None),
        ("evaluation.k", 1, None),
        ("evaluation.temperature", 0, None),
        ("data.num_workers", 0, None),
        ("data.num_threads", 0, None),
    ):
        if flat[key] < low or (high is not None and flat[key] > high):
            allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise ValueError(f"{key}={flat[key]}; it is {allowed}")
    for key in ("epochs", "checkpoint.every_epochs"):
        if flat[key] <= 0:
            raise ValueError(f"{key}={flat[key]}; it is more than 0")
    for key, length in (
        ("model.image_size", 2),
        ("data.crop_scale", 2),
        ("data.crop_ratio", 2),
        ("supervision.beta_range", 2),
        ("data.mean", config.data.channels),
        ("data.std", config.data.channels),
    ):
        if len(flat[key]) != length:
            raise ValueError(f"{key}={tuple(flat[key])}; it has {length} values")
    _check_model(config)


def _check_model(config: ConfigDict) -> None:
    size = SIZES[config.model.size]
    grid = patch_grid(tuple(config.model.image_size), config.model.patch_size)
    num_masked_patches(grid, config.mask.ratio)
    mode, depths = config.supervision.mode, tuple(config.supervision.depths)
    try:
        read_out = supervised_depths(mode, size.depth, depths)
    except ValueError as error:
        raise ValueError(
            f"supervision.{error} (model.size={config.model.size!r} has {size.depth} blocks)"
        ) from None
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
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    leaf = key.rpartition(".")[2]
    near = near or [k for k in known if k.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in known], n=1)
    hint = f"did you mean config.{near[0]}?" if near else f"known: {', '.join(known)}"
    return f"config.{key} is no key of a pretraining config; {hint}"


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)


def _near(value: Any, known: Iterable) -> str:
    near = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(known: Iterable) -> str:
    return ", ".join(repr(word) for word in known)

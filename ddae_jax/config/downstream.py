"""Checks of fine-tuning and segmentation configs: keys that contradict or disable each other."""

from ml_collections import ConfigDict

from ddae_jax.config.shared_checks import (
    Ignored,
    ignored_of_data,
    ignored_of_weight_decay,
    named_by_key,
)
from ddae_jax.models.sizes import SIZES
from ddae_jax.patches import patch_grid

ARCHITECTURE = (
    "size",
    "patch_size",
    "positions",
    "relative_positions",
    "layer_scale",
    "has_key_bias",
    "use_class_token",
    "norms_embedding",
    "activation",
    "norm_epsilon",
)
"""Keys of ``model`` whose values are those of the encoder in ``init_from``, where it is given."""

INHERITED_KEYS = frozenset(f"model.{name}" for name in ARCHITECTURE)
INHERITED_KEYS |= {"data.channels", "data.mean", "data.std"}
"""All keys whose values are those of the encoder in ``init_from``."""

OF_INIT_FROM = ("init_heads", "init_activation", "init_part")
"""Keys that describe the weights in ``init_from`` where their file does not."""


def check_finetuning(config: ConfigDict) -> None:
    """Raises ``ValueError`` for keys of a fine-tuning config that contradict each other."""
    _check_downstream(config)
    if config.model.is_frozen and not config.init_from:
        raise ValueError(
            "model.is_frozen=True trains the head alone, on features of nothing: give what was "
            "pretrained as init_from"
        )
    if config.from_scratch and config.model.is_frozen:
        raise ValueError(
            "from_scratch=True, model.is_frozen=True: features of an untrained network that stays "
            "so; set one of them to False"
        )


def check_segmentation(config: ConfigDict) -> None:
    """Raises ``ValueError`` for keys of a segmentation config that contradict each other."""
    _check_downstream(config)
    depths = tuple(config.head.depths)
    if depths and (len(depths) != 4 or list(depths) != sorted(set(depths))):
        raise ValueError(f"head.depths={depths}; four blocks, ascending, or () for L/3 to L")
    if config.data.source == "digits":
        raise ValueError(
            "data.source='digits' has no annotations of pixels; set data.source to 'folder' or "
            "'tfds'"
        )
    if not config.evaluation.scales:
        raise ValueError("evaluation.scales=(); at least one, such as (1.0,)")
    for stride, side in zip(config.evaluation.stride, config.model.image_size, strict=True):
        if stride > side:
            raise ValueError(
                f"evaluation.stride={config.evaluation.stride} exceeds model.image_size="
                f"{config.model.image_size}: pixels between two windows would not be seen"
            )


def check_architecture(config: ConfigDict) -> None:
    """Raises ``ValueError`` for keys that ask for what the config's encoder does not have.

    With ``init_from`` the architecture of its encoder must have been taken over before.
    """
    model = config.model
    if any(model.image_size):
        with named_by_key(image_size="model.image_size", patch_size="model.patch_size"):
            patch_grid(model.image_size, model.patch_size)
    theirs = f"the encoder of init_from={config.init_from!r}" if config.init_from else ""
    if config.job == "finetune" and model.pool == "class_token" and not model.use_class_token:
        cure = f"set model.pool='mean', as {theirs} has none" if theirs else "set it to True"
        raise ValueError(f"model.pool='class_token' needs model.use_class_token=True; {cure}")
    depth = SIZES[model.size].depth
    if config.job == "segment" and max(config.head.depths, default=0) > depth:
        whose = theirs or f"model.size={model.size!r}"
        raise ValueError(f"head.depths={tuple(config.head.depths)}; {whose} has {depth} blocks")


def check_size_is_known(config: ConfigDict) -> None:
    """Raises ``ValueError`` if images are to have the size of an encoder that is not given."""
    if not any(config.model.image_size):
        raise ValueError(
            "model.image_size=(0, 0) is that of the encoder in init_from, which is empty: give "
            "--config.init_from=RUN_OR_WEIGHTS, or --config.model.image_size=HEIGHT,WIDTH"
        )


def _check_downstream(config: ConfigDict) -> None:
    if not config.init_from:  # else the architecture is not known yet
        check_architecture(config)


def ignored_in_finetuning(config: ConfigDict) -> list[Ignored]:
    """Returns which keys have no effect under which condition, and why."""
    augment, is_lars = config.augment, config.optimizer.kind == "lars"
    of_rand_augment = ("augment.num_operations", "augment.magnitude")
    mixes = augment.mixup > 0 or augment.cutmix > 0
    return [
        (
            not config.init_from,
            ("init_encoder", "from_scratch", *OF_INIT_FROM),
            "init_from is empty",
        ),
        (not augment.rand_augment, of_rand_augment, "augment.rand_augment=False"),
        (not mixes, ("augment.mix_probability",), "augment.mixup=0 and augment.cutmix=0"),
        (is_lars, ("optimizer.b",), "optimizer.kind='lars' has no such option"),
        (config.model.is_frozen, ("optimizer.layer_decay",), "model.is_frozen=True"),
        *ignored_of_data(config),
        *ignored_of_weight_decay(config),
    ]


def ignored_in_segmentation(config: ConfigDict) -> list[Ignored]:
    """Returns which keys have no effect under which condition, and why."""
    is_linear = config.head.kind == "linear"
    return [
        (
            not config.init_from,
            ("init_encoder", "from_scratch", *OF_INIT_FROM),
            "init_from is empty",
        ),
        (
            is_linear,
            ("head.width", "head.depths", "head.auxiliary_weight"),
            "head.kind='linear' reads the last block alone",
        ),
        *ignored_of_data(config),
        *ignored_of_weight_decay(config),
    ]

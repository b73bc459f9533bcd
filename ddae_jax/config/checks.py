"""Checks of a whole config: values that are refused, and keys that have no effect."""

from ml_collections import ConfigDict

from ddae_jax.config.defaults import defaults_by_key
from ddae_jax.config.downstream import (
    check_finetuning,
    check_segmentation,
    ignored_in_finetuning,
    ignored_in_segmentation,
)
from ddae_jax.config.pretraining import check_pretraining, ignored_in_pretraining
from ddae_jax.config.schema import flatten
from ddae_jax.config.shared_checks import check_each_key

_CHECKS = {
    "pretrain": check_pretraining,
    "finetune": check_finetuning,
    "segment": check_segmentation,
}
_IGNORED = {
    "pretrain": ignored_in_pretraining,
    "finetune": ignored_in_finetuning,
    "segment": ignored_in_segmentation,
}


def check_config(config: ConfigDict) -> None:
    """Raises ``ValueError``, naming key, value and what is allowed, for a config that cannot work.

    Looks at the config alone: nothing is built, read or compiled.
    """
    check_each_key(config)
    size = tuple(config.model.image_size)
    if 0 in size and (size != (0, 0) or config.job != "finetune"):
        raise ValueError(
            f"model.image_size={size}; both sides are at least 1, or both 0 in fine-tuning, for "
            "those of the encoder in init_from"
        )
    if config.batch_size % config.optimizer.micro_batches:
        raise ValueError(
            f"optimizer.micro_batches={config.optimizer.micro_batches} does not divide "
            f"batch_size={config.batch_size}"
        )
    _check_channels(config)
    _CHECKS[config.job](config)


def _check_channels(config: ConfigDict) -> None:
    channels = config.data.channels
    if channels in (1, 3):
        return
    if config.data.source != "folder":
        raise ValueError(
            f"data.channels={channels}; images are grey (1) or RGB (3), and those of other "
            "channels are read from a folder of .npy, .npz or TIFF files, by data.source='folder'"
        )
    if config.job == "finetune" and config.augment.rand_augment:
        raise ValueError(
            f"augment.rand_augment=True changes the colours of grey or RGB images, and "
            f"data.channels={channels}; set it to False"
        )


def ignored_keys(config: ConfigDict) -> list[str]:
    """Returns a line for each key that is set but has no effect, because others disable it.

    A key counts as set if its value is not the default that the run began with.
    """
    flat, defaults = flatten(config), defaults_by_key(config.job, config.defaults_version)
    return [
        f"{key}={flat[key]!r} is ignored: {reason}"
        for holds, prefixes, reason in _IGNORED[config.job](config)
        for key in flat
        if holds and key.startswith(prefixes) and flat[key] != defaults[key]
    ]

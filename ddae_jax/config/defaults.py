"""The configs that config files start from: every key of a job with its default."""

import functools
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.earlier import DEFAULTS_VERSION, EARLIER_DEFAULTS
from ddae_jax.config.keys import KEYS
from ddae_jax.config.schema import flatten, make_config


def pretrain_defaults() -> ConfigDict:
    """Returns every key of a pretraining config with its default; keys cannot be added to it.

    A config file starts from these and sets what is particular to its run.
    """
    return make_config(KEYS["pretrain"])


def finetune_defaults() -> ConfigDict:
    """Returns every key of a fine-tuning config with its default; keys cannot be added to it.

    They are MAE's recipe for ViT-B (He et al. 2022, table 9, with the learning rate, its layer-wise
    decay and the random erasing of the released command).
    """
    return make_config(KEYS["finetune"])


def segment_defaults() -> ConfigDict:
    """Returns every key of a segmentation config with its default; keys cannot be added to it.

    They are mmsegmentation's recipe for MAE on ADE20K, for ViT-B.
    """
    return make_config(KEYS["segment"])


JOBS = {
    "pretrain": pretrain_defaults,
    "finetune": finetune_defaults,
    "segment": segment_defaults,
}
"""The defaults of each job's config."""

WORDS = {"pretrain": "pretraining", "finetune": "fine-tuning", "segment": "segmentation"}
"""What each job does."""


def defaults_of(job: str, version: int = DEFAULTS_VERSION) -> ConfigDict:
    """Returns every key of a job's config, with the default that it had in a version."""
    config = JOBS[job]()
    for earlier in range(DEFAULTS_VERSION - 1, version - 1, -1):
        config.update_from_flattened_dict(EARLIER_DEFAULTS[earlier].get(job, {}))
    config.defaults_version = version
    return config


@functools.cache
def defaults_by_key(job: str = "pretrain", version: int = DEFAULTS_VERSION) -> Mapping[str, Any]:
    """Returns the defaults of a job by dotted key: ``{"model.size": "B", ...}``."""
    return types.MappingProxyType(flatten(defaults_of(job, version)))

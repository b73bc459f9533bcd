"""The table of all keys: one row each, with default, explanation, and what the key may hold.

A key means the same in all jobs. The rows are in :mod:`ddae_jax.config.shared_keys`,
:mod:`ddae_jax.config.pretraining_keys` and :mod:`ddae_jax.config.downstream_keys`; docs/config.md
shows them all.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from ddae_jax.config.downstream_keys import (
    DOWNSTREAM,
    FINETUNING,
    FINETUNING_DEFAULTS,
    SEGMENTATION,
    SEGMENTATION_DEFAULTS,
)
from ddae_jax.config.pretraining_keys import NEIGHBOURS, PRETRAINING
from ddae_jax.config.schema import Key
from ddae_jax.config.shared_keys import CROPS, EVERY_JOB, WHOLE_IMAGES


def _with_defaults(keys: Mapping[str, Key], defaults: Mapping[str, Any]) -> Mapping[str, Key]:
    return {
        name: dataclasses.replace(key, default=defaults[name]) if name in defaults else key
        for name, key in keys.items()
    }


KEYS: Mapping[str, Mapping[str, Key]] = types.MappingProxyType(
    {
        "pretrain": EVERY_JOB | PRETRAINING | CROPS | WHOLE_IMAGES | NEIGHBOURS,
        "finetune": _with_defaults(
            EVERY_JOB | DOWNSTREAM | CROPS | FINETUNING | WHOLE_IMAGES, FINETUNING_DEFAULTS
        ),
        "segment": _with_defaults(EVERY_JOB | DOWNSTREAM | SEGMENTATION, SEGMENTATION_DEFAULTS),
    }
)
"""The rows of each job, by key. Configs are stored in this order."""

ALL_KEYS: Mapping[str, Key] = types.MappingProxyType(
    KEYS["pretrain"]
    | {name: key for name, key in KEYS["finetune"].items() if name not in KEYS["pretrain"]}
    | SEGMENTATION
)
"""Every row once; the defaults are those of the first job that has the key."""

FOLDERS = frozenset(name for name, key in ALL_KEYS.items() if key.names_folder)
"""Keys that name folders or files; their values are stored as absolute paths."""

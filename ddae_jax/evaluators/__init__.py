"""What ``python -m ddae_jax.evaluate`` can evaluate: one function a task, and the table of them."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from absl import flags as absl_flags

from ddae_jax.evaluators.attention_distance import attention_distance
from ddae_jax.evaluators.classification import classification
from ddae_jax.evaluators.embed import embed
from ddae_jax.evaluators.frozen_features import classify, depths, few_shot
from ddae_jax.evaluators.segmentation import segmentation

TASKS: Mapping[str, Callable[[absl_flags.FlagValues], tuple[str, dict]]] = MappingProxyType(
    {
        "knn": functools.partial(classify, "knn"),
        "linear": functools.partial(classify, "linear"),
        "few_shot": few_shot,
        "depths": depths,
        "attention_distance": attention_distance,
        "embed": embed,
        "classification": classification,
        "segmentation": segmentation,
    }
)
"""What can be evaluated: from the flags to a table, and to what is printed as JSON."""

_OF_EVERY_TASK = {"workdir", "task", "step", "batch_size", "dtype", "limit", "data_dir"}
_OF_EVERY_TASK |= {"distributed"}
_OF_FEATURES = {"encoder", "pool"}

OPTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        task: frozenset(_OF_EVERY_TASK | own)
        for task, own in {
            "knn": _OF_FEATURES | {"depth", "k", "temperature"},
            "linear": _OF_FEATURES | {"depth"},
            "few_shot": _OF_FEATURES | {"depth"},
            "depths": _OF_FEATURES | {"k", "temperature"},
            "attention_distance": {"encoder", "compare"},
            "embed": _OF_FEATURES | {"depth", "out", "images", "split"},
            "classification": {"split"},
            "segmentation": {"split", "scales", "flip"},
        }.items()
    }
)
"""The options of the command that a task heeds."""


def check_options(flags: absl_flags.FlagValues) -> None:
    """Raises ``ValueError`` for an option that is given and that the task would ignore."""
    for name in flags:
        if flags[name].present and name in _OWN and name not in OPTIONS[flags.task]:
            tasks = ", ".join(task for task, own in OPTIONS.items() if name in own)
            raise ValueError(f"--{name} is for --task={tasks}; --task={flags.task} ignores it")


_OWN = frozenset.union(*OPTIONS.values())

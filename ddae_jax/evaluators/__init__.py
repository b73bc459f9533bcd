"""Tasks of ``python -m ddae_jax.evaluate``: one function each, and the table of them.

* ``frozen_features``: the tasks ``knn``, ``linear``, ``few_shot`` and ``depths``.
* ``attention_distance``, ``embed``, ``classification``, ``segmentation``: one task each.
* ``run_folder``: opening the run that is evaluated, and other steps that tasks share.

A task takes the flags of the command; it returns a text for people, and a dict for the JSON line.
"""

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
"""Tasks by name: functions that take the flags, and return a text and the result for JSON."""

_COMMON_OPTIONS = {"workdir", "task", "step", "batch_size", "dtype", "limit", "data_dir"}
_COMMON_OPTIONS |= {"distributed"}
_FEATURE_OPTIONS = {"encoder", "pool"}

OPTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        task: frozenset(_COMMON_OPTIONS | own)
        for task, own in {
            "knn": _FEATURE_OPTIONS | {"depth", "k", "temperature"},
            "linear": _FEATURE_OPTIONS | {"depth"},
            "few_shot": _FEATURE_OPTIONS | {"depth"},
            "depths": _FEATURE_OPTIONS | {"k", "temperature"},
            "attention_distance": {"encoder", "compare"},
            "embed": _FEATURE_OPTIONS | {"depth", "out", "images", "split"},
            "classification": {"split"},
            "segmentation": {"split", "scales", "flip"},
        }.items()
    }
)
"""Options of the command that each task uses."""

_ALL_OPTIONS = frozenset.union(*OPTIONS.values())


def check_options(flags: absl_flags.FlagValues) -> None:
    """Raises ``ValueError`` for an option on the command line that the task would ignore."""
    for name in flags:
        if flags[name].present and name in _ALL_OPTIONS and name not in OPTIONS[flags.task]:
            tasks = ", ".join(task for task, own in OPTIONS.items() if name in own)
            raise ValueError(f"--{name} is for --task={tasks}; --task={flags.task} ignores it")

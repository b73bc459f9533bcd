"""Tasks of ``python -m ddae_jax.evaluate``: one function each, and the table of them.

* ``frozen_features``: the tasks ``knn``, ``linear``, ``few_shot`` and ``depths``.
* ``attention_distance``, ``embed``, ``classification``, ``segmentation``: one task each.
* ``run_folder``: opening the run that is evaluated, and other steps that tasks share.

A task takes the flags of the command; it returns a text for people, and a dict for the JSON line.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from absl import flags as absl_flags

from ddae_jax.jobs.commands import TASK_OPTIONS

TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "knn": ("frozen_features", "classify", "knn"),
        "linear": ("frozen_features", "classify", "linear"),
        "few_shot": ("frozen_features", "few_shot"),
        "depths": ("frozen_features", "depths"),
        "attention_distance": ("attention_distance", "attention_distance"),
        "embed": ("embed", "embed"),
        "classification": ("classification", "classification"),
        "segmentation": ("segmentation", "segmentation"),
    }
)
"""Module and function of each task, and what the function is given before the flags."""

_ALL_OPTIONS = frozenset.union(*TASK_OPTIONS.values())


def run_task(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Runs the task that the flags name; returns its text and its result for JSON."""
    module, function, *arguments = TASKS[flags.task]
    task = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return task(*arguments, flags)


def check_options(flags: absl_flags.FlagValues) -> None:
    """Raises ``ValueError`` for an option on the command line that the task would ignore."""
    for name in flags:
        if flags[name].present and name in _ALL_OPTIONS and name not in TASK_OPTIONS[flags.task]:
            tasks = ", ".join(task for task, own in TASK_OPTIONS.items() if name in own)
            raise ValueError(f"--{name} is for --task={tasks}; --task={flags.task} ignores it")

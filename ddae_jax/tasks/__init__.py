"""What ``python -m ddae_jax.evaluate`` can evaluate: one function a task, and the table of them."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from absl import flags as absl_flags

from ddae_jax.tasks.accuracy import classify, depths, few_shot
from ddae_jax.tasks.classification import classification
from ddae_jax.tasks.embed import embed
from ddae_jax.tasks.locality import attention_distance
from ddae_jax.tasks.segmentation import segmentation

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

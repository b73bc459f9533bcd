"""The config of a run: its keys, what they may hold, and how two configs differ.

`keys` lists the keys of each job with their defaults, `values` reads and writes them, `checks` says
what may not be.
"""

from ddae_jax.config.schema import finetune_defaults, pretrain_defaults, segment_defaults
from ddae_jax.config.values import from_plain, to_plain

__all__ = ["finetune_defaults", "from_plain", "pretrain_defaults", "segment_defaults", "to_plain"]

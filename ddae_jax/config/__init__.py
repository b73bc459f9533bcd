"""The config of a run: its keys, what they may hold, and how two configs differ.

`keys` is the table of all keys, of which `defaults` makes the configs and `reference` the help;
`values` reads and writes configs, `files` reads config files, and `checks` says which values are
refused.
"""

from ddae_jax.config.defaults import finetune_defaults, pretrain_defaults, segment_defaults
from ddae_jax.config.values import from_plain, to_plain

__all__ = ["finetune_defaults", "from_plain", "pretrain_defaults", "segment_defaults", "to_plain"]

"""DDAE: masked image modelling with deep dynamic supervision, in JAX and Flax.

The plug-in and its mathematics, for code of your own::

    from ddae_jax import DeepDynamicSupervision, distance_map, dynamic_loss, random_mask
"""

from ddae_jax.distance import distance_map
from ddae_jax.dynamic_loss import dynamic_loss, dynamic_weights
from ddae_jax.masking import block_mask, random_mask
from ddae_jax.methods.supervision import DeepDynamicSupervision, supervised_depths

__all__ = [
    "DeepDynamicSupervision",
    "block_mask",
    "distance_map",
    "dynamic_loss",
    "dynamic_weights",
    "random_mask",
    "supervised_depths",
]

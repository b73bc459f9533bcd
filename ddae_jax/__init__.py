"""DDAE: masked image modelling with deep dynamic supervision, in JAX and Flax.

The plug-in and its mathematics, for code of your own::

    from ddae_jax import DeepDynamicSupervision, distance_map, dynamic_loss, random_mask

These names are loaded when they are first asked for: JAX and Flax take a second to import, which
``--help`` and the messages about a command line need not wait for.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


class _Package(types.ModuleType):
    """This package as a module whose public names are properties.

    A module's ``__getattr__`` would not do: ``dynamic_loss`` is also the name of a submodule, which
    the import system sets as an attribute of the package. The properties ignore that.
    """

    def __getattr__(self, name):
        if name in ("distance", "masking", "methods"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__(self):
        return sorted({*super().__dir__(), *__all__})


def _loaded_from(module: str, name: str) -> property:
    return property(
        lambda package: getattr(importlib.import_module(f"{__name__}.{module}"), name),
        lambda package, submodule: None,
    )


for _module, _names in {
    "distance": ("distance_map",),
    "dynamic_loss": ("dynamic_loss", "dynamic_weights"),
    "masking": ("block_mask", "random_mask"),
    "methods.supervision": ("DeepDynamicSupervision", "supervised_depths"),
}.items():
    for _name in _names:
        setattr(_Package, _name, _loaded_from(_module, _name))
sys.modules[__name__].__class__ = _Package

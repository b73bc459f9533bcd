"""DDAE: masked image modelling with deep dynamic supervision, in JAX and Flax.

The plug-in and its mathematics, for code of your own::

    from ddae_jax import DeepDynamicSupervision, distance_map, dynamic_loss, random_mask
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "DeepDynamicSupervision": "methods.supervision",
    "block_mask": "masking",
    "distance_map": "distance",
    "dynamic_loss": "dynamic_loss",
    "dynamic_weights": "dynamic_loss",
    "random_mask": "masking",
    "supervised_depths": "methods.supervision",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is asked for: JAX takes long to import, and not all need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """The package, whose function ``dynamic_loss`` is not replaced by the module of that name.

    When a submodule is imported, Python binds it to its name in the package.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

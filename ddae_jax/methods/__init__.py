"""What each method predicts, against what, and how its errors are supervised."""

import inspect
from collections.abc import Callable

from ddae_jax.methods.beit import beit
from ddae_jax.methods.beit2 import beit2
from ddae_jax.methods.ddae import ddae
from ddae_jax.methods.mae import mae
from ddae_jax.methods.maskfeat import maskfeat
from ddae_jax.methods.method import Method
from ddae_jax.methods.simmim import simmim
from ddae_jax.suggestions import did_you_mean

METHODS: dict[str, Callable[..., Method]] = {
    "ddae": ddae,
    "mae": mae,
    "simmim": simmim,
    "maskfeat": maskfeat,
    "beit": beit,
    "beit2": beit2,
}
"""Every method by name. Adding one: docs/adding_a_method.md."""


def options_of(name: str) -> frozenset[str]:
    """The names of a method's own options, such as ``feature_weight``."""
    parameters = inspect.signature(find_method(name)).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def find_method(name: str) -> Callable[..., Method]:
    """The builder of the method of that name. Raises ``ValueError`` naming the known ones."""
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        if name == "vqkd":
            hint = "; vqkd trains a tokenizer for them, with configs/cifar10_tokenizer.py"
        raise ValueError(f"method={name!r}; known: {', '.join(METHODS)}{hint}")
    return METHODS[name]

"""The choice of parameters that weight decay applies to, by their names."""

import jax
from jaxtyping import PyTree

from ddae_jax.suggestions import did_you_mean

DECAYED_ON_DEMAND = {
    "class_token": "class_token",
    "mask_token": "mask_token",
    "positions": "positions",
    "relative_positions": "table",
}
"""Words for what weight decay may include beside kernels, and the names of those parameters."""


def is_decayed(params: PyTree, also: str = "") -> PyTree:
    """Marks kernels, and what ``also`` names (see :data:`DECAYED_ON_DEMAND`), with True."""
    names = {"kernel", *(DECAYED_ON_DEMAND[word] for word in _words(also))}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def check_decay_also(decay_also: str) -> None:
    """Raises ``ValueError`` unless all words, which commas separate, are known."""
    for word in _words(decay_also):
        if word not in DECAYED_ON_DEMAND:
            known = ", ".join(map(repr, DECAYED_ON_DEMAND))
            raise ValueError(
                f"decay_also={decay_also!r}: {word!r} is nothing that weight decay may include "
                f"beside kernels; known, separated by commas: {known}"
                f"{did_you_mean(word, DECAYED_ON_DEMAND)}"
            )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]

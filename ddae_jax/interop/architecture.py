"""What the arrays of an encoder tell of it, and what has to be told beside them."""

import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.encoder_search import Network
from ddae_jax.interop.preprocessing import Preprocessing
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")
"""That an encoder here may have."""


class Backbone(NamedTuple):
    """An encoder that was trained elsewhere.

    Attributes:
        options: arguments of :class:`ddae_jax.models.vit.ViT`, but for its computation.
        params: of that encoder.
        mean, std: of each channel, of pixel values in [0, 1], that it was trained on; None if
            not known, as of a file of weights alone.
        notes: what was taken for granted, or left aside, a line each.
        pool: how its features are pooled, as a word of ``evaluation.pool``; None if not known.
        preprocessing: how images are cut to its size; None if not known.
    """

    options: dict[str, Any]
    params: Tree
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    notes: tuple[str, ...] = ()
    pool: str | None = None
    preprocessing: Preprocessing | None = None


class WeightHints(NamedTuple):
    """What somebody says of weights that do not say it themselves.

    Attributes:
        heads: of the encoder; 0 if nothing is said.
        activation: one of :data:`ACTIVATIONS`; empty if nothing is said.
        part: of a file with several networks, the place of the one that is meant.
    """

    heads: int = 0
    activation: str = ""
    part: str = ""

    def check(self, where: object, heads: int | None, activation: str | None) -> None:
        """Raises ``ValueError`` if it contradicts what is known from elsewhere."""
        for key, said, known in (
            ("init_heads", self.heads, heads),
            ("init_activation", self.activation, activation),
        ):
            if said and known and said != known:
                raise ValueError(
                    f"{key}={said!r}, but {where} tells of {known!r}; leave {key} as it is by "
                    "default"
                )


def describe_encoder(params: Tree, channels: int) -> dict[str, Any]:
    """The arguments of ``ViT`` that its parameters tell; a bias that is not there becomes 0.

    Raises :class:`UnknownWeights` for parameters of no such encoder.
    """
    blocks = [params[name] for name in params if re.fullmatch(r"block_\d+", name)]
    needed = {"patch_embedding/kernel": params.get("patch_embedding", {}).get("kernel")}
    needed["block_01/mlp_in/kernel"] = params.get("block_01", {}).get("mlp_in", {}).get("kernel")
    lost = [name for name, array in needed.items() if array is None]
    if lost:
        raise UnknownWeights(f"the weights lack what is here called {', '.join(lost)}")
    gap = {f"block_{index + 1:02d}" for index in range(len(blocks))} - params.keys()
    if gap:
        raise UnknownWeights(f"of {len(blocks)} blocks, the weights lack {min(gap)}")
    values, width = params["patch_embedding"]["kernel"].shape
    side = math.isqrt(values // channels)
    if side == 0 or side**2 * channels != values:
        raise UnknownWeights(
            f"patches have {values} values, which are no square of pixels of {channels} channels"
        )
    params["patch_embedding"].setdefault("bias", np.zeros(width, np.float32))
    _check_mlp(blocks[0])
    relative = "per_block" if "relative_positions_01" in params else "none"
    return {
        "patch_size": side,
        "width": width,
        "depth": len(blocks),
        "mlp_ratio": blocks[0]["mlp_in"]["kernel"].shape[1] / width,
        "positions": "learned" if "positions" in params else "none",
        "relative_positions": "shared" if "shared_bias" in params else relative,
        "has_key_bias": "query_bias" not in blocks[0].get("attention", {}),
        "layer_scale": 1.0 if "attention_scale" in blocks[0] else None,
        "norms_embedding": "embedding_norm" in params,
        "use_class_token": "class_token" in params,
    }


def _check_mlp(block: Tree) -> None:
    """Raises :class:`UnknownWeights` if half of what goes in is a gate of the other half."""
    hidden, taken = block["mlp_in"]["kernel"].shape[1], block.get("mlp_out", {}).get("kernel")
    if taken is not None and hidden == 2 * taken.shape[0]:
        raise UnknownWeights(
            f"its MLPs make {hidden} values and take {taken.shape[0]}: the network has gated MLPs "
            "(SwiGLU), which an encoder here has not"
        )


def relative_table(params: Tree) -> np.ndarray | None:
    """Of relative positions, (positions, heads); None if there is none."""
    return params.get("shared_bias", params.get("relative_positions_01", {})).get("table")


def check_heads(where: object, heads: int, params: Tree) -> None:
    """Raises ``ValueError`` for heads that an encoder of its width cannot have."""
    table, width = relative_table(params), params["patch_embedding"]["kernel"].shape[1]
    if width % heads:
        raise ValueError(f"{where}: {heads} heads do not divide the width, {width}")
    if table is not None and table.shape[1] != heads:
        raise ValueError(
            f"{where}: {heads} heads, but the relative positions are those of {table.shape[1]}"
        )


def other_encoders_note(path: pathlib.Path, network: Network) -> tuple[str, ...]:
    """What to say of a file that has other encoders beside the one that is taken."""
    if not network.others:
        return ()
    others = ", ".join(repr(place) for place in network.others)
    return (
        f"{path}: the encoder at {network.place!r} is taken; there is also one at {others}: "
        f"--config.init_part={network.others[0]} takes that one",
    )

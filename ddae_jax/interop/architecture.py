"""Architecture of an encoder: what its arrays show, and the hints that must be given with them.

The shapes and names of arrays show width, depth and kinds of positions, but neither the number of
heads (unless there is a table of relative positions) nor the activation nor the norms' epsilon.
"""

import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.encoder_search import Network
from ddae_jax.interop.preprocessing import Preprocessing
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")
"""Activations that :class:`ddae_jax.models.vit.ViT` supports."""


class Backbone(NamedTuple):
    """Encoder that was trained elsewhere.

    Attributes:
        options: arguments of :class:`ddae_jax.models.vit.ViT` that define the function it computes;
            not its dtype or form of attention.
        params: parameters of that encoder, nested dicts.
        mean, std: statistics of the pixel values, in [0, 1], that it was trained on, one value a
            channel; None if unknown, as for a file of weights alone.
        notes: assumptions that were made and networks that were left out, one sentence each.
        pool: how its features are pooled, a value of ``evaluation.pool``; None if unknown.
        preprocessing: how images are resized and cropped for it; None if unknown.
    """

    options: dict[str, Any]
    params: Tree
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    notes: tuple[str, ...] = ()
    pool: str | None = None
    preprocessing: Preprocessing | None = None


class WeightHints(NamedTuple):
    """Facts about an encoder that its weight file does not show, given by the user.

    Attributes:
        heads: number of attention heads; 0 if not given.
        activation: one of :data:`ACTIVATIONS`; empty if not given.
        part: which of several networks in a file is meant, as in
            :func:`ddae_jax.interop.encoder_search.find_encoder`; empty if not given.
    """

    heads: int = 0
    activation: str = ""
    part: str = ""

    def check(self, where: object, heads: int | None, activation: str | None) -> None:
        """Checks the hints against what the weights show.

        Args:
            where: what shows it, for the message.
            heads: number of heads; None if unknown.
            activation: None if unknown.

        Raises:
            ValueError: if a hint contradicts a known value.
        """
        for key, hint, known in (
            ("init_heads", self.heads, heads),
            ("init_activation", self.activation, activation),
        ):
            if hint and known and hint != known:
                raise ValueError(
                    f"{key}={hint!r}, but {where} tells of {known!r}; leave {key} as it is by "
                    "default"
                )


def describe_encoder(params: Tree, channels: int) -> dict[str, Any]:
    """Derives arguments of ``ViT`` from an encoder's parameters.

    Args:
        params: the parameters, as in :func:`ddae_jax.interop.weights_to_params.convert`. If the
            patch embedding has no bias, one of 0 is added in place.
        channels: number of channels of the images.

    Returns:
        All arguments that the parameters determine; ``layer_scale`` is 1.0 where there are scales.

    Raises:
        UnknownWeights: if the parameters are those of no such encoder.
    """
    blocks = [params[name] for name in params if re.fullmatch(r"block_\d+", name)]
    required = {"patch_embedding/kernel": params.get("patch_embedding", {}).get("kernel")}
    required["block_01/mlp_in/kernel"] = params.get("block_01", {}).get("mlp_in", {}).get("kernel")
    missing = [name for name, array in required.items() if array is None]
    if missing:
        raise UnknownWeights(f"the weights lack what is here called {', '.join(missing)}")
    missing_blocks = {f"block_{index + 1:02d}" for index in range(len(blocks))} - params.keys()
    if missing_blocks:
        raise UnknownWeights(f"of {len(blocks)} blocks, the weights lack {min(missing_blocks)}")
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
    """Raises :class:`UnknownWeights` for a gated MLP: twice as wide inside as its output layer."""
    hidden, output = block["mlp_in"]["kernel"].shape[1], block.get("mlp_out", {}).get("kernel")
    if output is not None and hidden == 2 * output.shape[0]:
        raise UnknownWeights(
            f"its MLPs make {hidden} values and take {output.shape[0]}: the network has gated MLPs "
            "(SwiGLU), which an encoder here has not"
        )


def relative_table(params: Tree) -> np.ndarray | None:
    """Returns the first table of relative position biases, (offsets, heads); None without one."""
    return params.get("shared_bias", params.get("relative_positions_01", {})).get("table")


def check_heads(where: object, heads: int, params: Tree) -> None:
    """Checks that an encoder can have this number of heads.

    Args:
        where: what the number is from, for the message.
        heads: number of heads.
        params: parameters of the encoder.

    Raises:
        ValueError: if they do not divide the width, or the table of relative positions has another
            number of heads.
    """
    table, width = relative_table(params), params["patch_embedding"]["kernel"].shape[1]
    if width % heads:
        raise ValueError(f"{where}: {heads} heads do not divide the width, {width}")
    if table is not None and table.shape[1] != heads:
        raise ValueError(
            f"{where}: {heads} heads, but the relative positions are those of {table.shape[1]}"
        )


def other_encoders_note(path: pathlib.Path, network: Network) -> tuple[str, ...]:
    """Returns one note that names the other encoders in a file, or no note without any."""
    if not network.others:
        return ()
    others = ", ".join(repr(place) for place in network.others)
    return (
        f"{path}: the encoder at {network.place!r} is taken; there is also one at {others}: "
        f"--config.init_part={network.others[0]} takes that one",
    )

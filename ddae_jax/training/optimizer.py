"""Optimizers: of pretraining, where beta has a parameter group of its own, and of fine-tuning."""

import functools
import re
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ddae_jax.models.weight_decay import is_decayed

_EMBEDDING = {"patch_embedding", "class_token", "mask_token", "positions", "embedding_norm"}


def make_optimizer(
    learning_rate: optax.Schedule,
    *,
    total_steps: int,
    weight_decay: float = 0.05,
    decay_also: str = "",
    b1: float = 0.9,
    b2: float = 0.95,
    clip_norm: float | None = None,
    beta_step: float = 1.0,
    beta_range: tuple[float, float] = (-2.0, 2.0),
) -> optax.GradientTransformation:
    """Makes the optimizer of pretraining: AdamW, with gradient descent for each ``beta``.

    Weight decay applies to kernels, and to tokens and positions if ``decay_also`` names them; never
    to biases, norms, factors of branches, or beta. Gradients of all parameters but beta are clipped
    together to a global norm. Beta changes by ``-beta_step / total_steps`` times its gradient, so
    that its path over the progress of a run does not depend on the run's length, and is kept in its
    range. Adam would move it by a whole learning rate in each step, however small the gradient.

    Args:
        learning_rate: schedule over steps.
        total_steps: number of steps of the run.
        weight_decay: strength of the decay of kernels, and of what ``decay_also`` names.
        decay_also: words of :data:`ddae_jax.models.weight_decay.DECAYED_ON_DEMAND`, separated by
            commas.
        b1, b2: decay rates of AdamW's moments.
        clip_norm: largest global norm of the gradient; None for no clipping.
        beta_step: total change of beta over a run whose gradient by beta is always -1.
        beta_range: interval in which beta is kept.

    Raises:
        ValueError: if the start of ``beta_range`` exceeds its end.

    Source: Loshchilov & Hutter 2019 (AdamW); Chen et al., DDAE (a learnable beta).
    """
    if not beta_range[0] <= beta_range[1]:
        raise ValueError(f"beta_range={beta_range}; its start must not exceed its end")
    # The identity keeps the structure of the optimizer's state the same without clipping.
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    decayed = functools.partial(is_decayed, also=decay_also)
    network = optax.chain(
        clip, optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=decayed)
    )
    beta = optax.chain(optax.sgd(beta_step / total_steps), keep_in_range(*beta_range))
    return optax.partition({"network": network, "beta": beta}, parameter_groups)


def make_finetuning_optimizer(
    learning_rate: optax.Schedule,
    *,
    depth: int,
    kind: Literal["adamw", "lars"] = "adamw",
    weight_decay: float = 0.05,
    decay_also: str = "",
    b1: float = 0.9,
    b2: float = 0.999,
    clip_norm: float | None = None,
    layer_decay: float = 1.0,
    is_frozen: bool = False,
) -> optax.GradientTransformation:
    """Makes the optimizer of fine-tuning: AdamW with layer-wise learning rates, or LARS.

    The learning rate of block k of an encoder with L blocks is ``layer_decay ** (L + 1 - k)`` times
    that of the head. The embedding counts as block 0; shared relative positions and the final norm
    have the learning rate of the head. LARS adapts the learning rates of kernels only.

    Args:
        learning_rate: schedule over steps, for the head.
        depth: L, the number of blocks of ``encoder``.
        kind: ``adamw`` or ``lars``, the latter with a momentum of 0.9.
        weight_decay, decay_also: as in :func:`make_optimizer`.
        b1, b2: decay rates of AdamW's moments.
        clip_norm: largest global norm of the gradient; None for no clipping.
        layer_decay: factor between the learning rates of adjacent layers; 1 for a common rate.
        is_frozen: whether the parameters of ``encoder`` stay as they are.

    Source: Clark et al. 2020, ELECTRA, and Bao et al. 2021, BEiT (layer-wise decay); You et al.
    2017 (LARS).
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    decayed = functools.partial(is_decayed, also=decay_also)
    if kind == "lars":
        inner = optax.lars(
            learning_rate,
            weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=0.001,
            trust_ratio_mask=is_decayed,
            momentum=0.9,
        )
    else:
        inner = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=decayed)
    trained = optax.chain(clip, inner, scale_by_layer(layer_decay, depth))
    if not is_frozen:
        return trained
    return optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: _by_path(
            params, lambda path, _: "frozen" if path[0] == "encoder" else "trained"
        ),
    )


def scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    """Multiplies the updates of layer k by ``decay ** (depth + 1 - k)``; see :func:`layer_of`."""

    def update(updates, state, params=None):
        scaled = _by_path(
            updates, lambda path, leaf: leaf * decay ** (depth + 1 - layer_of(path, depth))
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def layer_of(path: tuple[str, ...], depth: int) -> int:
    """Returns a parameter's layer: 0 for the embedding, k for block k, else ``depth + 1``.

    Args:
        path: keys that lead to it, such as ``("encoder", "block_01", "mlp_in", "kernel")``.
        depth: number of blocks of the encoder.
    """
    if path[0] != "encoder":
        return depth + 1
    block = re.fullmatch(r"(?:block|relative_positions)_(\d+)", path[1])
    if block:
        return int(block[1])
    return 0 if path[1] in _EMBEDDING else depth + 1


def parameter_groups(params: PyTree) -> PyTree:
    """Labels each parameter called ``beta`` as ``"beta"``, and all others as ``"network"``."""
    return _by_path(params, lambda path, _: "beta" if path[-1] == "beta" else "network")


def keep_in_range(lowest: float, highest: float) -> optax.GradientTransformation:
    """Clips updates so that parameters stay within ``[lowest, highest]``, up to rounding."""

    def update(updates, state, params):
        def shorten(update, param):
            return jnp.clip(param + update, lowest, highest) - param

        return jax.tree.map(shorten, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_path(params: PyTree, change: Callable) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(tuple(key.key for key in path), leaf), params
    )

"""Optimizers: of pretraining, with a group of its own for beta, and of what comes after."""

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
    """AdamW, and plain gradient descent for every parameter called ``beta``.

    Kernels are decayed, and tokens and positions where that is asked for: no biases, no norms, no
    factors of branches, and no beta. Gradients of all but beta are clipped together, to a global
    norm. Beta descends by ``beta_step / total_steps`` times its gradient, so that its path over a
    run's progress does not depend on the run's length, and stays in its range; Adam would move it
    by a whole learning rate a step whatever the gradient.

    Args:
        learning_rate: schedule over steps.
        total_steps: of the run.
        weight_decay: of kernels, and of what ``decay_also`` names.
        decay_also: words of :data:`ddae_jax.models.weight_decay.DECAYED_ON_DEMAND`, separated by
            commas.
        b1, b2: AdamW's.
        clip_norm: largest global norm of the gradient; None for no clipping.
        beta_step: beta's whole way in a run in which what it descends stayed at -1.
        beta_range: beta is kept in this interval.

    Source: Loshchilov & Hutter 2019 (AdamW); Chen et al., DDAE (a learnable beta).
    """
    if not beta_range[0] <= beta_range[1]:
        raise ValueError(f"beta_range={beta_range}; its start must not exceed its end")
    # Something always stands first: the state has the same shape with clipping and without.
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
    """AdamW with layer-wise learning rates, or LARS, for ``encoder`` and what stands on it.

    Kernels are decayed, and what ``decay_also`` names. The learning rate of block k of an encoder
    of L is ``layer_decay ** (L + 1 - k)`` times that of the head; its embedding counts as block 0,
    its shared relative positions and its final norm go with the head. LARS adapts the rates of
    kernels alone.

    Args:
        learning_rate: schedule over steps, of the head.
        depth: L.
        kind: ``adamw`` or ``lars``, the latter with a momentum of 0.9.
        weight_decay, decay_also: as of :func:`make_optimizer`.
        b1, b2: AdamW's.
        clip_norm: largest global norm of the gradient; None for no clipping.
        layer_decay: see above; 1 for one rate.
        is_frozen: whether the encoder stays as it is.

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
    """Shortens the updates of earlier layers (see :func:`layer_of`) by powers of ``decay``."""

    def update(updates, state, params=None):
        scaled = _by_path(
            updates, lambda path, leaf: leaf * decay ** (depth + 1 - layer_of(path, depth))
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def layer_of(path: tuple[str, ...], depth: int) -> int:
    """The layer of a parameter: 0 for the embedding, 1 to ``depth`` for blocks, else depth + 1.

    ``path`` is where it lies, such as ``("encoder", "block_01", "mlp_in", "kernel")``.
    """
    if path[0] != "encoder":
        return depth + 1
    block = re.fullmatch(r"(?:block|relative_positions)_(\d+)", path[1])
    if block:
        return int(block[1])
    return 0 if path[1] in _EMBEDDING else depth + 1


def parameter_groups(params: PyTree) -> PyTree:
    """``beta`` for each parameter of that name, ``network`` for all others."""
    return _by_name(params, lambda name: "beta" if name == "beta" else "network")


def keep_in_range(lowest: float, highest: float) -> optax.GradientTransformation:
    """Shortens updates so that parameters stay within ``[lowest, highest]``, up to rounding."""

    def update(updates, state, params):
        def shorten(update, param):
            return jnp.clip(param + update, lowest, highest) - param

        return jax.tree.map(shorten, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_name(params: PyTree, label: Callable) -> PyTree:
    return _by_path(params, lambda path, _: label(path[-1]))


def _by_path(params: PyTree, change: Callable) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(tuple(key.key for key in path), leaf), params
    )

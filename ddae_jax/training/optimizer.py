"""AdamW for the network, and a group of its own for beta."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


def make_optimizer(
    learning_rate: optax.Schedule,
    *,
    total_steps: int,
    weight_decay: float = 0.05,
    b1: float = 0.9,
    b2: float = 0.95,
    clip_norm: float | None = None,
    beta_step: float = 5.0,
    beta_range: tuple[float, float] = (-2.0, 2.0),
) -> optax.GradientTransformation:
    """AdamW, and plain gradient descent for every parameter called ``beta``.

    Only kernels are decayed: no biases, norms, tokens, position embeddings, and no beta. Gradients
    of all but beta are clipped together, to a global norm. Beta descends by ``beta_step /
    total_steps`` times its gradient, so that its path over a run's progress does not depend on the
    run's length, and stays in its range; Adam would move it by a whole learning rate a step
    whatever the gradient.

    Args:
        learning_rate: schedule over steps.
        total_steps: of the run.
        weight_decay: of kernels.
        b1, b2: AdamW's.
        clip_norm: largest global norm of the gradient; None for no clipping.
        beta_step: beta's whole way in a run whose gradient stayed at -1.
        beta_range: beta is kept in this interval.

    Source: Loshchilov & Hutter 2019 (AdamW); Chen et al., DDAE (a learnable beta).
    """
    if not beta_range[0] <= beta_range[1]:
        raise ValueError(f"beta_range={beta_range}; its start must not exceed its end")
    # Something always stands first: the state has the same shape with clipping and without.
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    network = optax.chain(
        clip, optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=is_decayed)
    )
    beta = optax.chain(optax.sgd(beta_step / total_steps), keep_in_range(*beta_range))
    return optax.partition({"network": network, "beta": beta}, parameter_groups)


def parameter_groups(params: PyTree) -> PyTree:
    """``beta`` for each parameter of that name, ``network`` for all others."""
    return _by_name(params, lambda name: "beta" if name == "beta" else "network")


def is_decayed(params: PyTree) -> PyTree:
    """True for kernels."""
    return _by_name(params, lambda name: name == "kernel")


def keep_in_range(lowest: float, highest: float) -> optax.GradientTransformation:
    """Shortens updates so that parameters stay within ``[lowest, highest]``, up to rounding."""

    def update(updates, state, params):
        def shorten(update, param):
            return jnp.clip(param + update, lowest, highest) - param

        return jax.tree.map(shorten, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_name(params: PyTree, label) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: label(path[-1].key), params)

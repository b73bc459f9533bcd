"""What changes with the step: learning rate and teacher momentum."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num


def learning_rate_schedule(
    base_learning_rate: float, batch_size: int, warmup_steps: int, total_steps: int, end: float = 0
) -> optax.Schedule:
    """Linear warm-up from 0 to ``base_learning_rate * batch_size / 256``, then a cosine to ``end``.

    Source: Goyal et al. 2017 (linear scaling, warm-up); Loshchilov & Hutter 2017 (cosine).
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=base_learning_rate * batch_size / 256,
        warmup_steps=min(warmup_steps, total_steps - 1),
        decay_steps=total_steps,
        end_value=end,
    )


def momentum_schedule(start: float, end: float, total_steps: int) -> optax.Schedule:
    """Cosine from ``start`` at step 0 to ``end`` at ``total_steps``.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", section 3.2.
    """

    def momentum(step: Num[Array, ""]) -> Float[Array, ""]:
        progress = jnp.clip(step / total_steps, 0, 1)
        return end - (end - start) * (jnp.cos(jnp.pi * progress) + 1) / 2

    return momentum

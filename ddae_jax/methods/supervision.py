"""Deep dynamic supervision (DDS): the plug-in. It knows errors, masks and depths, and no method."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ddae_jax.distance import distance_map
from ddae_jax.dynamic_loss import (
    Weighting,
    dynamic_weights,
    masked_mean,
    neighbourhood_weights,
)
from ddae_jax.models.vit import check_depths
from ddae_jax.patches import Grid
from ddae_jax.suggestions import did_you_mean

Mode = Literal["last", "deep", "deep_dynamic"]
BetaGradient = Literal["relative", "absolute"]
MODES: tuple[Mode, ...] = ("last", "deep", "deep_dynamic")

PAPER = (
    "Chen, Kong, Zhang, Zhao, Huang 2024. *DDAE: Towards Deep Dynamic Vision BERT Pretraining*. "
    "AAAI. doi:10.1609/aaai.v38i2.27864"
)
"""Whom to cite, as Markdown."""


@flax.struct.dataclass
class SupervisionOutput:
    """What supervision makes of a batch's errors.

    Attributes:
        loss: ``sum_o lambda_o sum_s alpha_s L_os``, what is minimised.
        plain_loss: the same sum at ``beta = 0`` and with the module's ``lambda_o``: comparable over
            time and between runs, as it moves neither with beta nor with a schedule of weights.
        losses: ``L_os``.
        plain_losses: the masked means of the same errors, ``L_os`` at ``beta = 0``.
        beta: the exponents in force.
    """

    loss: Float[Array, ""]
    plain_loss: Float[Array, ""]
    losses: Float[Array, "objectives depths"]
    plain_losses: Float[Array, "objectives depths"]
    beta: Float[Array, "objectives depths"]


class DeepDynamicSupervision(nn.Module):
    """Weighs the errors of hidden patches by distance ** beta, at every depth and objective.

    ``last`` and ``deep`` keep ``beta`` at 0 and own no parameter; ``deep_dynamic`` learns
    ``beta[objective, depth]``. Which depths a mode reads out is :func:`supervised_depths`.

    To use it in code of your own, collect the errors of your model at some depths and::

        supervision = DeepDynamicSupervision(objectives=("pixels",), depths=(6, 8, 10, 12))
        variables = supervision.init(key, errors, mask, grid)   # beta, for your optimizer
        loss = supervision.apply(variables, errors, mask, grid).loss

    Attributes:
        objectives: names of the objectives, in the order of the errors' first axis.
        depths: supervised depths, in the order of the errors' second axis.
        mode: ``last``, ``deep`` or ``deep_dynamic``.
        weighting: of ``deep_dynamic``: by beta, as in
            :func:`ddae_jax.dynamic_loss.dynamic_weights`; or ``neighbourhood``, for comparison, by
            :func:`ddae_jax.dynamic_loss.neighbourhood_weights`, where no beta is learned.
        objective_weights: ``lambda_o``; 1 each by default.
        depth_weights: ``alpha_s``; 1 each by default.
        beta_init: where each beta starts.

    Source: Chen et al., DDAE, deep dynamic supervision; docs/method.md.
    """

    objectives: tuple[str, ...]
    depths: tuple[int, ...]
    mode: Mode = "deep_dynamic"
    weighting: Weighting | Literal["neighbourhood"] = "power"
    objective_weights: tuple[float, ...] | None = None
    depth_weights: tuple[float, ...] | None = None
    beta_init: float = -0.5

    def setup(self):
        shape = (len(self.objectives), len(self.depths))
        if check_mode(self.mode) == "deep_dynamic" and self.learns_beta:
            self.exponents = self.param("beta", nn.initializers.constant(self.beta_init), shape)
        else:
            self.exponents = jnp.zeros(shape)

    def __call__(
        self,
        errors: Float[ArrayLike, "objectives depths batch patches"],
        mask: Bool[ArrayLike, "batch patches"],
        grid: Grid,
        objective_weights: Float[ArrayLike, "objectives"] | None = None,
    ) -> SupervisionOutput:
        """The loss of a batch.

        Args:
            errors: error of each patch; those of visible patches are ignored.
            mask: True where hidden.
            grid: ``(h, w)``.
            objective_weights: ``lambda_o`` of this step, where they change over a run; the
                attribute by default.

        Raises:
            ValueError: if the errors have other objectives or depths than this module, or the
                weights another number.
        """
        shape = (len(self.objectives), len(self.depths))
        if errors.shape[:2] != shape:
            raise ValueError(
                f"errors have shape {errors.shape}; {len(self.objectives)} objectives "
                f"{self.objectives} at {len(self.depths)} depths {self.depths} were announced"
            )
        beta = self.exponents
        losses = masked_mean(errors, self.weights(mask, grid), mask)
        plain_losses = masked_mean(errors, mask, mask)
        whole = _weights(self.objective_weights, self.objectives, "objective_weights")
        if objective_weights is None:
            objective_weights = whole
        depth_weights = _weights(self.depth_weights, self.depths, "depth_weights")
        return SupervisionOutput(
            loss=(jnp.outer(objective_weights, depth_weights) * losses).sum(),
            plain_loss=(jnp.outer(whole, depth_weights) * plain_losses).sum(),
            losses=losses,
            plain_losses=plain_losses,
            beta=beta,
        )

    def relative_gradient(
        self,
        gradient: Float[ArrayLike, "objectives depths"],
        losses: Float[ArrayLike, "objectives depths"],
    ) -> Float[Array, "objectives depths"]:
        """Divides beta's gradient by what each loss contributes at its whole weight.

        ``d log L_os / d beta_os``, which is the mean of ``log dn`` over hidden patches, weighed by
        what they contribute to the loss: it depends on where the error lies and not on how large
        it is, so that betas of all objectives nearly keep step. Where an objective's weight changes
        over a run, it is multiplied by the share that is in force; 0 for losses of 0.

        Args:
            gradient: of the whole loss, by beta.
            losses: ``L_os`` of the same batch.
        """
        whole = _weights(self.objective_weights, self.objectives, "objective_weights")
        contributions = (
            jnp.outer(whole, _weights(self.depth_weights, self.depths, "depth_weights")) * losses
        )
        is_positive = contributions > 0
        return jnp.where(is_positive, gradient / jnp.where(is_positive, contributions, 1.0), 0.0)

    @property
    def learns_beta(self) -> bool:
        """Whether there are exponents to learn."""
        return self.mode == "deep_dynamic" and self.weighting != "neighbourhood"

    def weights(
        self, mask: Bool[ArrayLike, "batch patches"], grid: Grid
    ) -> Float[Array, "objectives depths batch patches"]:
        """What each patch's error is multiplied by; 0 on visible patches."""
        if self.mode == "deep_dynamic" and self.weighting == "neighbourhood":
            shape = (len(self.objectives), len(self.depths), *mask.shape)
            return jnp.broadcast_to(neighbourhood_weights(mask, grid), shape)
        weighting = self.weighting if self.learns_beta else "power"
        return dynamic_weights(distance_map(mask, grid), mask, self.exponents, weighting)

    def beta(self) -> Float[Array, "objectives depths"]:
        """The exponents: a parameter under ``deep_dynamic``, 0 otherwise."""
        return self.exponents


def supervised_depths(mode: Mode, depth: int, depths: Sequence[int] = ()) -> tuple[int, ...]:
    """The blocks to read out of a model of ``depth`` blocks.

    ``last``: the last one. ``deep`` and ``deep_dynamic``: ``depths``, by default
    ``L/2, 2L/3, 5L/6, L`` (6, 8, 10, 12 for ViT-B).

    Raises ``ValueError`` if a depth lies outside [1, depth], they do not ascend, or the mode is
    unknown.
    """
    if check_mode(mode) == "last":
        return (depth,)
    chosen = tuple(depths) or tuple(sorted({max(1, round(depth * k / 6)) for k in (3, 4, 5, 6)}))
    check_depths(chosen, depth)
    return chosen


def check_mode(mode: str) -> Mode:
    """``mode`` itself. Raises ``ValueError`` if it is none of :data:`MODES`."""
    if mode not in MODES:
        raise ValueError(
            f"supervision={mode!r}; known: {', '.join(MODES)}{did_you_mean(mode, MODES)}"
        )
    return mode


def _weights(weights: Sequence[float] | None, items: Sequence, what: str) -> Float[Array, "items"]:
    if weights is not None and len(weights) != len(items):
        raise ValueError(f"{what}={tuple(weights)}; one for each of {tuple(items)} is needed")
    return jnp.ones(len(items)) if weights is None else jnp.asarray(weights, jnp.float32)

"""Deep dynamic supervision (DDS): a loss of errors at several depths, usable with any method."""

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
"""The paper to cite, as Markdown."""


@flax.struct.dataclass
class SupervisionOutput:
    """The loss of a batch, and its components by objective ``o`` and depth ``s``.

    Attributes:
        loss: ``sum_o lambda_o sum_s alpha_s L_os``, which is minimised.
        plain_loss: the same sum at ``beta = 0`` and with the module's ``lambda_o``. It depends
            neither on beta nor on a schedule of weights, and so is comparable over a run and
            between runs.
        losses: ``L_os``, the mean error of hidden patches, weighted by distance.
        plain_losses: ``L_os`` at ``beta = 0``, the plain mean error of hidden patches.
        beta: the exponents used.
    """

    loss: Float[Array, ""]
    plain_loss: Float[Array, ""]
    losses: Float[Array, "objectives depths"]
    plain_losses: Float[Array, "objectives depths"]
    beta: Float[Array, "objectives depths"]


class DeepDynamicSupervision(nn.Module):
    """Loss that weights errors of hidden patches by distance ** beta, per objective and depth.

    The mode ``deep_dynamic`` learns ``beta[objective, depth]``. The modes ``last`` and ``deep`` fix
    it at 0 and have no parameters. :func:`supervised_depths` returns the depths of each mode.

    To use it in your own code, collect the errors of your model at several depths, then::

        supervision = DeepDynamicSupervision(objectives=("pixels",), depths=(6, 8, 10, 12))
        variables = supervision.init(key, errors, mask, grid)   # beta, for your optimizer
        loss = supervision.apply(variables, errors, mask, grid).loss

    Attributes:
        objectives: names of the objectives, in the order of the errors' first axis.
        depths: supervised depths, in the order of the errors' second axis.
        mode: ``last``, ``deep`` or ``deep_dynamic``.
        weighting: how ``deep_dynamic`` weights patches: a form of
            :func:`ddae_jax.dynamic_loss.dynamic_weights`; or ``neighbourhood``, for comparison:
            :func:`ddae_jax.dynamic_loss.neighbourhood_weights`, with no beta to learn.
        objective_weights: ``lambda_o``; 1 each by default.
        depth_weights: ``alpha_s``; 1 each by default.
        beta_init: initial value of each beta.

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
        """Returns the loss of a batch and its components.

        Args:
            errors: error of each patch; those of visible patches are ignored.
            mask: True where hidden.
            grid: ``(h, w)``, the number of rows and columns of patches.
            objective_weights: ``lambda_o`` in this step, if they change over a run; the attribute
                by default.

        Raises:
            ValueError: if the number of objectives or depths in the errors, or of weights in the
                attributes, is not this module's.
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
        full_weights = _weights(self.objective_weights, self.objectives, "objective_weights")
        if objective_weights is None:
            objective_weights = full_weights
        depth_weights = _weights(self.depth_weights, self.depths, "depth_weights")
        return SupervisionOutput(
            loss=(jnp.outer(objective_weights, depth_weights) * losses).sum(),
            plain_loss=(jnp.outer(full_weights, depth_weights) * plain_losses).sum(),
            losses=losses,
            plain_losses=plain_losses,
            beta=beta,
        )

    def relative_gradient(
        self,
        gradient: Float[ArrayLike, "objectives depths"],
        losses: Float[ArrayLike, "objectives depths"],
    ) -> Float[Array, "objectives depths"]:
        """Divides beta's gradient by each loss's contribution ``lambda_o alpha_s L_os``.

        The result is ``d log L_os / d beta_os``: the mean of ``log dn`` over hidden patches,
        weighted by their contributions to the loss. It depends on where errors are large, not on
        their scale, so that the betas of all objectives move at nearly the same pace. Where an
        objective's weight changes over a run, the result is multiplied by its current weight as a
        share of ``lambda_o``.

        Args:
            gradient: of the total loss with respect to beta.
            losses: ``L_os`` of the same batch.

        Returns:
            The relative gradient, which is 0 where ``L_os`` is 0.
        """
        full_weights = _weights(self.objective_weights, self.objectives, "objective_weights")
        depth_weights = _weights(self.depth_weights, self.depths, "depth_weights")
        contributions = jnp.outer(full_weights, depth_weights) * losses
        is_positive = contributions > 0
        return jnp.where(is_positive, gradient / jnp.where(is_positive, contributions, 1.0), 0.0)

    @property
    def learns_beta(self) -> bool:
        """Whether beta is a learned parameter."""
        return self.mode == "deep_dynamic" and self.weighting != "neighbourhood"

    def weights(
        self, mask: Bool[ArrayLike, "batch patches"], grid: Grid
    ) -> Float[Array, "objectives depths batch patches"]:
        """Returns the factor of each patch's error; 0 for visible patches."""
        if self.mode == "deep_dynamic" and self.weighting == "neighbourhood":
            shape = (len(self.objectives), len(self.depths), *mask.shape)
            return jnp.broadcast_to(neighbourhood_weights(mask, grid), shape)
        weighting = self.weighting if self.learns_beta else "power"
        return dynamic_weights(distance_map(mask, grid), mask, self.exponents, weighting)

    def beta(self) -> Float[Array, "objectives depths"]:
        """Returns the exponents: parameters if :attr:`learns_beta`, 0 otherwise."""
        return self.exponents


def supervised_depths(mode: Mode, depth: int, depths: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the supervised blocks of an encoder with ``depth`` blocks, counted from 1.

    The mode ``last`` supervises the last one. ``deep`` and ``deep_dynamic`` supervise ``depths``,
    by default ``L/2, 2L/3, 5L/6, L`` (6, 8, 10, 12 for ViT-B).

    Raises:
        ValueError: if a depth lies outside [1, depth], if depths do not ascend, or if the mode is
            unknown.
    """
    if check_mode(mode) == "last":
        return (depth,)
    chosen = tuple(depths) or tuple(sorted({max(1, round(depth * k / 6)) for k in (3, 4, 5, 6)}))
    check_depths(chosen, depth)
    return chosen


def check_mode(mode: str) -> Mode:
    """Returns ``mode``. Raises ``ValueError`` if it is not one of :data:`MODES`."""
    if mode not in MODES:
        raise ValueError(
            f"supervision={mode!r}; known: {', '.join(MODES)}{did_you_mean(mode, MODES)}"
        )
    return mode


def _weights(weights: Sequence[float] | None, items: Sequence, name: str) -> Float[Array, "items"]:
    """Returns the weights of ``items`` as an array, 1 each by default; checks their number."""
    if weights is not None and len(weights) != len(items):
        raise ValueError(f"{name}={tuple(weights)}; one for each of {tuple(items)} is needed")
    return jnp.ones(len(items)) if weights is None else jnp.asarray(weights, jnp.float32)

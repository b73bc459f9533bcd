"""The network of fine-tuning and linear probing: a classifier on an encoder's pooled features."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ddae_jax.models.transformer import layer_norm
from ddae_jax.models.vit import ViT

Normalization = Literal["layer", "batch"]


class Classifier(nn.Module):
    """A linear classifier on the pooled features of an encoder's last block.

    Attributes:
        encoder: the vision transformer.
        num_classes: number of classes.
        pool: ``mean`` over the patches, or the ``class_token``.
        normalization: normalisation of the pooled features. ``layer``: the encoder's final norm for
            the class token, or a new layer norm in its place for the mean. ``batch``: batch
            normalisation without affine parameters after the encoder's final norm, as in MAE's
            linear probe.
        init_deviation: standard deviation of the classifier's initial kernel.
        is_frozen: whether the encoder is not trained, and runs without stochastic depth.

    Source: He et al. 2022, appendix A.1 (fine-tuning, linear probing); Bao et al. 2021, BEiT,
    section 3.2 (mean over the patches).
    """

    encoder: ViT
    num_classes: int
    pool: Literal["mean", "class_token"] = "mean"
    normalization: Normalization = "layer"
    init_deviation: float = 2e-5
    is_frozen: bool = False

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "batch height width channels"], *, is_training: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits. Batch statistics are in the collection ``batch_stats``."""
        norms_mean = self.pool == "mean" and self.normalization == "layer"
        features = self.encoder(
            images,
            normalize=not norms_mean,
            is_training=is_training and not self.is_frozen,
        )
        if self.pool == "mean":
            pooled = features.patches[0].astype(jnp.float32).mean(axis=1)
        else:
            pooled = features.class_token[0].astype(jnp.float32)
        if self.is_frozen:
            pooled = jax.lax.stop_gradient(pooled)
        if norms_mean:
            pooled = layer_norm(jnp.float32, self.encoder.norm_epsilon, name="norm")(pooled)
        elif self.normalization == "batch":
            pooled = nn.BatchNorm(
                use_running_average=not is_training,
                momentum=0.9,
                epsilon=1e-6,
                use_scale=False,
                use_bias=False,
                name="norm",
            )(pooled)
        kernel_init = nn.initializers.truncated_normal(self.init_deviation)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(pooled)

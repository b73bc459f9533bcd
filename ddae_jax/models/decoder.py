"""The light decoder that fills hidden patches in, when only visible ones were encoded."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddae_jax.models.attention import AttentionForm
from ddae_jax.models.dense import Dense
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.transformer import (
    Rematerialization,
    block_class,
    layer_norm,
    token_initializer,
)
from ddae_jax.models.vit import Features
from ddae_jax.patches import Grid


class Decoder(nn.Module):
    """A narrow transformer over visible features and mask tokens, the same for every depth.

    Attributes:
        grid: ``(h, w)`` of the whole image.
        width, depth, num_heads: its size.
        mlp_ratio: hidden width of the MLPs over ``width``.
        rematerialization, attention_form, dtype: as in :class:`ddae_jax.models.vit.ViT`.

    Source: He et al. 2022, section 3 ("MAE decoder").
    """

    grid: Grid
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    rematerialization: Rematerialization = "none"
    attention_form: AttentionForm = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, mask: Bool[Array, "batch patches"]
    ) -> Float[Array, "depths batch patches decoder_width"]:
        """Decodes the features of visible patches, in ascending order, at every read-out depth.

        Args:
            features: of the class token, if any, and the visible patches.
            mask: True where hidden.

        Returns:
            Normalised features of all patches of the grid, in its order.
        """
        num_depths, batch, num_tokens, _ = features.tokens.shape
        # Depths are so many more images to the one decoder. The batch comes first, so that it
        # stays split over devices.
        visible_tokens = jnp.moveaxis(features.tokens, 0, 1)
        visible_tokens = visible_tokens.reshape(batch * num_depths, num_tokens, -1)
        mask = jnp.repeat(mask, num_depths, axis=0)

        embed = Dense(self.width, dtype=self.dtype, name="embedding")
        embedded = embed(visible_tokens)
        num_class_tokens = int(features.has_class_token)
        class_token, visible = jnp.split(embedded, [num_class_tokens], axis=1)
        mask_token = self.param("mask_token", token_initializer(), (self.width,))
        # A visible patch's place among the visible ones is the count of visible ones before it.
        place = jnp.clip(jnp.cumsum(~mask, axis=1) - 1, 0, visible.shape[1] - 1)
        tokens = jnp.take_along_axis(visible, place[..., None], axis=1)
        tokens = jnp.where(mask[..., None], mask_token.astype(self.dtype), tokens)
        tokens = tokens + jnp.asarray(sincos_positions(self.grid, self.width), self.dtype)
        tokens = jnp.concatenate([class_token, tokens], axis=1)
        block = block_class(self.rematerialization)
        for index in range(self.depth):
            tokens = block(
                num_heads=self.num_heads,
                mlp_width=int(self.width * self.mlp_ratio),
                attention_form=self.attention_form,
                dtype=self.dtype,
                name=f"block_{index + 1:02d}",
            )(tokens, False)
        patches = layer_norm(self.dtype, name="norm")(tokens)[:, num_class_tokens:]
        return jnp.moveaxis(patches.reshape(batch, num_depths, *patches.shape[1:]), 1, 0)

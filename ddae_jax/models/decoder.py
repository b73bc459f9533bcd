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
        intermediate_blocks: how many of the blocks, the first ones, decode the depths before the
            last one; 0 for all. Fewer make deep supervision cheaper.
        rematerialization, attention_form, dtype: as in :class:`ddae_jax.models.vit.ViT`.

    Source: He et al. 2022, section 3 ("MAE decoder").
    """

    grid: Grid
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    intermediate_blocks: int = 0
    rematerialization: Rematerialization = "none"
    attention_form: AttentionForm = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, mask: Bool[Array, "batch patches"] | None = None
    ) -> Float[Array, "depths batch patches decoder_width"]:
        """Decodes the features of visible patches, in ascending order, at every read-out depth.

        Args:
            features: of the class token, if any, and the visible patches.
            mask: True where hidden; None if all patches are visible.

        Returns:
            Normalised features of all patches of the grid, in its order.
        """
        num_depths, batch, num_tokens, _ = features.tokens.shape
        # Depths are so many more images to the one decoder. The batch comes first, so that it
        # stays split over devices.
        visible_tokens = jnp.moveaxis(features.tokens, 0, 1)
        visible_tokens = visible_tokens.reshape(batch * num_depths, num_tokens, -1)

        embed = Dense(self.width, dtype=self.dtype, name="embedding")
        embedded = embed(visible_tokens)
        num_class_tokens = int(features.has_class_token)
        class_token, patches = jnp.split(embedded, [num_class_tokens], axis=1)
        if mask is not None:
            patches = self._fill_in(patches, jnp.repeat(mask, num_depths, axis=0))
        patches = patches + jnp.asarray(sincos_positions(self.grid, self.width), self.dtype)
        tokens = jnp.concatenate([class_token, patches], axis=1)
        tokens = tokens.reshape(batch, num_depths, *tokens.shape[1:])
        tokens = self._decode(tokens)
        patches = layer_norm(self.dtype, name="norm")(tokens)[:, :, num_class_tokens:]
        return jnp.moveaxis(patches, 1, 0)

    def _fill_in(
        self, visible: Float[Array, "batch visible width"], mask: Bool[Array, "batch patches"]
    ) -> Float[Array, "batch patches width"]:
        """The mask token where hidden, and the visible patches' features in their places."""
        mask_token = self.param("mask_token", token_initializer(), (self.width,))
        # A visible patch's place among the visible ones is the count of visible ones before it.
        place = jnp.clip(jnp.cumsum(~mask, axis=1) - 1, 0, visible.shape[1] - 1)
        tokens = jnp.take_along_axis(visible, place[..., None], axis=1)
        return jnp.where(mask[..., None], mask_token.astype(self.dtype), tokens)

    def _decode(
        self, tokens: Float[Array, "batch depths tokens width"]
    ) -> Float[Array, "batch depths tokens width"]:
        """All blocks for the last depth; for those before it, the first ones, as many as asked."""

        def apply_block(index, tokens):
            block = block_class(self.rematerialization)(
                num_heads=self.num_heads,
                mlp_width=int(self.width * self.mlp_ratio),
                attention_form=self.attention_form,
                dtype=self.dtype,
                name=f"block_{index + 1:02d}",
            )
            return block(tokens.reshape(-1, *tokens.shape[2:]), False).reshape(tokens.shape)

        num_shared = self.intermediate_blocks or self.depth
        for index in range(min(num_shared, self.depth)):
            tokens = apply_block(index, tokens)
        last = tokens[:, -1:]
        for index in range(num_shared, self.depth):
            last = apply_block(index, last)
        return jnp.concatenate([tokens[:, :-1], last], axis=1)

"""The light decoder that fills hidden patches in if only visible ones were encoded."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ddae_jax.masking import visible_indices
from ddae_jax.models.attention import AttentionForm
from ddae_jax.models.dense import Dense
from ddae_jax.models.gather import at_patches
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.transformer import (
    Rematerialization,
    block_class,
    layer_norm,
    token_initializer,
)
from ddae_jax.models.vit import Features
from ddae_jax.patches import Grid

DecoderKind = Literal["self", "cross"]


class Decoder(nn.Module):
    """A narrow transformer that decodes features of hidden patches, the same one for every depth.

    Attributes:
        grid: ``(h, w)``, the grid of patches of the whole image.
        width, depth, num_heads: size of the decoder.
        mlp_ratio: hidden width of the MLPs over ``width``.
        kind: ``self``: visible features and mask tokens attend to each other (He et al. 2022,
            section 3, "MAE decoder"). ``cross``: mask tokens attend to the visible features but
            not to each other, so that each is decoded by itself and only requested patches cost
            anything (Fu et al. 2024, "Rethinking Patch Dependence for Masked Autoencoders").
        intermediate_blocks: how many of the first blocks decode the depths before the last one; 0
            for all. Fewer make deep supervision cheaper.
        rematerialization, attention_form, dtype: as in :class:`ddae_jax.models.vit.ViT`.
    """

    grid: Grid
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    kind: DecoderKind = "self"
    intermediate_blocks: int = 0
    rematerialization: Rematerialization = "none"
    attention_form: AttentionForm = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Features,
        mask: Bool[ArrayLike, "batch patches"] | None = None,
        *,
        places: Int[ArrayLike, "batch chosen"] | None = None,
        holds_last: bool = True,
    ) -> Float[Array, "depths batch chosen decoder_features"]:
        """Decodes patches at every depth that was read out.

        Args:
            features: features of the class token, if any, and of the visible patches in ascending
                order.
            mask: True where hidden; None if all patches are visible.
            places: the hidden patches to decode; by default all patches of the grid, in its order.
                Given some of the hidden patches, ``self`` decodes them as if there were no others.
            holds_last: whether the last of these depths is the encoder's last one, and so passes
                through all blocks.

        Returns:
            Normalised features of the decoded patches.

        Raises:
            ValueError: if ``kind`` is unknown, or ``cross`` has no mask.
        """
        if self.kind == "cross":
            return self._attend_to_visible(features, mask, places, holds_last)
        if self.kind == "self":
            return self._attend_to_all(features, mask, places, holds_last)
        raise ValueError(f"decoder.kind={self.kind!r}; known: 'self', 'cross'")

    def _attend_to_all(
        self,
        features: Features,
        mask: Bool[ArrayLike, "batch patches"] | None,
        places: Int[ArrayLike, "batch chosen"] | None,
        holds_last: bool,
    ) -> Float[Array, "depths batch chosen features"]:
        num_depths, batch, num_tokens, _ = features.tokens.shape
        # To the decoder, depths are just more images. The batch comes first, so that it stays
        # split over devices.
        visible_tokens = jnp.moveaxis(features.tokens, 0, 1)
        visible_tokens = visible_tokens.reshape(batch * num_depths, num_tokens, -1)

        embed = Dense(self.width, dtype=self.dtype, name="embedding")
        embedded = embed(visible_tokens)
        num_class_tokens = int(features.has_class_token)
        class_token, patches = jnp.split(embedded, [num_class_tokens], axis=1)
        positions = jnp.asarray(sincos_positions(self.grid, self.width), self.dtype)
        num_patches, num_visible = positions.shape[0], patches.shape[1]
        decodes_some = places is not None and places.shape[1] < num_patches - num_visible
        if decodes_some:
            chosen = jnp.concatenate([visible_indices(mask, num_visible), places], axis=1)
            patches = jnp.concatenate(
                [patches, self._mask_tokens(batch * num_depths, places.shape[1])], axis=1
            )
            patches = patches + jnp.repeat(positions[chosen], num_depths, axis=0)
        else:
            if mask is not None:
                patches = self._fill_in(patches, jnp.repeat(mask, num_depths, axis=0))
            patches = patches + positions
        tokens = jnp.concatenate([class_token, patches], axis=1)
        tokens = tokens.reshape(batch, num_depths, *tokens.shape[1:])
        patches = self._decode(tokens, None, holds_last)[:, :, num_class_tokens:]
        patches = jnp.moveaxis(patches, 1, 0)
        if decodes_some:
            return patches[:, :, num_visible:]
        return patches if places is None else at_patches(patches, places)

    def _attend_to_visible(
        self,
        features: Features,
        mask: Bool[ArrayLike, "batch patches"] | None,
        places: Int[ArrayLike, "batch chosen"] | None,
        holds_last: bool,
    ) -> Float[Array, "depths batch chosen features"]:
        if mask is None:
            raise ValueError("decoder.kind='cross' decodes hidden patches; it needs a mask")
        num_depths, batch, _, _ = features.tokens.shape
        positions = jnp.asarray(sincos_positions(self.grid, self.width), self.dtype)
        chosen = jnp.broadcast_to(positions, (batch, *positions.shape))
        if places is not None:
            chosen = positions[places]
        queries = self._mask_tokens(batch, chosen.shape[1]) + chosen
        queries = jnp.broadcast_to(queries[:, None], (batch, num_depths, *queries.shape[1:]))
        decoded = self._decode(queries, jnp.moveaxis(features.tokens, 0, 1), holds_last)
        return jnp.moveaxis(decoded, 1, 0)

    def _mask_token(self) -> Float[Array, " features"]:
        mask_token = self.param("mask_token", token_initializer(), (self.width,))
        return jnp.asarray(mask_token, self.dtype)

    def _mask_tokens(self, batch: int, count: int) -> Float[Array, "batch count features"]:
        return jnp.broadcast_to(self._mask_token(), (batch, count, self.width))

    def _fill_in(
        self,
        visible: Float[ArrayLike, "batch visible features"],
        mask: Bool[ArrayLike, "batch patches"],
    ) -> Float[Array, "batch patches features"]:
        """Puts the visible patches' features in their places, and the mask token elsewhere."""
        # A visible patch's index among the visible ones is the number of those before it.
        place = jnp.clip(jnp.cumsum(~mask, axis=1) - 1, 0, visible.shape[1] - 1)
        tokens = jnp.take_along_axis(visible, place[..., None], axis=1)
        return jnp.where(mask[..., None], self._mask_token(), tokens)

    def _decode(
        self,
        tokens: Float[ArrayLike, "batch depths tokens features"],
        memory: Float[ArrayLike, "batch depths keys memory_features"] | None,
        holds_last: bool,
    ) -> Float[Array, "batch depths tokens features"]:
        """Applies the first blocks to all depths, the rest to the last depth, then the norm."""
        norm = layer_norm(self.dtype, name="norm")

        def apply_block(index, tokens, memory):
            block = block_class(self.rematerialization)(
                num_heads=self.num_heads,
                mlp_width=int(self.width * self.mlp_ratio),
                attention_form=self.attention_form,
                dtype=self.dtype,
                name=f"block_{index + 1:02d}",
            )
            if memory is not None:
                memory = memory.reshape(-1, *memory.shape[2:])
            flat = tokens.reshape(-1, *tokens.shape[2:])
            return block(flat, False, None, memory).reshape(tokens.shape)

        num_shared = self.intermediate_blocks or self.depth
        for index in range(min(num_shared, self.depth)):
            tokens = apply_block(index, tokens, memory)
        if not holds_last or num_shared >= self.depth:
            return norm(tokens)
        last, last_memory = tokens[:, -1:], None if memory is None else memory[:, -1:]
        for index in range(num_shared, self.depth):
            last = apply_block(index, last, last_memory)
        return norm(jnp.concatenate([tokens[:, :-1], last], axis=1))

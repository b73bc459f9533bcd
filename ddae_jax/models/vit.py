"""The vision transformer, which reads out features at chosen depths."""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from ddae_jax.models.attention import ATTENTION, AttentionForm, RelativePositionBias
from ddae_jax.models.dense import Dense
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.sizes import SIZES as SIZES
from ddae_jax.models.sizes import Size as Size
from ddae_jax.models.transformer import (
    Activation,
    Rematerialization,
    block_class,
    layer_norm,
    token_initializer,
)
from ddae_jax.patches import Grid, patch_grid, patchify


@flax.struct.dataclass
class Features:
    """Features that were read out at some depths.

    Attributes:
        tokens: the class token, if there is one, and then the encoded patches.
        has_class_token: whether the first token is the class token.
    """

    tokens: Float[Array, "depths batch tokens features"]
    has_class_token: bool = flax.struct.field(pytree_node=False)

    @property
    def patches(self) -> Float[Array, "depths batch patches features"]:
        """Returns the features of the patches, without the class token."""
        return jnp.asarray(self.tokens)[:, :, int(self.has_class_token) :]

    @property
    def class_token(self) -> Float[Array, "depths batch features"]:
        """Returns the class token's features; raises ``ValueError`` if there is none."""
        if not self.has_class_token:
            raise ValueError("this encoder has no class token; use the mean of its patches")
        return jnp.asarray(self.tokens)[:, :, 0]


class ViT(nn.Module):
    """A vision transformer encoder.

    Attributes:
        image_size: ``(height, width)`` of the images, in pixels; need not be square.
        patch_size: side of a patch, in pixels; divides both sides of the images.
        width, depth, num_heads: see :data:`SIZES`.
        mlp_ratio: hidden width of the MLPs, relative to ``width``.
        positions: embeddings added to the patches: ``sincos`` (fixed), ``learned`` or ``none``.
        relative_positions: ``none``; or a learned attention bias for each relative position of
            two tokens, ``shared`` by all blocks or one ``per_block`` (full input only).
        norms_embedding: whether a layer norm precedes the blocks (Radford et al. 2021, CLIP).
        has_key_bias, layer_scale, activation, norm_epsilon: see
            :class:`ddae_jax.models.transformer.Block`.
        use_class_token: whether a learned token is put before the patches.
        drop_path_rate: rate of stochastic depth at the last block; it rises linearly from 0 at the
            first.
        rematerialization: see :func:`ddae_jax.models.transformer.block_class`.
        attention_form: see :class:`ddae_jax.models.attention.SelfAttention`.
        dtype: dtype of the computation; parameters are float32.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words".
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    positions: Literal["sincos", "learned", "none"] = "sincos"
    relative_positions: Literal["none", "shared", "per_block"] = "none"
    has_key_bias: bool = True
    layer_scale: float | None = None
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-6
    norms_embedding: bool = False
    use_class_token: bool = True
    drop_path_rate: float = 0.0
    rematerialization: Rematerialization = "none"
    attention_form: AttentionForm = "auto"
    dtype: DTypeLike = jnp.float32

    @property
    def grid(self) -> Grid:
        """Returns the rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size)

    @property
    def block_options(self) -> dict[str, Any]:
        """Returns arguments of :class:`ddae_jax.models.transformer.Block` that all blocks share."""
        return {
            "num_heads": self.num_heads,
            "mlp_width": int(self.width * self.mlp_ratio),
            "attention_form": self.attention_form,
            "has_key_bias": self.has_key_bias,
            "layer_scale": self.layer_scale,
            "activation": self.activation,
            "norm_epsilon": self.norm_epsilon,
            "dtype": self.dtype,
        }

    @property
    def position_options(self) -> dict[str, Any]:
        """Returns the arguments of :class:`ddae_jax.models.attention.RelativePositionBias`."""
        return {
            "grid": self.grid,
            "has_class_token": self.use_class_token,
            "num_heads": self.num_heads,
        }

    def setup(self):
        if self.relative_positions not in ("none", "shared", "per_block"):
            raise ValueError(
                f"relative_positions={self.relative_positions!r}; known: 'none', 'shared', "
                "'per_block'"
            )
        self.norm = layer_norm(self.dtype, self.norm_epsilon)
        if self.relative_positions == "shared":
            self.shared_bias = RelativePositionBias(**self.position_options)

    @nn.compact
    def __call__(
        self,
        images: Float[ArrayLike, "batch height width channels"],
        *,
        mask: Bool[ArrayLike, "batch patches"] | None = None,
        visible: Int[ArrayLike, "batch visible"] | None = None,
        depths: tuple[int, ...] | None = None,
        normalize: bool = True,
        is_training: bool = False,
    ) -> Features:
        """Encodes images and reads out the features after the blocks of ``depths``.

        Args:
            images: normalised pixels.
            mask: if given, patches where it is True are replaced by the learned mask token.
            visible: if given, only patches with these indices are encoded (He et al. 2022).
            depths: blocks to read out, counted from 1, ascending; the last one by default. Only
                these features are kept in memory.
            normalize: whether to apply the final layer norm, the same for all depths, to them.
            is_training: whether stochastic depth is on (random stream ``drop_path``).

        Raises:
            ValueError: if a depth lies outside [1, depth], the images have another size, or only
                visible patches are to be encoded with relative positions.
        """
        depths = (self.depth,) if depths is None else tuple(depths)
        check_depths(depths, self.depth)
        if images.shape[1:3] != tuple(self.image_size):
            raise ValueError(
                f"images are {images.shape[1:3]} pixels; this encoder is for {self.image_size}"
            )
        if visible is not None and self.relative_positions != "none":
            raise ValueError(
                f"relative_positions={self.relative_positions!r} are those of all patches; "
                "encode all of them, or use positions='sincos'"
            )
        tokens = self._embed(images, mask, visible)
        if self.norms_embedding:
            tokens = layer_norm(self.dtype, self.norm_epsilon, name="embedding_norm")(tokens)
        shared_bias = self.attention_bias()
        block = block_class(self.rematerialization)
        readout = []
        for index in range(self.depth if self.is_initializing() else max(depths)):
            bias = shared_bias
            if self.relative_positions == "per_block":
                name = f"relative_positions_{index + 1:02d}"
                bias = RelativePositionBias(**self.position_options, name=name)()
            tokens = block(
                **self.block_options,
                drop_path_rate=self.drop_path_rate * index / max(self.depth - 1, 1),
                name=_block_name(index + 1),
            )(tokens, is_training, bias)
            if index + 1 in depths:
                readout.append(tokens)
        features = jnp.stack(readout)
        if normalize or self.is_initializing():
            features = self.norm(features)
        return Features(tokens=features, has_class_token=self.use_class_token)

    def attention_bias(self) -> Float[Array, "heads tokens tokens"] | None:
        """Returns the relative position bias that all blocks share, or None if there is none."""
        return self.shared_bias() if self.relative_positions == "shared" else None

    def _embed(
        self,
        images: Float[ArrayLike, "batch height width channels"],
        mask: Bool[ArrayLike, "batch patches"] | None,
        visible: Int[ArrayLike, "batch visible"] | None,
    ) -> Float[Array, "batch tokens features"]:
        patches = patchify(images.astype(self.dtype), self.patch_size)
        if visible is not None:  # chosen first, so that no gradient is scattered to the others
            patches = _at(patches, visible)
        tokens = Dense(self.width, dtype=self.dtype, name="patch_embedding")(patches)
        if mask is not None:
            mask_token = self.param("mask_token", token_initializer(), (self.width,))
            is_masked = mask[..., None] if visible is None else _at(mask[..., None], visible)
            tokens = jnp.where(is_masked, mask_token.astype(self.dtype), tokens)
        if self.positions != "none":
            positions = self._positions().astype(self.dtype)
            tokens = tokens + (positions if visible is None else positions[visible])
        if self.use_class_token:
            class_token = self.param("class_token", token_initializer(), (self.width,))
            class_token = jnp.broadcast_to(class_token, (tokens.shape[0], 1, self.width))
            tokens = jnp.concatenate([class_token.astype(self.dtype), tokens], axis=1)
        return tokens

    def _positions(self) -> Float[Array, "patches features"]:
        if self.positions == "learned":
            shape = (self.grid[0] * self.grid[1], self.width)
            return jnp.asarray(self.param("positions", nn.initializers.normal(0.02), shape))
        if self.positions == "sincos":
            return jnp.asarray(sincos_positions(self.grid, self.width))
        raise ValueError(f"positions={self.positions!r}; known: 'sincos', 'learned', 'none'")


def attention_by_block(
    encoder: ViT, params: PyTree, images: Float[ArrayLike, "batch height width channels"]
) -> list[Float[Array, "batch heads tokens tokens"]]:
    """Returns the float32 attention weights of every block, from first to last.

    Rows are queries, whose weights sum to one, and columns keys; the class token comes first, if
    there is one. Inside a jitted function that reduces them, only the weights of about one block
    are in memory at a time.

    Args:
        encoder: the vision transformer.
        params: parameters of the encoder.
        images: normalised pixels; no patch is hidden.
    """
    _, sown = encoder.apply({"params": params}, images, mutable=[ATTENTION])
    blocks = (sown[ATTENTION][_block_name(depth)] for depth in range(1, encoder.depth + 1))
    return [block["attention"]["weights"][0] for block in blocks]


def _at(
    values: Shaped[ArrayLike, "batch patches values"], visible: Int[ArrayLike, "batch visible"]
) -> Shaped[Array, "batch visible values"]:
    """Returns the values of each image's chosen patches."""
    return jnp.take_along_axis(values, visible[..., None], axis=1)


def _block_name(depth: int) -> str:
    return f"block_{depth:02d}"


def check_depths(depths: tuple[int, ...], depth: int) -> None:
    """Raises ``ValueError`` unless ``depths`` ascend strictly within [1, ``depth``]."""
    if (
        not depths
        or list(depths) != sorted(set(depths))
        or not 1 <= depths[0] <= depths[-1] <= depth
    ):
        raise ValueError(
            f"depths={depths}; they ascend from at least 1 to at most {depth}, the model's depth"
        )

"""The network that is trained: encoder, optional decoder, and one head for all predictions."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ddae_jax.masking import visible_indices
from ddae_jax.methods.task import Images, Mask, Predictions
from ddae_jax.models.attention import RelativePositionBias
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.dense import Dense
from ddae_jax.models.gather import at_patches
from ddae_jax.models.transformer import block_class
from ddae_jax.models.vit import Features, ViT


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """Patch-aggregation blocks, which read the last class token and an earlier block's patches.

    The earlier patches alone are not enough to predict hidden ones well, so that the class token
    has to carry information about the whole image.

    Attributes:
        num_blocks: number of aggregation blocks.
        patches_from: the encoder's block whose patches they read, from 1.

    Source: Peng et al. 2022, BEiT v2, section 3.2.
    """

    num_blocks: int
    patches_from: int


@flax.struct.dataclass
class Outputs:
    """Outputs of the student for a batch.

    Attributes:
        predictions: predictions by objective, for the requested patches. One item for all depths;
            or two, the depths before the last one and the last one.
        visible: with ``visible`` input, the features of visible patches at each depth, before the
            encoder's final norm, like the features that a momentum encoder gives as targets.
    """

    predictions: tuple[Predictions, ...]
    visible: Float[Array, "depths batch visible features"] | None = None


class MaskedImageModel(nn.Module):
    """The trained network: an encoder, a decoder for ``visible`` input, and ONE head.

    By default, the same decoder and head are applied at every depth, and the head predicts all
    objectives: deep supervision adds no parameters to the network.

    Attributes:
        encoder: the vision transformer.
        decoder: None if hidden patches enter the encoder as mask tokens.
        output_widths: number of values to predict for a patch, by objective.
        depths: blocks after which predictions are read out, ascending. With ``aggregation``, the
            last one is ``encoder.depth + aggregation.num_blocks``.
        aggregation: the patch-aggregation blocks, whose output is one more readout; None for none.
        has_decoder_per_depth: whether each depth has a decoder of its own, for comparison.
        normalizes_intermediate: whether the encoder's final norm is also applied to the depths
            before its last one.
    """

    encoder: ViT
    decoder: Decoder | None
    output_widths: Mapping[str, int]
    depths: tuple[int, ...]
    aggregation: Aggregation | None = None
    has_decoder_per_depth: bool = False
    normalizes_intermediate: bool = True

    def setup(self):
        self.head = Dense(sum(self.output_widths.values()), dtype=self.encoder.dtype)
        block = block_class(self.encoder.rematerialization)
        num_blocks = self.aggregation.num_blocks if self.aggregation else 0
        self.aggregation_blocks = [
            block(**self.encoder.block_options, drop_path_rate=self.encoder.drop_path_rate)
            for _ in range(num_blocks)
        ]
        # With "per_block" positions, aggregation blocks have their own, as encoder blocks do.
        self.aggregation_positions = [
            RelativePositionBias(**self.encoder.position_options)
            for _ in range(num_blocks * (self.encoder.relative_positions == "per_block"))
        ]
        num_own = len(self.depths) - 1 if self.has_decoder_per_depth else 0
        self.intermediate_decoders = [self.decoder.clone(parent=None) for _ in range(num_own)]

    def __call__(
        self,
        images: Images,
        mask: Mask,
        num_visible: int,
        places: Sequence[Int[ArrayLike, "batch _"] | None],
        is_training: bool = False,
    ) -> Outputs:
        """Predicts patches at each supervised depth.

        Args:
            images: normalised pixels.
            mask: True where hidden.
            num_visible: number of visible patches in each image.
            places: indices of the patches to predict, or None for all patches. One item for all
                depths; or two, for the depths before the last one and for the last one.
            is_training: whether stochastic depth is on.
        """
        visible = None
        if self.decoder is None:
            (at,) = places  # without a decoder, fewer places at some depths would save nothing
            patches = (self._encode_all(images, mask, at, is_training),)
        else:
            features = self.encoder(
                images,
                visible=visible_indices(mask, num_visible),
                depths=self.depths,
                normalize=False,
                is_training=is_training,
            )
            visible = features.patches
            normalized = features.replace(tokens=self._normalize(features.tokens))
            patches = self._decode(normalized, mask, places)
        return Outputs(tuple(map(self._predict, patches)), visible)

    def predict(self, images: Images, mask: Mask, num_visible: int) -> Predictions:
        """Predicts all patches at each supervised depth."""
        return self(images, mask, num_visible, (None,)).predictions[0]

    def _predict(self, patches: Float[Array, "depths batch chosen features"]) -> Predictions:
        # With the batch first, it stays sharded over devices where leading axes are flattened.
        outputs = jnp.moveaxis(self.head(jnp.moveaxis(patches, 0, 1)), 1, 0)
        ends = list(itertools.accumulate(self.output_widths.values()))[:-1]
        return dict(zip(self.output_widths, jnp.split(outputs, ends, axis=-1), strict=True))

    def _decode(
        self,
        features: Features,
        mask: Mask,
        places: Sequence[Int[ArrayLike, "batch _"] | None],
    ) -> list[Float[Array, "depths batch chosen features"]]:
        """Returns decoded features of the requested patches, one array for each of ``places``."""

        def decode(decoder, depths, at, holds_last):
            chosen = features.replace(tokens=features.tokens[depths])
            return decoder(chosen, mask, places=at, holds_last=holds_last)

        if len(places) == 1 and not self.has_decoder_per_depth:
            return [decode(self.decoder, slice(None), places[0], True)]
        last = decode(self.decoder, slice(-1, None), places[-1], True)
        if self.has_decoder_per_depth:
            earlier = jnp.concatenate(
                [
                    decode(decoder, slice(i, i + 1), places[0], False)
                    for i, decoder in enumerate(self.intermediate_decoders)
                ]
            )
        else:
            earlier = decode(self.decoder, slice(-1), places[0], False)
        return [earlier, last] if len(places) == 2 else [jnp.concatenate([earlier, last])]

    def _encode_all(
        self,
        images: Images,
        mask: Mask,
        at: Int[ArrayLike, "batch chosen"] | None,
        is_training: bool,
    ) -> Float[Array, "depths batch chosen features"]:
        """Returns features of the patches ``at``, with mask tokens in place of hidden patches."""
        choose = (lambda patches: patches) if at is None else (lambda p: at_patches(p, at))
        depths = tuple(d for d in self.depths if d <= self.encoder.depth)
        earlier = () if self.aggregation is None else (self.aggregation.patches_from,)
        read_depths = tuple(sorted({*depths, *earlier}))
        features = self.encoder(
            images, mask=mask, depths=read_depths, normalize=False, is_training=is_training
        )
        if self.aggregation is None:
            patches = features.patches
        else:
            tokens = dict(zip(read_depths, features.tokens, strict=True))
            aggregated = self._aggregate(tokens[depths[-1]], tokens[earlier[0]], is_training)
            patches = jnp.stack([*(tokens[d] for d in depths), aggregated])[:, :, 1:]
        # Patches are selected before the norm, so that it is computed only for predicted ones.
        return self._normalize(choose(patches))

    def _normalize(
        self, features: Float[Array, "depths batch tokens features"]
    ) -> Float[Array, "depths batch tokens features"]:
        """Applies the encoder's final norm to all depths, or from the encoder's last one on."""
        if self.normalizes_intermediate:
            return self.encoder.norm(features)
        count = sum(depth < self.encoder.depth for depth in self.depths)
        return jnp.concatenate([features[:count], self.encoder.norm(features[count:])])

    def _aggregate(
        self,
        last: Float[Array, "batch tokens features"],
        earlier: Float[Array, "batch tokens features"],
        is_training: bool,
    ) -> Float[Array, "batch tokens features"]:
        """Applies the aggregation blocks to the last class token and earlier patches."""
        tokens = jnp.concatenate([last[:, :1], earlier[:, 1:]], axis=1)
        shared = self.encoder.attention_bias()
        own = [bias() for bias in self.aggregation_positions] or itertools.repeat(shared)
        for block, bias in zip(self.aggregation_blocks, own, strict=False):
            tokens = block(tokens, is_training, bias)
        return tokens

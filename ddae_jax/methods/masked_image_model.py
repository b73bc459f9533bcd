"""The masked image model: encoder, decoder, and one head for all that is predicted."""

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
    """A patch-aggregation head: the last class token beside an earlier block's patches.

    To predict hidden patches from features that are not yet complete, its blocks have to put what
    the image is into the class token.

    Attributes:
        num_blocks: its blocks.
        patches_from: the block of the encoder whose patches it takes.

    Source: Peng et al. 2022, BEiT v2, section 3.2.
    """

    num_blocks: int
    patches_from: int


@flax.struct.dataclass
class Outputs:
    """What a student makes of a batch.

    Attributes:
        predictions: by objective, for the patches that were asked for: of all depths; or, of the
            depths before the last one and of the last one.
        visible: with ``visible`` input, the features of visible patches at each depth, before the
            encoder's final norm, as the momentum encoder's are read.
    """

    predictions: tuple[Predictions, ...]
    visible: Float[Array, "depths batch visible features"] | None = None


class MaskedImageModel(nn.Module):
    """The trained network: encoder, decoder if only visible patches are encoded, and ONE head.

    The same head (and decoder) reads every depth of ``depths`` and serves every
    objective, so that deep supervision adds no structure to a method.

    Attributes:
        encoder: the vision transformer.
        decoder: None, if hidden patches enter the encoder as mask tokens.
        output_widths: values to predict for a patch, by objective.
        depths: blocks after which predictions are read out, ascending; beyond the encoder's for
            the aggregation.
        aggregation: None, or the blocks of a patch-aggregation head, which makes one more readout:
            as many blocks deeper than the encoder.
        has_decoder_per_depth: for comparison, whether each depth has a decoder of its own.
        normalizes_intermediate: whether depths before the encoder's last one pass its final norm.
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
        # Each has positions of its own where each block of the encoder has.
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
        """Predictions at each supervised depth.

        Args:
            images: normalised pixels.
            mask: True where hidden.
            num_visible: visible patches of each image.
            places: the patches to predict at all depths, None for all of them; or those of the
                depths before the last one, and those of the last one.
            is_training: whether stochastic depth is on.
        """
        visible = None
        if self.decoder is None:
            (at,) = places  # one or all: there is nothing to be saved by leaving some out
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
        """Predictions at each supervised depth, for all patches."""
        return self(images, mask, num_visible, (None,)).predictions[0]

    def _predict(self, patches: Float[Array, "depths batch chosen features"]) -> Predictions:
        # The batch comes first where axes are flattened, so that it stays split over devices.
        outputs = jnp.moveaxis(self.head(jnp.moveaxis(patches, 0, 1)), 1, 0)
        ends = list(itertools.accumulate(self.output_widths.values()))[:-1]
        return dict(zip(self.output_widths, jnp.split(outputs, ends, axis=-1), strict=True))

    def _decode(
        self,
        features: Features,
        mask: Mask,
        places: Sequence[Int[ArrayLike, "batch _"] | None],
    ) -> list[Float[Array, "depths batch chosen features"]]:
        """What the head sees of the patches asked for, a part for each of ``places``."""

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
        """Features of patches, where hidden ones enter the encoder as mask tokens."""
        choose = (lambda patches: patches) if at is None else (lambda p: at_patches(p, at))
        depths = tuple(d for d in self.depths if d <= self.encoder.depth)
        earlier = () if self.aggregation is None else (self.aggregation.patches_from,)
        read = tuple(sorted({*depths, *earlier}))
        features = self.encoder(
            images, mask=mask, depths=read, normalize=False, is_training=is_training
        )
        if self.aggregation is None:
            patches = features.patches
        else:
            found = dict(zip(read, features.tokens, strict=True))
            aggregated = self._aggregate(found[depths[-1]], found[earlier[0]], is_training)
            patches = jnp.stack([*(found[d] for d in depths), aggregated])[:, :, 1:]
        # Normalised after the choice: what is not predicted needs no norm.
        return self._normalize(choose(patches))

    def _normalize(
        self, features: Float[Array, "depths batch tokens features"]
    ) -> Float[Array, "depths batch tokens features"]:
        """The encoder's final norm of all depths, or of the encoder's last one and what follows."""
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
        """What :class:`Aggregation` makes of the last class token and earlier patches."""
        tokens = jnp.concatenate([last[:, :1], earlier[:, 1:]], axis=1)
        shared = self.encoder.attention_bias()
        own = [bias() for bias in self.aggregation_positions] or itertools.repeat(shared)
        for block, bias in zip(self.aggregation_blocks, own, strict=False):
            tokens = block(tokens, is_training, bias)
        return tokens

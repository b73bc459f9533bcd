"""The network that a method trains: encoder, decoder, and ONE head for all that is predicted."""

import dataclasses
import itertools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddae_jax.masking import visible_indices
from ddae_jax.methods.supervision import DeepDynamicSupervision
from ddae_jax.methods.trainable import Images, Mask, Predictions
from ddae_jax.models.attention import RelativePositionBias
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.dense import Dense
from ddae_jax.models.transformer import block_class
from ddae_jax.models.vit import ViT
from ddae_jax.patches import at_patches


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


class Student(nn.Module):
    """The trained network: encoder, decoder if only visible patches are encoded, and ONE head.

    The same head (and decoder) reads every depth of ``supervision.depths`` and serves every
    objective, so that deep supervision adds no structure to a method.

    Attributes:
        encoder: the vision transformer.
        decoder: None, if hidden patches enter the encoder as mask tokens.
        output_widths: values to predict for a patch, by objective.
        supervision: the loss of the errors.
        aggregation: None, or the blocks of a patch-aggregation head, which makes one more readout:
            as many blocks deeper than the encoder.
    """

    encoder: ViT
    decoder: Decoder | None
    output_widths: Mapping[str, int]
    supervision: DeepDynamicSupervision
    aggregation: Aggregation | None = None

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

    def predict(
        self,
        images: Images,
        mask: Mask,
        num_visible: int,
        *,
        at: Int[Array, "batch chosen"] | None = None,
        is_training: bool = False,
    ) -> Predictions:
        """Predictions at each supervised depth, for the patches ``at``, or for all of them."""
        patches = self._read_out(images, mask, num_visible, at, is_training)
        # The batch comes first where axes are flattened, so that it stays split over devices.
        outputs = jnp.moveaxis(self.head(jnp.moveaxis(patches, 0, 1)), 1, 0)
        ends = list(itertools.accumulate(self.output_widths.values()))[:-1]
        return dict(zip(self.output_widths, jnp.split(outputs, ends, axis=-1), strict=True))

    def _read_out(
        self,
        images: Images,
        mask: Mask,
        num_visible: int,
        at: Int[Array, "batch chosen"] | None,
        is_training: bool,
    ) -> Float[Array, "depths batch chosen width"]:
        """What the head sees of each patch, or of the chosen ones."""
        choose = (lambda patches: patches) if at is None else (lambda p: at_patches(p, at))
        depths = tuple(d for d in self.supervision.depths if d <= self.encoder.depth)
        if self.decoder is not None:
            visible = visible_indices(mask, num_visible)
            features = self.encoder(images, visible=visible, depths=depths, is_training=is_training)
            return choose(self.decoder(features, mask))
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
        return self.encoder.norm(choose(patches))

    def _aggregate(
        self,
        last: Float[Array, "batch tokens width"],
        earlier: Float[Array, "batch tokens width"],
        is_training: bool,
    ) -> Float[Array, "batch tokens width"]:
        """What :class:`Aggregation` makes of the last class token and earlier patches."""
        tokens = jnp.concatenate([last[:, :1], earlier[:, 1:]], axis=1)
        shared = self.encoder.attention_bias()
        own = [bias() for bias in self.aggregation_positions] or itertools.repeat(shared)
        for block, bias in zip(self.aggregation_blocks, own, strict=False):
            tokens = block(tokens, is_training, bias)
        return tokens

    def supervise(self, errors: Float[Array, "objectives depths batch patches"], mask: Mask):
        """See :class:`DeepDynamicSupervision`."""
        return self.supervision(errors, mask, self.encoder.grid)

    def beta(self) -> Float[Array, "objectives depths"]:
        """The exponents in force."""
        return self.supervision.beta()

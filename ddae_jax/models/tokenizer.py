"""The VQ-KD tokenizer: a vision transformer that gives each patch one of some learned codes."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddae_jax.models.codebook import nearest_codes, unit_vectors
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.dense import Dense
from ddae_jax.models.vit import Features, ViT


class Tokenizer(nn.Module):
    """Patches to unit vectors, and codes, once looked up, to a teacher's features.

    The codebook is no parameter: it follows by moving averages (:mod:`ddae_jax.models.codebook`)
    and is given to whoever needs it.

    Attributes:
        encoder: of images.
        decoder: of codes.
        code_width: values of a code.
        teacher_width: values of the features to predict for each patch.

    Source: Peng et al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual
    Tokenizers", section 3.1.
    """

    encoder: ViT
    decoder: Decoder
    code_width: int
    teacher_width: int

    def setup(self):
        width, dtype = self.encoder.width, self.encoder.dtype
        # In float32: in bfloat16 some vectors would have another nearest code.
        self.code_hidden = Dense(width)
        self.code_projection = Dense(self.code_width)
        self.feature_hidden = Dense(self.decoder.width, dtype=dtype)
        self.feature_projection = Dense(self.teacher_width, dtype=dtype)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches teacher_width"]:
        """Touches every parameter: decodes what is encoded, without codes in between."""
        return self.decode(self.encode(images))

    def encode(
        self, images: Float[Array, "batch height width channels"], is_training: bool = False
    ) -> Float[Array, "batch patches code_width"]:
        """A unit vector for each patch, float32."""
        patches = self.encoder(images, is_training=is_training).patches[0].astype(jnp.float32)
        return unit_vectors(self.code_projection(jnp.tanh(self.code_hidden(patches))))

    def decode(
        self, codes: Float[Array, "batch patches code_width"]
    ) -> Float[Array, "batch patches teacher_width"]:
        """The teacher's features of each patch, predicted from the codes of all."""
        tokens = codes[None].astype(self.encoder.dtype)
        patches = self.decoder(Features(tokens, has_class_token=False))[0]
        return self.feature_projection(jnp.tanh(self.feature_hidden(patches)))

    def tokens(
        self,
        images: Float[Array, "batch height width channels"],
        codes: Float[Array, "codes code_width"],
    ) -> Int[Array, "batch patches"]:
        """The index of each patch's code."""
        return nearest_codes(self.encode(images), codes)


def make_tokenizer(
    encoder: ViT, decoder_depth: int, code_width: int, teacher_width: int = 1
) -> Tokenizer:
    """Makes a tokenizer whose decoder is as wide as its encoder."""
    decoder = Decoder(
        encoder.grid,
        width=encoder.width,
        depth=decoder_depth,
        num_heads=encoder.num_heads,
        rematerialization=encoder.rematerialization,
        attention_form=encoder.attention_form,
        dtype=encoder.dtype,
    )
    return Tokenizer(encoder, decoder, code_width, teacher_width)

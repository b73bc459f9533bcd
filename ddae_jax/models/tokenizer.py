"""The VQ-KD tokenizer: a vision transformer that assigns a learned code to each patch."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ddae_jax.models.codebook import nearest_codes, unit_vectors
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.dense import Dense
from ddae_jax.models.vit import Features, ViT


class Tokenizer(nn.Module):
    """An encoder from patches to unit vectors, and a decoder from codes to a teacher's features.

    The codebook is not a parameter: it is updated by moving averages
    (:mod:`ddae_jax.models.codebook`) and passed as an argument.

    Attributes:
        encoder: encoder of images.
        decoder: decoder of codes.
        code_width: number of values of a code.
        teacher_width: number of features to predict for each patch.

    Source: Peng et al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual
    Tokenizers", section 3.1.
    """

    encoder: ViT
    decoder: Decoder
    code_width: int
    teacher_width: int

    def setup(self):
        width, dtype = self.encoder.width, self.encoder.dtype
        # In float32, as some vectors would have another nearest code in bfloat16.
        self.code_hidden = Dense(width)
        self.code_projection = Dense(self.code_width)
        self.feature_hidden = Dense(self.decoder.width, dtype=dtype)
        self.feature_projection = Dense(self.teacher_width, dtype=dtype)

    def __call__(
        self, images: Float[ArrayLike, "batch height width channels"]
    ) -> Float[Array, "batch patches teacher_width"]:
        """Decodes what is encoded, without codes in between, so that it uses every parameter."""
        return self.decode(self.encode(images))

    def encode(
        self, images: Float[ArrayLike, "batch height width channels"], is_training: bool = False
    ) -> Float[Array, "batch patches code_width"]:
        """Encodes each patch as a float32 unit vector."""
        patches = self.encoder(images, is_training=is_training).patches[0].astype(jnp.float32)
        return unit_vectors(self.code_projection(jnp.tanh(self.code_hidden(patches))))

    def decode(
        self, codes: Float[ArrayLike, "batch patches code_width"]
    ) -> Float[Array, "batch patches teacher_width"]:
        """Predicts the teacher's features of each patch from the codes of all patches."""
        codes = jnp.asarray(codes)
        tokens = codes[None].astype(self.encoder.dtype)
        patches = self.decoder(Features(tokens, has_class_token=False))[0]
        return self.feature_projection(jnp.tanh(self.feature_hidden(patches)))

    def tokens(
        self,
        images: Float[ArrayLike, "batch height width channels"],
        codes: Float[ArrayLike, "codes code_width"],
    ) -> Int[Array, "batch patches"]:
        """Returns the index of each patch's code."""
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

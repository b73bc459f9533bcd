"""BEiT v2: BEiT's tokens, predicted a second time through the class token."""

from ddae_jax.methods.beit import SPEC as BEIT
from ddae_jax.methods.beit import beit, check_tokenizer
from ddae_jax.methods.masked_image_model import Aggregation
from ddae_jax.methods.method import Method
from ddae_jax.methods.spec import MethodSpec
from ddae_jax.methods.vqkd import SPEC as VQKD
from ddae_jax.methods.vqkd import TrainedTokenizer
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def beit2(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    tokenizer: TrainedTokenizer,
    aggregation_blocks: int = 2,
    aggregated_patches_from: int = 0,
    **options,
) -> Method:
    """Builds BEiT v2: :func:`beit` with additional patch-aggregation blocks.

    These blocks read the last block's class token and the patches of an earlier block. Their
    output is classified by the same head and is supervised as one more depth,
    ``encoder.depth + aggregation_blocks``.

    Args:
        encoder: the vision transformer; has a class token.
        decoder: None, since aggregation needs ``full`` input.
        tokenizer: a trained tokenizer for images and patches of the encoder's size.
        aggregation_blocks: number of patch-aggregation blocks.
        aggregated_patches_from: encoder block whose patches they read, from 1; 0 for the block at
            3/4 of the encoder's depth (the 9th of 12).
        options: masking and supervision, see
            :func:`ddae_jax.methods.make_method.make_method`.

    Raises:
        ValueError: for the reasons given in :func:`beit`; if there is a decoder or no class token;
            or if ``aggregated_patches_from`` is not a block before the last one.

    Source: Peng et al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual
    Tokenizers", section 3.2.
    """
    patches_from = aggregated_patches_from or max(1, encoder.depth * 3 // 4)
    if decoder is not None or not encoder.use_class_token:
        raise ValueError(
            "beit2 aggregates patches in the class token of an encoder that sees all positions: it "
            "needs encoder_input='full' and use_class_token=True"
        )
    if not 1 <= patches_from < encoder.depth:
        raise ValueError(
            f"aggregated_patches_from={aggregated_patches_from}; it lies in "
            f"[1, {encoder.depth - 1}], or is 0 for 3/4 of the encoder's {encoder.depth} blocks"
        )
    aggregation = Aggregation(aggregation_blocks, patches_from)
    return beit(encoder, None, tokenizer=tokenizer, aggregation=aggregation, **options)


SPEC = MethodSpec(
    name="beit2",
    summary="BEiT's tokens, predicted a second time through the class token",
    build=beit2,
    papers=(*VQKD.papers, *BEIT.papers),
    recipe=BEIT.recipe,
    encoder_input="full",
    needs_class_token=True,
    check=check_tokenizer,
)

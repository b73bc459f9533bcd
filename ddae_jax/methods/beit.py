"""BEiT and BEiT v2: the visual tokens of hidden patches, which a given tokenizer tells."""

from jaxtyping import Array

from ddae_jax.methods.method import Method, Objective, make_method
from ddae_jax.methods.student import Aggregation
from ddae_jax.methods.targets import cross_entropy
from ddae_jax.methods.vqkd import TrainedTokenizer
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def beit(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    tokenizer: TrainedTokenizer,
    **options,
) -> Method:
    """Every supervised depth classifies hidden patches among the tokenizer's codes.

    With ``full`` input, block-wise masks of 40 %, relative positions, layer scale, keys without
    bias and the mode ``last`` this is the published BEiT, but for the tokenizer.

    Args:
        encoder: the vision transformer.
        decoder: None for ``full`` input.
        tokenizer: of the same images and patches.
        options: masking and supervision, see :func:`ddae_jax.methods.method.make_method`.

    Raises:
        ValueError: if the tokenizer is for other images or patches.

    Source: Bao et al. 2021, "BEiT: BERT Pre-Training of Image Transformers".
    """
    _check_same_patches(tokenizer.module.encoder, encoder)

    def targets(teacher, images):
        return {"tokens": tokenizer.tokens(teacher, images)[None]}

    def show(predictions, targets, teacher, images) -> dict[str, Array]:
        return {
            "tokens": targets["tokens"][0],
            "predicted_tokens": predictions["tokens"].argmax(axis=-1),
            "codes": teacher["codes"],
        }

    objectives = {"tokens": Objective(tokenizer.num_codes, cross_entropy)}
    return make_method(
        encoder, decoder, objectives, targets, frozen=tokenizer.frozen, show=show, **options
    )


def beit2(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    tokenizer: TrainedTokenizer,
    aggregation_blocks: int = 2,
    aggregated_patches_from: int = 0,
    **options,
) -> Method:
    """:func:`beit`, with a patch-aggregation head that classifies through the same head too.

    Its readout, of the last class token beside the patches of an earlier block, is one more depth
    to the supervision: ``aggregation_blocks`` beyond the encoder's.

    Args:
        encoder: the vision transformer; has a class token.
        decoder: None; only ``full`` input can be aggregated.
        tokenizer: of the same images and patches.
        aggregation_blocks: of the head.
        aggregated_patches_from: the block whose patches it takes; 0 for that at 3/4 of the
            encoder's depth (the 9th of 12).
        options: masking and supervision, see :func:`ddae_jax.methods.method.make_method`.

    Raises:
        ValueError: as :func:`beit` does, and if there is a decoder, no class token, or no such
            block before the last one.

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


def _check_same_patches(tokenizer: ViT, encoder: ViT) -> None:
    for what in ("image_size", "patch_size"):
        theirs, ours = getattr(tokenizer, what), getattr(encoder, what)
        if theirs != ours:
            raise ValueError(
                f"the tokenizer has {what}={theirs} and so a grid of {tokenizer.grid} patches, the "
                f"model {what}={ours} and {encoder.grid}: each patch needs one token. Train a "
                "tokenizer for this model, or change the model's"
            )

"""BEiT: predicts the visual tokens that a trained tokenizer assigns to hidden patches."""

from jaxtyping import Array

from ddae_jax.methods.make_method import make_method
from ddae_jax.methods.method import Method
from ddae_jax.methods.objectives import Objective
from ddae_jax.methods.spec import DECAYED_BY_BEIT, RELATIVE_POSITIONS, Keys, MethodSpec
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
    """Builds BEiT: every supervised depth classifies hidden patches among the tokenizer's codes.

    With ``full`` input, block-wise masks of 40 %, relative positions, layer scale, keys without
    bias and the mode ``last``, this is the published BEiT, except for the tokenizer.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        tokenizer: a trained tokenizer for images and patches of the encoder's size.
        options: masking and supervision, see
            :func:`ddae_jax.methods.make_method.make_method`.

    Raises:
        ValueError: if the tokenizer's image size or patch size differs from the encoder's.

    Source: Bao et al. 2021, "BEiT: BERT Pre-Training of Image Transformers".
    """
    _check_same_patches(tokenizer.module.encoder, encoder)

    def targets(teacher, images):
        return {"tokens": tokenizer.tokens(teacher, images)[None]}

    def visualize(predictions, targets, teacher, images) -> dict[str, Array]:
        return {
            "tokens": targets["tokens"][0],
            "predicted_tokens": predictions["tokens"].argmax(axis=-1),
            "codes": teacher["codes"],
        }

    objectives = {"tokens": Objective(tokenizer.num_codes, cross_entropy)}
    return make_method(
        encoder,
        decoder,
        objectives,
        targets,
        frozen=tokenizer.frozen,
        visualize_predictions=visualize,
        **options,
    )


def _check_same_patches(tokenizer: ViT, encoder: ViT) -> None:
    for name in ("image_size", "patch_size"):
        tokenizer_size, size = getattr(tokenizer, name), getattr(encoder, name)
        if tokenizer_size != size:
            raise ValueError(
                f"the tokenizer has {name}={tokenizer_size} and so a grid of {tokenizer.grid} "
                f"patches, the model {name}={size} and {encoder.grid}: each patch needs one token. "
                "Train a tokenizer for this model, or change the model's"
            )


def check_tokenizer(keys: Keys) -> None:
    """Raises ``ValueError`` if ``targets.tokenizer`` is empty, for methods that predict tokens."""
    if not keys["targets.tokenizer"]:
        raise ValueError(
            f"method={keys['method']!r} predicts the tokens of a trained tokenizer: give the "
            "workdir of a run with method='vqkd', or the .pth of one that was published, or a "
            "folder with its model.safetensors, as targets.tokenizer"
        )


SPEC = MethodSpec(
    name="beit",
    summary="the visual tokens of hidden patches, as a given tokenizer has them",
    build=beit,
    papers=(
        "Bao, Dong, Piao, Wei 2022. *BEiT: BERT Pre-Training of Image Transformers*. ICLR. "
        "arXiv:2106.08254",
    ),
    recipe={
        "model.encoder_input": "full",
        **RELATIVE_POSITIONS,
        "mask.kind": "block",
        "mask.ratio": 0.4,
        "optimizer.decay_also": DECAYED_BY_BEIT,
    },
    check=check_tokenizer,
)

"""The rows of the table of keys that only pretraining has: method, mask, targets, supervision."""

import math
from collections.abc import Iterable

from ddae_jax.config.schema import ABOVE_0, MANY, Key
from ddae_jax.interop.preprocessing import POOLS
from ddae_jax.methods import summaries


def _methods() -> Iterable[str]:
    return tuple(summaries())


PRETRAINING = {
    "method": Key(
        "ddae",
        "what is predicted (docs/methods.md); vqkd trains a tokenizer for beit and beit2",
        choices=_methods,
    ),
    "init_decoder": Key(
        False, "whether the decoder and the head of an MAE in init_from are taken too"
    ),
    "model.encoder_input": Key(
        "visible",
        "what the encoder sees: visible patches, which a decoder completes, or all patches, with "
        "mask tokens for hidden ones",
        choices=("full", "visible"),
    ),
    "model.frozen_dtype": Key(
        "float32",
        "type in which a given tokenizer or teacher computes; as_trained takes that of its own run",
        choices=("float32", "bfloat16", "as_trained"),
    ),
    "data.augment_in": Key(
        "workers",
        "where images are cropped: as they are decoded, or on the device, for images of one size",
        choices=("workers", "device"),
    ),
    "decoder.width": Key(
        512,
        "width of the decoder, values a token; a multiple of decoder.num_heads, and of 4",
        within=(1, 2**16),
    ),
    "decoder.depth": Key(4, "blocks of the decoder", within=(0, 1000)),
    "decoder.num_heads": Key(16, "attention heads of the decoder", within=(1, 2**16)),
    "decoder.kind": Key(
        "cross",
        "self: all places attend to all, as in MAE; cross: hidden places attend to visible "
        "features alone, as in Fu et al. 2024",
        choices=("self", "cross"),
    ),
    "decoder.intermediate_blocks": Key(
        0,
        "blocks of the decoder, the first ones, that decode depths before the last; 0 for all",
        within=(0, 1000),
    ),
    "decoder.intermediate_share": Key(
        1.0,
        "share of the hidden patches that depths before the last decode, drawn anew each step",
        within=(ABOVE_0, 1),
    ),
    "decoder.is_shared": Key(
        True, "whether all depths have the same decoder; False gives each its own, for comparison"
    ),
    "mask.kind": Key(
        "random",
        "what is hidden: random patches, or blocks of patches as in BEiT",
        choices=("random", "block"),
    ),
    "mask.ratio": Key(  # see masking.num_masked_patches
        0.75, "share of the patches that is hidden, between 0 and 1"
    ),
    "mask.unit": Key(
        1, "side of the squares that a random mask hides as a whole, patches", within=(1, 2**14)
    ),
    "mask.min_block_share": Key(
        0.0,
        "least share of the hidden patches that one block hides; 0 for 16/196 of all patches, as "
        "in BEiT",
        within=(0, 1),
    ),
    "targets.normalize_pixels": Key(
        True, "whether the pixels of a patch are normalised by its own mean and deviation"
    ),
    "targets.pixel_weight": Key(
        1.0,
        "weight (lambda) of the pixels in the loss of ddae; 0 leaves them out",
        within=(0, 10**6),
    ),
    "targets.pixel_fade": Key(
        0.5,
        "share of the pixels' weight that goes as the weight of features rises (BootMAE)",
        within=(0, 1),
    ),
    "targets.feature_weight": Key(
        1.0,
        "weight (lambda) of the teacher's features in the loss of ddae; 0 leaves them out",
        within=(0, 10**6),
    ),
    "targets.feature_start": Key(
        0.4, "share of the run before features have any weight", within=(0, 1)
    ),
    "targets.feature_warmup": Key(
        0.1,
        "share of the run over which the weight of features rises, after targets.feature_start",
        within=(0, 1),
    ),
    "targets.feature_normalization": Key(
        "position",
        "what features are standardised over: a patch's values, the patches of a batch, the batch "
        "at each position, or the patches of an image",
        choices=("layer", "batch", "position", "instance"),
    ),
    "targets.feature_places": Key(
        "hidden",
        "patches whose features are learned: hidden ones as predicted, visible ones as encoded, or "
        "both",
        choices=("hidden", "visible", "both"),
    ),
    "targets.normalize_predictions": Key(
        False, "whether predicted features are normalised as their targets are"
    ),
    "targets.hog_cell": Key(
        8,
        "side of the cells of MaskFeat's gradient histograms, pixels; divides model.patch_size",
        within=(1, 2**14),
    ),
    "targets.hog_form": Key(
        "sobel",
        "gradients of MaskFeat: those of its authors, or the differences of scikit-image",
        choices=("differences", "sobel"),  # methods.hog.FORMS
    ),
    "targets.tokenizer": Key(
        "",
        "tokenizer whose tokens beit and beit2 predict: workdir of a run of vqkd, or a published "
        "one's file",
        example="runs/tokenizer",
        is_free=True,
        names_folder=True,
    ),
    "targets.aggregation_blocks": Key(
        2, "blocks of BEiT v2's patch-aggregation head", within=(1, 1000)
    ),
    "targets.aggregated_patches_from": Key(
        0,
        "block whose patches BEiT v2's head aggregates; 0 for that at 3/4 of the encoder",
        within=(0, 1000),
    ),
    "tokenizer.teacher": Key(
        "",
        "encoder whose features vqkd learns from: workdir of a run, or a folder with "
        "model.safetensors",
        example="runs/teacher",
        is_free=True,
        names_folder=True,
    ),
    "tokenizer.num_codes": Key(8192, "codes of the codebook", within=(2, 2**20)),
    "tokenizer.code_width": Key(32, "values of a code", within=(1, 2**12)),
    "tokenizer.decoder_depth": Key(3, "blocks of the tokenizer's decoder", within=(0, 1000)),
    "tokenizer.decay": Key(0.99, "decay of the codebook's moving averages", within=(0, 0.999999)),
    "tokenizer.commitment": Key(
        1.0, "weight of the loss that draws the encoder's vectors to their codes", within=(0, 10**6)
    ),
    "tokenizer.revive_below": Key(
        0.1,
        "share of the mean usage below which a code is replaced by a vector of the batch; 0 "
        "replaces none",
        within=(0, 1),
    ),
    "tokenizer.min_perplexity_share": Key(
        0.05,
        "perplexity of the codebook, as a share of its codes, below which the log warns; 0 for "
        "never",
        within=(0, 1),
        is_free=True,
    ),
    "supervision.mode": Key(
        "deep_dynamic",
        "what is supervised: the last depth, several, or several weighed by distance and a "
        "learned beta",
        choices=("last", "deep", "deep_dynamic"),  # methods.supervision.MODES
    ),
    "supervision.depths": Key(  # see methods.supervision.supervised_depths
        (),
        "blocks that are supervised, ascending, the last one included; empty for L/2, 2L/3, 5L/6, "
        "L of L blocks",
        item=int,
        example=(6, 12),
    ),
    "supervision.depth_weights": Key(
        (),
        "weight (alpha) of each supervised depth; empty for 1 each",
        within=(0, 10**6),
        example=(0.5, 1.0),
    ),
    "supervision.weighting": Key(
        "power",
        "weight of a patch by its distance to visible ones: distance ** beta; the others are for "
        "comparison",
        choices=("power", "normalised", "neighbourhood"),
    ),
    "supervision.normalize_intermediate": Key(
        True, "whether depths before the last pass the encoder's final norm"
    ),
    "supervision.beta_init": Key(
        -0.5,
        "where each beta starts; below 0, patches near visible ones count for more",
        within=(-10, 10),  # no distance ** beta leaves float32
    ),
    "supervision.beta_gradient": Key(
        "relative",
        "what a beta descends: the logarithm of its loss, or the loss itself",
        choices=("relative", "absolute"),
    ),
    "supervision.beta_step": Key(
        2.0, "distance that a beta moves in a whole run while its gradient is -1", within=(0, 10**6)
    ),
    "supervision.beta_range": Key(
        (-2.0, 2.0),
        "least and largest value of a beta",
        within=(-10, 10),
        length=2,
        ascends=True,
    ),
    "teacher.momentum_start": Key(
        0.996,
        "momentum of the teacher at the start of the run, with teacher.half_life_epochs=0",
        within=(0, 1),
        not_above="teacher.momentum_end",
    ),
    "teacher.momentum_end": Key(
        1.0,
        "momentum of the teacher at the end of the run, with teacher.half_life_epochs=0",
        within=(0, 1),
    ),
    "teacher.half_life_epochs": Key(
        100.0,
        "epochs in which the teacher forgets half of what it holds; 0 for teacher.momentum_start "
        "and teacher.momentum_end instead",
        within=(0, 10**6),
    ),
    "teacher.half_life_start_epochs": Key(
        0.5,
        "the teacher's half-life at the start of the run, epochs; 0 for teacher.half_life_epochs "
        "throughout",
        within=(0, 10**6),
    ),
    "teacher.hold": Key(
        0.4,
        "share of the run for which the teacher's half-life stays as at the start",
        within=(0, 1),
    ),
    "teacher.min_half_lives": Key(
        8.0,
        "fewest half-lives within teacher.hold: in a short run the first half-life is shortened "
        "to that; 0 for no limit",
        within=(0, 1000),
    ),
    "teacher.warmup": Key(
        0.05,
        "share of the run, after teacher.hold, over which the half-life grows to "
        "teacher.half_life_epochs",
        within=(0, 1),
    ),
    "teacher.copy_every_epochs": Key(
        0.0,
        "epochs from one copy of the student to the next, which take the place of a moving "
        "average; 0 for none",
        within=(0, 10**6),
    ),
    "evaluation.knn_every_epochs": Key(
        0.0,
        "epochs from one k-NN evaluation during training to the next; 0 for never",
        within=(0, math.inf),
        is_free=True,
    ),
    "evaluation.encoder": Key(
        "student",
        "encoder that is evaluated: the student, or its momentum encoder, the teacher",
        choices=("student", "teacher"),
        is_free=True,
    ),
    "evaluation.depth": Key(0, "block whose features are evaluated; 0 for the last", is_free=True),
    "evaluation.pool": Key(
        "mean",
        "how features become one vector: mean of the normalised patches, class token, or "
        "normalised mean of the patches",
        choices=POOLS,
        is_free=True,
    ),
}

NEIGHBOURS = {
    "evaluation.k": Key(20, "neighbours of k-NN", within=(1, MANY), is_free=True),
    "evaluation.temperature": Key(
        0.07,
        "temperature of the votes of k-NN; 0 for votes that count alike",
        within=(0, 1000),
        is_free=True,
    ),
    "evaluation.max_examples": Key(
        0,
        "images of each of the two sets for k-NN during training; 0 for all",
        within=(0, MANY),
        is_free=True,
    ),
}
"""Of k-NN evaluation; these keys follow those of how images are shown."""

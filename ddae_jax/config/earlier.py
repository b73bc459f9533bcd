"""Earlier versions of the config: defaults that have changed since, and keys by other names.

A run stores its config, so what was stored years ago is read by the defaults that it began with.
"""

import types
from collections.abc import Mapping
from typing import Any

DEFAULTS_VERSION = 6
"""The version of today's defaults. It rises with every release that changes one or adds a key.

A run keeps the version that it began with, and so is continued as it began.
"""

# What was done before these keys: Pillow's own limit, 16 bits by their range, nothing skipped.
_ALL_JOBS_4 = {"data.max_pixels": 0, "data.max_value": 65535.0, "optimizer.skip_nonfinite": 0}
# Weights were read by what their arrays tell, and nothing but kernels was decayed.
_ALL_JOBS_5 = {
    "optimizer.decay_also": "",
    "init_heads": 0,
    "init_activation": "",
    "init_part": "",
}
_WHOLE_IMAGES_5 = {  # of those jobs that evaluate images as a whole
    "evaluation.crop_share": 0.0,
    "evaluation.crop_mode": "center",
    "evaluation.interpolation": "bicubic",
}

EARLIER_DEFAULTS: Mapping[int, Mapping[str, Mapping[str, Any]]] = types.MappingProxyType(
    {
        1: {
            "pretrain": {
                "model.encoder_input": "full",
                "decoder.kind": "self",
                "decoder.intermediate_share": 1.0,
                "decoder.is_shared": True,
                "targets.pixel_fade": 0.0,
                "targets.feature_start": 0.0,
                "targets.feature_warmup": 0.0,
                "targets.feature_normalization": "layer",
                "targets.feature_places": "hidden",
                "targets.normalize_predictions": False,
                "supervision.normalize_intermediate": True,
                "supervision.beta_step": 5.0,
                "teacher.half_life_epochs": 0.0,
                "teacher.half_life_start_epochs": 0.0,
                "teacher.warmup": 0.25,
                "teacher.copy_every_epochs": 0.0,
            }
        },
        2: {
            "pretrain": {
                "supervision.beta_gradient": "absolute",
                "teacher.hold": 0.0,
            }
        },
        3: {
            "pretrain": {
                "decoder.depth": 8,
                "decoder.intermediate_share": 0.25,
                "targets.pixel_fade": 1.0,
                "targets.feature_start": 0.25,
                "targets.feature_warmup": 0.25,
                "targets.feature_normalization": "batch",
                "teacher.half_life_epochs": 25.0,
                "teacher.hold": 0.25,
                "teacher.warmup": 0.25,
            }
        },
        4: {
            "pretrain": {
                "supervision.beta_step": 1.0,
                "teacher.min_half_lives": 0.0,
                **_ALL_JOBS_4,
            },
            "finetune": {"model.image_size": (224, 224), **_ALL_JOBS_4},
            "segment": _ALL_JOBS_4,
        },
        5: {
            "pretrain": {
                "init_decoder": False,
                "mask.min_block_share": 0.0,
                "model.frozen_dtype": "as_trained",
                "targets.hog_form": "differences",
                **_ALL_JOBS_5,
                **_WHOLE_IMAGES_5,
            },
            "finetune": {**_ALL_JOBS_5, **_WHOLE_IMAGES_5},
            "segment": _ALL_JOBS_5,
        },
    }
)
"""By version and job: what keys had as their defaults that have others, or are new, in the next.

For a new key, what was done before there was a choice. Stored configs that lack a key have this.
"""

RENAMED = {"evaluation.max_train_examples": "evaluation.max_examples"}
"""Keys that stored configs may have by an older name, and what they are called now."""

RETIRED = frozenset({"tokenizer.min_perplexity"})
"""Keys that stored configs may have, and that are no more; none of them changed what is learned."""

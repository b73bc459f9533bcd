"""What the dtype of a frozen tokenizer or teacher changes, and what it costs.

    python -m benchmarks.frozen_dtype [REPEATS]

1. How many tokens change where a ViT-B/16 tokenizer computes in bfloat16: untrained, with 8192
   random codes, on crops of the two photographs that come with scikit-learn.
2. Which share of a training step's operations, of ViT-B/16, is the tokenizer's or the teacher's
   (:mod:`ddae_jax.aot.flops`): it is the share that computes in another dtype.
3. Seconds of a step of ViT-Ti/16 on this machine, the student in bfloat16, what is frozen in
   either dtype, in turn.

Prints what it measures, and stores it as benchmarks/results/frozen_dtype.json.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from sklearn.datasets import load_sample_images

from benchmarks.environment import store, time_in_turn
from benchmarks.supervision_cost import BATCH, runnable
from ddae_jax.aot.flops import model_flops
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import build_normalize
from ddae_jax.builders.tokenizers import load_tokenizer
from ddae_jax.config import pretrain_defaults, recipes
from ddae_jax.methods.task import TrainTask
from ddae_jax.methods.vqkd import TrainedTokenizer
from ddae_jax.models.codebook import unit_vectors

NUM_CODES = 8192
DTYPES = ("float32", "bfloat16")


def main(repeats: str = "5") -> None:
    """Counts, times, stores and prints."""
    result = {
        "changed_tokens": share_of_changed_tokens(),
        "frozen_share_of_operations": {
            method: share_of_operations(method) for method in ("beit", "beit2", "vqkd")
        },
        "batch": BATCH,
        "seconds_of_a_step": time_in_turn(
            {
                dtype: runnable("beit,last", "Ti", dtype="bfloat16", frozen_dtype=dtype)
                for dtype in DTYPES
            },
            int(repeats),
        ),
    }
    print(result)
    store("frozen_dtype", result)


def share_of_changed_tokens() -> float:
    """Returns the share of patches whose token in bfloat16 differs from that in float32."""
    tokens = []
    for dtype in DTYPES:
        tokenizer, frozen = tokenizer_of(dtype)
        tokens.append(np.asarray(jax.jit(tokenizer.tokens)(frozen, photographs())))
    return float((tokens[0] != tokens[1]).mean())


def tokenizer_of(dtype: str) -> tuple[TrainedTokenizer, PyTree]:
    """One of ViT-B/16 in a dtype, the same untrained parameters, and random codes."""
    config = pretrain_defaults()
    config.model.frozen_dtype = dtype
    tokenizer = load_tokenizer("", config, stand_in_missing=True)
    images = jnp.zeros((1, *config.model.image_size, 3))
    params = jax.jit(tokenizer.module.init)(jax.random.key(0), images)["params"]
    codes = jax.random.normal(jax.random.key(1), (NUM_CODES, config.tokenizer.code_width))
    return tokenizer, {"params": params, "codes": unit_vectors(codes)}


def photographs() -> jax.Array:
    """Eight crops of 224 x 224 pixels, normalised."""
    photos = load_sample_images().images  # of 427 x 640 pixels
    crops = [p[y : y + 224, x : x + 224] for p in photos for y in (0, 200) for x in (0, 400)]
    return build_normalize(pretrain_defaults())(jnp.asarray(np.stack(crops)))


def share_of_operations(name: str) -> float:
    """Returns the tokenizer's or the teacher's share of a step's operations."""
    method = method_of(name)
    params = jax.eval_shape(lambda key: method.init(key, 3), jax.random.key(0))
    teacher = jax.eval_shape(method.init_teacher, params, method.frozen)
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)

    def told(_, teacher, images):
        if name == "vqkd":
            encoder = {"params": method.frozen_part(teacher)}
            return method.teacher.module.apply(encoder, images).patches
        return method.targets(teacher, images)["tokens"]

    def loss(params, teacher, images):
        return method.loss(params, teacher, images, jax.random.key(0))

    frozen = model_flops(told, {}, teacher, images)
    return frozen / model_flops(loss, params, teacher, images)


def method_of(name: str) -> TrainTask:
    """The published one of ViT-B/16, with shapes for what it would be given."""
    config = pretrain_defaults()
    if name == "vqkd":
        config.method, config.model.encoder_input = "vqkd", "full"
    else:
        recipes.use_recipe(config, f"{name},last")
    return build_method(config, stand_in_missing=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Memory and time of UperNet on a ViT-B/16, for one image of 512 x 512, on a CPU.

    python -m benchmarks.segmentation_memory

The peak is that of the whole process. Writes benchmarks/results/segmentation_memory.json.
"""

import resource
import time

import jax
import jax.numpy as jnp

from benchmarks.environment import spread, store
from ddae_jax.models.upernet import Segmenter
from ddae_jax.models.vit import SIZES, ViT

SIDE, NUM_CLASSES, HEAD_WIDTH, REPEATS = 512, 150, 768, 3


def main() -> None:
    """Predicts an image a few times, and stores what it took."""
    encoder = ViT((SIDE, SIDE), 16, positions="learned", **SIZES["B"]._asdict())
    network = Segmenter(encoder, NUM_CLASSES, head_width=HEAD_WIDTH)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    predict = jax.jit(lambda variables, images: network.apply(variables, images)[0])
    compiled = predict.lower(variables, images).compile()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        compiled(variables, images).block_until_ready()
        seconds.append(time.perf_counter() - began)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "image": [SIDE, SIDE],
        "encoder": "ViT-B/16",
        "num_classes": NUM_CLASSES,
        "head_width": HEAD_WIDTH,
        "dtype": "float32",
        "million_parameters": parameters / 1e6,
        "peak_gib": peak_gib,
        "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "seconds": spread(seconds),
    }
    store("segmentation_memory", result)
    print(result)


if __name__ == "__main__":
    main()

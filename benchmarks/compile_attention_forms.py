"""What each form of attention costs on a TPU that is not there, by its compiler's count.

    python -m benchmarks.compile_attention_forms

Compiles ViT-B's attention with its norm and residual, forward and backward, 64 images of 197 tokens
a chip, for a v5p. Needs libtpu. Writes benchmarks/results/compile_attention_forms.json.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.environment import store
from ddae_jax.forecast.compiled import known_seconds
from ddae_jax.forecast.topology import topology_devices
from ddae_jax.models.attention import SelfAttention
from ddae_jax.models.transformer import layer_norm
from ddae_jax.platform import compiled_for

TOPOLOGY, BATCH, TOKENS, WIDTH, HEADS = "v5p:1x1x1", 64, 197, 768, 12
FORMS = ("dot_product", "einsum")


def main() -> None:
    """Compiles each form and stores what the compiler counts, for one image."""
    rows = {}
    for form in FORMS:
        costs = costs_of(form)
        rows[form] = {
            "gflop": costs["flops"] / BATCH / 1e9,
            "megabytes": costs["bytes accessed"] / BATCH / 1e6,
            "optimal_us": known_seconds(costs["optimal_seconds"]) / BATCH * 1e6,
        }
        print(form, {name: round(value, 2) for name, value in rows[form].items()}, flush=True)
    store(
        "compile_attention_forms",
        {
            "topology": TOPOLOGY,
            "batch": BATCH,
            "tokens": TOKENS,
            "width": WIDTH,
            "of_an_image": rows,
        },
        ("libtpu",),
    )


def costs_of(form: str) -> dict[str, float]:
    """The compiler's count for a forward and a backward pass."""
    attention = SelfAttention(HEADS, form, dtype=jnp.bfloat16)
    norm = layer_norm(jnp.bfloat16)
    device = NamedSharding(Mesh(topology_devices(TOPOLOGY), ("data",)), PartitionSpec())
    tokens = jax.ShapeDtypeStruct((BATCH, TOKENS, WIDTH), jnp.bfloat16, sharding=device)

    def init(tokens):
        return [module.init(jax.random.key(0), tokens) for module in (norm, attention)]

    def gradients(params, tokens, cotangents):
        def branch(params, tokens):
            normed = norm.apply(params[0], tokens)
            return tokens + attention.apply(params[1], normed)

        return jax.vjp(branch, params, tokens)[1](cotangents)

    with compiled_for("tpu"):
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            jax.eval_shape(init, tokens),
        )
        lowered = jax.jit(gradients).lower(params, tokens, tokens)
    return lowered.compile().cost_analysis()


if __name__ == "__main__":
    main()

"""What each form of attention costs on a TPU and a GPU that are not there, as compiled for them.

    python -m benchmarks.compile_attention_forms

Compiles ViT-B's attention with its norm and residual, forward and backward, 64 images of 197 tokens
a chip, for a v5p and for an H100. Needs libtpu and jax[cuda12]. Tells of an image operations and
memory traffic, by the compiler (v5p) or as :func:`gpu_work` reads them off the program (H100), and
what is held beside arguments and results. Writes benchmarks/results/compile_attention_forms.json.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.environment import store
from ddae_jax.aot.compiled_step import aot_options, known_seconds
from ddae_jax.aot.gpu_cost import gpu_work
from ddae_jax.aot.topology import topology_devices
from ddae_jax.models.attention import SelfAttention
from ddae_jax.models.backend import compiled_for
from ddae_jax.models.transformer import layer_norm

BATCH, TOKENS, WIDTH, HEADS = 64, 197, 768, 12
FORMS = {
    ("v5p:1x1x1", "bfloat16"): ("dot_product", "einsum"),
    ("h100:1", "bfloat16"): ("dot_product", "einsum", "cudnn"),
    ("h100:1", "float32"): ("dot_product", "einsum"),
}


def main() -> None:
    """Compiles each form and stores what it costs."""
    jax.config.update("jax_platforms", "cpu")
    rows = {}
    for (topology, dtype), forms in FORMS.items():
        of_forms = {form: costs_of(topology, jnp.dtype(dtype), form) for form in forms}
        rows[f"{topology}, {dtype}"] = of_forms
        for form, costs in of_forms.items():
            print(topology, dtype, form, {name: round(value, 2) for name, value in costs.items()})
    measured = {"batch": BATCH, "tokens": TOKENS, "width": WIDTH, "of_an_image": rows}
    store("compile_attention_forms", measured, ("libtpu",))


def costs_of(topology: str, dtype: jnp.dtype, form: str) -> dict[str, float]:
    """Returns the cost of a forward and a backward pass for one image."""
    mesh = Mesh(topology_devices(topology), ("data",))
    lowered = lower(form, dtype, mesh)
    compiled = lowered.compile(aot_options(mesh))
    if mesh.devices.flat[0].platform == "gpu":
        (flops, traffic), seconds = gpu_work(compiled.as_text()), None
    else:
        costs = compiled.cost_analysis()
        flops, traffic = costs["flops"], costs["bytes accessed"]
        seconds = known_seconds(costs["optimal_seconds"])
    return {
        "gflop": flops / BATCH / 1e9,
        "megabytes": traffic / BATCH / 1e6,
        "held_megabytes": compiled.memory_analysis().temp_size_in_bytes / BATCH / 1e6,
        **({} if seconds is None else {"optimal_us": seconds / BATCH * 1e6}),
    }


def lower(form: str, dtype: jnp.dtype, mesh: Mesh) -> jax.stages.Lowered:
    """The gradients of the branch, before the compiler sees them."""
    attention = SelfAttention(HEADS, form, dtype=dtype)
    norm = layer_norm(dtype)
    device = NamedSharding(mesh, PartitionSpec())
    tokens = jax.ShapeDtypeStruct((BATCH, TOKENS, WIDTH), dtype, sharding=device)

    def init(tokens):
        return [module.init(jax.random.key(0), tokens) for module in (norm, attention)]

    def gradients(params, tokens, cotangents):
        def branch(params, tokens):
            normed = norm.apply(params[0], tokens)
            return tokens + attention.apply(params[1], normed)

        return jax.vjp(branch, params, tokens)[1](cotangents)

    with compiled_for(mesh.devices.flat[0].platform):
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            jax.eval_shape(init, tokens),
        )
        return jax.jit(gradients).lower(params, tokens, tokens)


if __name__ == "__main__":
    main()

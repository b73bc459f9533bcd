"""Why layers are written as they are: gradient times of both forms, on a CPU.

    python -m benchmarks.cpu_layers [repeats]

An MLP of ViT shape, 128 images of 65 tokens, width 96, whose dense layers flatten their input, and
whose GELU is written with erf; the layer that doubles a map of 16 x 16 places of width 96, 8
images; and the products of MAE's ViT-B/16, 8 images, encoder and decoder, and of a ViT-Ti on CIFAR,
64 images. Gradients by input and parameters. Prints tables and writes
benchmarks/results/cpu_layers.json.
"""

import sys
from collections.abc import Callable
from time import perf_counter, process_time

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.environment import store, time_in_turn
from ddae_jax.jobs import devices
from ddae_jax.models.dense import Dense, matrix_product
from ddae_jax.models.transformer import gelu
from ddae_jax.models.upernet import Doubling

BATCH, TOKENS, WIDTH = 128, 65, 96
MAP = (8, 16, 16, WIDTH)
MLPS = {
    "batched, jax.nn.gelu": (nn.Dense, lambda x: nn.gelu(x, approximate=False)),
    "flattened, jax.nn.gelu": (Dense, lambda x: nn.gelu(x, approximate=False)),
    "batched, erf": (nn.Dense, gelu),
    "flattened, erf": (Dense, gelu),
}


PRODUCTS = [
    (8 * 50, 768, 768),
    (8 * 50, 768, 2304),
    (8 * 50, 768, 3072),
    (8 * 50, 3072, 768),
    (8 * 197, 512, 512),
    (8 * 197, 512, 1536),
    (8 * 197, 512, 2048),
    (8 * 197, 2048, 512),
    (64 * 17, 192, 768),
    (64 * 17, 768, 192),
]
"""Rows, width and features."""

DOUBLINGS = {
    "nn.ConvTranspose": nn.ConvTranspose(WIDTH, (2, 2), (2, 2)),
    "one product": Doubling(WIDTH),
}


def main(repeats: int = 15) -> None:
    """Measures and stores."""
    devices.start_devices(is_distributed=False)  # memory is kept, as in a job
    mlps = {name: _gradient(_mlp(*form), (BATCH, TOKENS, WIDTH)) for name, form in MLPS.items()}
    doublings = {name: _gradient(layer, MAP) for name, layer in DOUBLINGS.items()}
    measured = {
        "shape": [BATCH, TOKENS, WIDTH],
        "seconds": _compared(mlps, repeats),
        "map": MAP,
        "seconds_of_doubling": _compared(doublings, repeats),
        "processor_seconds_of_product": {
            " x ".join(map(str, shape)): _compared(_products(*shape), repeats, process_time)
            for shape in PRODUCTS
        },
    }
    print(store("cpu_layers", measured))


def _compared(
    runs: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float] = perf_counter
) -> dict[str, dict]:
    """Prints and returns seconds of each run, and how many times as fast as the first it is."""
    seconds = time_in_turn(runs, repeats, clock)
    first = next(iter(seconds.values()))["median"]
    for name, times in seconds.items():
        times["speedup"] = first / times["median"]
        print(
            f"{name:24s} {1e3 * times['median']:7.1f} ms "
            f"[{1e3 * times['min']:.1f}, {1e3 * times['max']:.1f}]  {times['speedup']:.2f}x"
        )
    return seconds


def _mlp(layer: type[nn.Module], activation: Callable[[Array], Array]) -> nn.Module:
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layer(WIDTH)(activation(layer(4 * WIDTH)(x)))

    return Mlp()


def _products(rows: int, width: int, features: int) -> dict[str, Callable[[], None]]:
    """A product and both gradients, as JAX differentiates it and as :class:`Dense` does."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (rows, width), (width, features), (rows, features)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

    def run(product: Callable[[Array, Array], Array]) -> Callable[[], None]:
        def all_three(inputs: Array, kernel: Array, gradient: Array) -> tuple[Array, ...]:
            outputs, backward = jax.vjp(product, inputs, kernel)
            return outputs, *backward(gradient)

        compiled = jax.jit(all_three)
        return lambda: jax.block_until_ready(compiled(*arrays))

    print(f"{rows} x {width} x {features}")
    return {"as differentiated": run(jnp.matmul), "factor copied first": run(matrix_product)}


def _gradient(module: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    x = jax.random.normal(jax.random.key(0), shape)
    params = module.init(jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda p, x: (module.apply(p, x) ** 2).sum(), argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(params, x))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

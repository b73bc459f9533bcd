"""Why dense layers flatten their input, and GELU is written with erf: gradient times of both forms.

    python -m benchmarks.cpu_layers [repeats]

An MLP of ViT shape, 128 images of 65 tokens, width 96; its gradient by input and kernels. Prints a
table and writes benchmarks/results/cpu_layers.json.
"""

import sys

import flax.linen as nn
import jax

from benchmarks.environment import store, time_in_turn
from ddae_jax.models.dense import Dense
from ddae_jax.models.transformer import gelu

BATCH, TOKENS, WIDTH = 128, 65, 96
FORMS = {
    "batched, jax.nn.gelu": (nn.Dense, lambda x: nn.gelu(x, approximate=False)),
    "flattened, jax.nn.gelu": (Dense, lambda x: nn.gelu(x, approximate=False)),
    "batched, erf": (nn.Dense, gelu),
    "flattened, erf": (Dense, gelu),
}


def main(repeats: int = 15) -> None:
    """Measures and stores."""
    runs = {name: _gradient(*form) for name, form in FORMS.items()}
    seconds = time_in_turn(runs, repeats)
    first = seconds["batched, jax.nn.gelu"]["median"]
    for name, times in seconds.items():
        times["speedup"] = first / times["median"]
        print(
            f"{name:24s} {1e3 * times['median']:7.1f} ms "
            f"[{1e3 * times['min']:.1f}, {1e3 * times['max']:.1f}]  {times['speedup']:.2f}x"
        )
    print(store("cpu_layers", {"shape": [BATCH, TOKENS, WIDTH], "seconds": seconds}))


def _gradient(layer, activation):
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layer(WIDTH)(activation(layer(4 * WIDTH)(x)))

    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, WIDTH))
    params = Mlp().init(jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda p, x: (Mlp().apply(p, x) ** 2).sum(), argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(params, x))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

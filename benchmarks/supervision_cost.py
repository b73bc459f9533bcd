"""What deep dynamic supervision adds to a training step of each method.

    python -m benchmarks.supervision_cost [REPEATS]

1. Operations of a whole step (student, teacher or tokenizer, loss, gradient, optimizer) of ViT-B/16
   at 224 pixels, as XLA counts them: they need no such machine.
2. Seconds of a step of ViT-Ti/16 at 224 pixels on this machine, ``last`` and ``deep_dynamic`` in
   turn.

Writes benchmarks/results/supervision_cost.json and prints both, as ratios to ``last``.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.environment import store, time_in_turn
from ddae_jax import build, recipes
from ddae_jax.config import pretrain_defaults
from ddae_jax.methods import METHODS
from ddae_jax.methods.vqkd import TrainedTokenizer
from ddae_jax.networks import build_tokenizer
from ddae_jax.training.state import init_state
from ddae_jax.training.step import make_train_step

BATCH = 8
CHEAPER = "mae,deep_dynamic, 1 of 8 decoder blocks at intermediate depths"


def main(repeats: str = "5") -> None:
    """Counts, times, stores and prints."""
    cells = [f"{method},{mode}" for method in METHODS for mode in ("last", "deep_dynamic")]
    cells.insert(cells.index("mae,deep_dynamic") + 1, CHEAPER)
    counted = {cell: operations(cell) for cell in cells}
    timed = {}
    for method in METHODS:
        own = [cell for cell in cells if cell.split(",")[0] == method]
        timed |= time_in_turn({cell: runnable(cell) for cell in own}, int(repeats))
        for cell in own:
            last = f"{method},last"
            more = counted[cell] / counted[last]
            seconds = timed[cell]["median"] / timed[last]["median"]
            print(f"{cell:65s} operations {more:5.2f}x  seconds {seconds:5.2f}x", flush=True)
    store(
        "supervision_cost",
        {
            "operations_of_a_step": {"model": "B", "batch": BATCH, **counted},
            "seconds_of_a_step": {"model": "Ti", "batch": BATCH, **timed},
        },
    )


def operations(cell: str) -> float:
    """Floating-point operations of a step of ViT-B, before XLA optimises it."""
    step, initialize, frozen = step_of(cell, "B")
    state = jax.eval_shape(initialize, jax.random.key(0), frozen=frozen)
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.uint8)
    return step.lower(state, images).cost_analysis()["flops"]


def runnable(cell: str) -> Callable[[], None]:
    """Takes a step of ViT-Ti and waits for it."""
    step, initialize, frozen = step_of(cell, "Ti")
    held = {"state": jax.jit(initialize)(jax.random.key(0), frozen=frozen)}
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)

    def run() -> None:
        held["state"], metrics = step(held["state"], images)
        jax.block_until_ready(metrics)

    return run


def step_of(cell: str, size: str) -> tuple[Callable, Callable, PyTree]:
    """The step of a cell, what makes its first state, and what is frozen in that."""
    config = pretrain_defaults()
    recipes.use_recipe(config, ",".join(cell.split(",")[:2]))
    config.model.size = size
    config.model.dtype = "float32"
    if size == "Ti":  # a decoder as small against the encoder as ViT-B's
        config.decoder.width, config.decoder.num_heads = 128, 4
    if cell == CHEAPER:
        config.decoder.intermediate_blocks = 1
    build.load_tokenizer = untrained_tokenizer
    method = build.build_method(config)
    schedule = build.Schedule(steps_per_epoch=100, total_steps=1000)
    optimizer, learning_rate, momentum = build.build_optimizer(config, schedule)
    step = make_train_step(
        method,
        optimizer,
        build.build_prepare_images(config),
        learning_rate=learning_rate,
        momentum=momentum,
        seed=0,
    )
    initialize = functools.partial(
        init_state, method=method, optimizer=optimizer, channels=config.data.channels
    )
    return jax.jit(step, donate_argnums=0), initialize, method.frozen


def untrained_tokenizer(path: str, config: ConfigDict) -> TrainedTokenizer:
    """In the place of a trained one, which costs as much; of ViT-B, its shapes alone."""
    module = build_tokenizer(config, teacher_width=1)
    codes = (config.tokenizer.num_codes, config.tokenizer.code_width)

    def frozen(key):
        images = jnp.zeros((1, *module.encoder.image_size, config.data.channels))
        params = module.init(key, images)["params"]
        return {"params": params, "codes": jax.random.normal(key, codes)}

    make = (
        jax.jit(frozen) if config.model.size == "Ti" else functools.partial(jax.eval_shape, frozen)
    )
    return TrainedTokenizer(module, make(jax.random.key(1)))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What deep dynamic supervision adds to a training step of each method.

    python -m benchmarks.supervision_cost [REPEATS [METHOD:SIZE ...]]

1. Operations of a whole step (student, teacher or tokenizer, loss, gradient, optimizer) of ViT-B/16
   at 224 pixels, as XLA counts them: they need no such machine.
2. Seconds of a step at 224 pixels on this machine, ``last`` and ``deep_dynamic`` in turn: of every
   method with ViT-Ti/16, and with ViT-B/16 where much lies outside the encoder: in the decoders of
   MAE and DDAE, and in BEiT's 8192 codes.

Adds what it measures to benchmarks/results/supervision_cost.json and prints it, as ratios to
``last`` of the method; of DDAE, to ``last`` of MAE.
"""

import functools
import json
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks.environment import RESULTS, store, time_in_turn
from ddae_jax import build, recipes
from ddae_jax.config import pretrain_defaults
from ddae_jax.methods import METHODS
from ddae_jax.pretrained import shapes_of_missing
from ddae_jax.training.state import init_state
from ddae_jax.training.step import make_train_step

BATCH = 8
DEFAULT = (*(f"{method}:Ti" for method in METHODS), "mae:B", "ddae:B", "beit:B")
WHOLE = "mae,deep_dynamic, all decoder blocks and hidden patches at intermediate depths"
CELLS = {
    "ddae": ("mae,last", "ddae,last", "ddae,deep_dynamic"),
    "mae": ("mae,last", "mae,deep_dynamic", WHOLE),
}
"""What is compared, where that is more than two modes; the first one is what others are over."""


def main(repeats: str = "5", *methods_and_sizes: str) -> None:
    """Counts, times, stores and prints."""
    path = RESULTS / "supervision_cost.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    counted, timed = (stored.get(key, {}) for key in ("operations_of_a_step", "seconds_of_a_step"))
    for name in methods_and_sizes or DEFAULT:
        method, size = name.split(":")
        cells = CELLS.get(method, (f"{method},last", f"{method},deep_dynamic"))
        counted |= {cell: operations(cell) for cell in cells}
        found = time_in_turn({cell: runnable(cell, size) for cell in cells}, int(repeats))
        for cell in cells:
            more = counted[cell] / counted[cells[0]]
            seconds = found[cell]["median"] / found[cells[0]]["median"]
            print(f"{size:3s}{cell:80s} operations of ViT-B {more:.2f}x  seconds {seconds:.2f}x")
        timed[size] = timed.get(size, {}) | found
        store(
            "supervision_cost",
            {"batch": BATCH, "operations_of_a_step": counted, "seconds_of_a_step": timed},
        )


def operations(cell: str) -> float:
    """Floating-point operations of a step of ViT-B, before XLA optimises it."""
    step, initialize, frozen = step_of(cell, "B")
    state = jax.eval_shape(initialize, jax.random.key(0), frozen=frozen)
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.uint8)
    return step.lower(state, {"image": images}).cost_analysis()["flops"]


def runnable(cell: str, size: str, **changes: str) -> Callable[[], None]:
    """Takes a step and waits for it; for ``changes`` see :func:`step_of`."""
    step, initialize, shapes = step_of(cell, size, **changes)
    draw = np.random.default_rng(0).normal
    frozen = jax.tree.map(lambda leaf: np.float32(draw(0, 0.02, leaf.shape)), shapes)
    held = {"state": jax.jit(initialize)(jax.random.key(0), frozen=frozen)}
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)

    def run() -> None:
        held["state"], metrics = step(held["state"], {"image": images})
        jax.block_until_ready(metrics)

    return run


def step_of(cell: str, size: str, **changes: str) -> tuple[Callable, Callable, PyTree]:
    """The step of a cell, what makes its first state, and shapes of what is frozen.

    ``changes`` are of ``config.model``, whose dtype is float32 otherwise.
    """
    config = pretrain_defaults()
    recipes.use_recipe(config, ",".join(cell.split(",")[:2]))
    config.model.size = size
    config.model.dtype = "float32"
    config.model.update(changes)
    if size == "Ti":  # a decoder as small against the encoder as ViT-B's
        config.decoder.width, config.decoder.num_heads = 128, 4
    if cell == WHOLE:
        config.decoder.intermediate_blocks, config.decoder.intermediate_share = 0, 1.0
    with shapes_of_missing():
        method = build.build_method(config)
    schedule = build.Schedule(steps_per_epoch=100, total_steps=1000)
    optimizer, learning_rate, momentum = build.build_optimizer(config, schedule)
    step = make_train_step(
        method,
        optimizer,
        build.build_prepare(config),
        learning_rate=learning_rate,
        momentum=momentum,
        seed=0,
        total_steps=schedule.total_steps,
    )
    initialize = functools.partial(
        init_state, method=method, optimizer=optimizer, channels=config.data.channels
    )
    return jax.jit(step, donate_argnums=0), initialize, method.frozen


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What deep dynamic supervision adds to a training step of each method.

    python -m benchmarks.supervision_cost [REPEATS [METHOD:SIZE ...]]

1. Operations of a whole step (student, teacher or tokenizer, loss, gradient, optimizer) of ViT-B/16
   at 224 pixels, as XLA counts them, and operations of products by the model's own count: neither
   needs such a machine. With REPEATS 0, nothing else is done.
2. Seconds of a step at 224 pixels on this machine, ``last`` and ``deep_dynamic`` in turn: of every
   method with ViT-Ti/16, and with ViT-B/16 where much lies outside the encoder: in the decoders of
   MAE and DDAE, and in BEiT's 8192 codes.

Adds what it measures to benchmarks/results/supervision_cost.json and prints it, as ratios to
``last`` of the method; of DDAE, to ``last`` of MAE.
"""

import json
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks.environment import RESULTS, store, time_in_turn
from ddae_jax import pretrain
from ddae_jax.aot.flops import model_flops
from ddae_jax.config import pretrain_defaults, recipes
from ddae_jax.jobs.job import DataSpec
from ddae_jax.methods import METHODS
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.schedules import Schedule

BATCH = 8
DEFAULT = (*(f"{method}:Ti" for method in METHODS), "mae:B", "ddae:B", "beit:B")
WHOLE = "mae,deep_dynamic, all decoder blocks and hidden patches at intermediate depths"
CELLS = {
    "ddae": ("mae,last", "ddae,last", "ddae,deep_dynamic"),
    "mae": ("mae,last", "mae,deep_dynamic", WHOLE),
}
"""What is compared, where that is more than two modes; the first one is what others are over."""

CHANGES = {
    WHOLE: {"intermediate_blocks": 0, "intermediate_share": 1.0},
    "mae,last, cross-attention": {"kind": "cross"},
    "mae,deep_dynamic, cross-attention": {"kind": "cross"},
    "ddae,deep_dynamic, 8 blocks, a quarter of the hidden patches": {
        "depth": 8,
        "intermediate_share": 0.25,
    },
    "ddae,deep_dynamic, 8 blocks": {"depth": 8},
    "ddae,deep_dynamic, 2 blocks of self-attention": {"kind": "self", "depth": 2},
    "ddae,deep_dynamic, full input": {},
}
"""What a cell's name adds to method and supervision, as changes of keys of ``decoder``."""

FULL = "ddae,deep_dynamic, full input"


def main(repeats: str = "5", *methods_and_sizes: str) -> None:
    """Counts, times, stores and prints."""
    path = RESULTS / "supervision_cost.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    by_xla, by_model, timed = (
        found.get(key, {})
        for key in ("operations_of_a_step", "model_operations_of_an_image", "seconds_of_a_step")
    )

    def keep() -> None:
        parts = {"operations_of_a_step": by_xla, "model_operations_of_an_image": by_model}
        store("supervision_cost", {"batch": BATCH, **parts, "seconds_of_a_step": timed})

    names = methods_and_sizes or DEFAULT
    cells_of = {name.split(":")[0]: cells(name.split(":")[0]) for name in names}
    counted = dict.fromkeys(cell for of_method in cells_of.values() for cell in of_method)
    counted |= dict.fromkeys(cell for cell in CHANGES if cell.split(",")[0] in cells_of)
    for cell in counted:
        by_xla[cell], by_model[cell] = operations(cell), model_operations(cell)
        over = [count[cell] / count[first(cell)] for count in (by_xla, by_model)]
        shown = f"{by_model[cell] / 1e9:6.1f} GFLOP an image, {over[1]:.2f}x; XLA's {over[0]:.2f}x"
        print(f"{cell:80s} {shown}", flush=True)
        keep()
    for name in names if int(repeats) else ():
        method, size = name.split(":")
        runs = {cell: runnable(cell, size) for cell in cells_of[method]}
        seconds = time_in_turn(runs, int(repeats))
        for cell in runs:
            ratio = seconds[cell]["median"] / seconds[first(cell)]["median"]
            print(f"{size:3s}{cell:80s} seconds {ratio:.2f}x", flush=True)
        timed[size] = timed.get(size, {}) | seconds
        keep()


def cells(method: str) -> tuple[str, ...]:
    """Names what is timed of a method; the first one is what others are over."""
    return CELLS.get(method, (f"{method},last", f"{method},deep_dynamic"))


def first(cell: str) -> str:
    """Names the cell that this one is over."""
    return cells(cell.split(",")[0])[0]


def operations(cell: str) -> float:
    """Counts floating-point operations of a step of ViT-B, before XLA optimises it."""
    program = program_of(cell, "B")
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.uint8)
    lowered = jax.jit(program.train_step).lower(program.state_shapes(), {"image": images})
    return lowered.cost_analysis()["flops"]


def model_operations(cell: str) -> float:
    """Counts operations an image of a ViT-B's products, by its own definition."""
    method = program_of(cell, "B").task
    params = jax.eval_shape(lambda: method.init(jax.random.key(0), 3))
    teacher = jax.eval_shape(method.init_teacher, params, method.frozen)
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)

    def loss(params: PyTree, teacher: PyTree, images: jax.Array) -> PyTree:
        return method.loss(params, teacher, images, jax.random.key(0), progress=0.5)

    return model_flops(loss, params, teacher, images) / BATCH


def runnable(cell: str, size: str, **changes: str) -> Callable[[], None]:
    """Makes what takes a step and waits for it; for ``changes`` see :func:`program_of`."""
    program = program_of(cell, size, **changes)
    draw = np.random.default_rng(0).normal
    state = jax.tree.map(
        lambda leaf: np.asarray(draw(0, 0.02, leaf.shape), leaf.dtype), program.state_shapes()
    )
    held = {"state": jax.device_put(state)}
    step = jax.jit(program.train_step, donate_argnums=0)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)

    def run() -> None:
        held["state"], metrics = step(held["state"], {"image": images})
        jax.block_until_ready(metrics)

    return run


def program_of(cell: str, size: str, **changes: str) -> TrainProgram:
    """Builds the program of a cell; of what it would be given, shapes alone.

    ``changes`` are of ``config.model``, whose dtype is float32 otherwise.
    """
    config = pretrain_defaults()
    recipes.use_recipe(config, ",".join(cell.split(",")[:2]))
    config.model.size = size
    config.model.dtype = "float32"
    config.model.update(changes)
    if size == "Ti":  # a decoder as small against the encoder as ViT-B's
        config.decoder.width, config.decoder.num_heads = 128, 4
    if cell == FULL:
        config.model.encoder_input = "full"
    config.decoder.update(CHANGES.get(cell, {}))
    job = pretrain.PretrainJob(config)
    schedule = Schedule(steps_per_epoch=100, total_steps=1000)
    return job.program(schedule, DataSpec(), stand_in_missing=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

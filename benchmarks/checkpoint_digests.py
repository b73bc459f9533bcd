"""What digests cost a checkpoint: seconds of computing them beside those of the whole save.

    python -m benchmarks.checkpoint_digests [SIZE [REPEATS]]

Saves the state of ``configs/imagenet_ddae_vit_b16.py`` with an encoder of SIZE (B by default), some
times over, to a temporary folder, and computes the digests of the same arrays, in turn. A save is
timed until it is on disk; of it, the loop waits for the first part only, which is told too. Writes
benchmarks/results/checkpoint_digests.json.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import jax

from benchmarks.environment import RESULTS, store
from ddae_jax import pretrain
from ddae_jax.jobs.cli import load_config
from ddae_jax.jobs.job import DataSpec
from ddae_jax.training import checkpoint
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.digests import array_digests
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import make_mesh

CONFIG = RESULTS.parents[1] / "configs" / "imagenet_ddae_vit_b16.py"


def main(size: str = "B", repeats: str = "5") -> None:
    """Measures, stores and prints."""
    config = load_config(str(CONFIG))
    config.model.size = size
    schedule = Schedule(steps_per_epoch=100, total_steps=10_000)
    program = pretrain.PretrainJob(config).program(schedule, DataSpec())
    state = jax.block_until_ready(program.init_state(make_mesh()))
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    array_digests(state)  # compiles
    measured = {"digests": [], "until the loop goes on": [], "until it is on disk": []}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep_last=1) as checkpoints:
        checkpoints.save(state, 0, {})
        checkpoints.wait()
        known = array_digests(state)
        checkpoint.array_digests = lambda tree: known  # so that a save is timed without them
        for step in range(1, int(repeats) + 1):
            measured["digests"].append(seconds(lambda: array_digests(state)))
            began = time.perf_counter()
            checkpoints.save(state, step, {})
            measured["until the loop goes on"].append(time.perf_counter() - began)
            checkpoints.wait()
            measured["until it is on disk"].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    share = medians["digests"] / medians["until it is on disk"]
    found = {
        "size": size,
        "arrays": len(jax.tree.leaves(state)),
        "gib": num_bytes / 2**30,
        "seconds": measured,
        "digests over a save": share,
    }
    store("checkpoint_digests", found)
    print(f"{found['arrays']} arrays, {found['gib']:.2f} GiB")
    for name, median in medians.items():
        print(
            f"{name:25s} {median:7.3f} s ({min(measured[name]):.3f} to {max(measured[name]):.3f})"
        )
    print(f"digests over a save: {share:.2%}")


def seconds(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*sys.argv[1:])

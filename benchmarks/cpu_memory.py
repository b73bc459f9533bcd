"""What it saves on a CPU to keep freed memory for the next step (ddae_jax/jobs/devices.py).

    python -m benchmarks.cpu_memory --config=configs/imagenet_mae_vit_b16.py \\
        --config.batch_size=8 --config.model.dtype=float32

Two processes take the same training steps in turn, on one core: one keeps what it frees, the other
gives it back, as glibc does. Prints and writes processor seconds of a step, those of the system in
them, and the pages that were taken anew, to benchmarks/results/train_step_cpu_memory.json.
"""

import contextlib
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks import train_step
from benchmarks.environment import spread, store
from ddae_jax.jobs import cli, devices

FORMS = {"given back": False, "kept": True}
ROUNDS = 7


def main(argv: Sequence[str]) -> None:
    """Measures and stores."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, is_kept in FORMS.items():
        pipes[name], other_end = context.Pipe()
        context.Process(target=_take_steps, args=(argv, is_kept, other_end), daemon=True).start()
    for pipe in pipes.values():
        pipe.recv()  # compiled
    steps = {name: [] for name in FORMS}
    for index in range(ROUNDS):
        for name in list(FORMS)[:: -1 if index % 2 else 1]:
            pipes[name].send(None)
            steps[name].append(pipes[name].recv())
    measured = {
        name: {key: spread([step[key] for step in taken]) for key in taken[0]}
        for name, taken in steps.items()
    }
    seconds = ([step["processor_s"] for step in taken] for taken in steps.values())
    speedup = spread([before / now for before, now in zip(*seconds, strict=True)])
    for name, found in measured.items():
        print(name, *(f"{key} {value['median']:.4g}" for key, value in found.items()), sep="  ")
    print(f"{speedup['median']:.3f}x [{speedup['min']:.3f}, {speedup['max']:.3f}]")
    print(store("train_step_cpu_memory", {"steps": measured, "speedup": speedup, "argv": argv}))


def _take_steps(argv: Sequence[str], is_kept: bool, pipe: Connection) -> None:
    """Takes a step, and tells what it took, each time that something comes."""
    train_step.prepare_process(cores=1, has_peers=False)
    if is_kept and not devices.keep_freed_memory():
        raise OSError("this system has no glibc: nothing can be kept")
    usage = f"benchmarks.cpu_memory {__doc__}"
    flags = cli.parse_config_flags(argv, usage, lambda flags: None, None)
    step = train_step.Step(train_step.request_of(flags.config))
    step.run_steps(2)
    with contextlib.suppress(EOFError):  # until the other end is closed
        while True:
            pipe.send(_of_a_step(step))
            pipe.recv()


def _of_a_step(step: train_step.Step) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = step.run_steps(1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "processor_s": times.processor_seconds,
        "system_s": after.ru_stime - before.ru_stime,
        "pages": after.ru_minflt - before.ru_minflt,
        "peak_bytes": after.ru_maxrss * 2**10,
    }


if __name__ == "__main__":
    main(sys.argv[1:])

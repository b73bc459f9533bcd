"""How much on-chip memory one operation should hold on a TPU, by its compiler's count.

    python -m benchmarks.scoped_vmem [v5e:2x2=98304 ...]

Compiles DDAE's step for ViT-B with two of its blocks, 64 images a chip, with each limit in KiB (0:
the compiler's own). Needs libtpu. Adds what is counted for an image to
benchmarks/results/scoped_vmem.json: memory traffic; seconds that the compiler deems least; and
cycles, which it estimates for the operations that it makes of the step, copies between memories not
among them.
"""

import json
import re
import sys
import time

import jax

from benchmarks.environment import RESULTS, write
from configs import imagenet_ddae_vit_b16
from ddae_jax import pretrain
from ddae_jax.aot.compiled_step import known_seconds, lower_step
from ddae_jax.aot.topology import topology_devices
from ddae_jax.jobs.job import DataSpec
from ddae_jax.models import vit
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import make_mesh

IMAGES_PER_CHIP, DEPTH = 64, 2
LIMITS = {"v5p:2x2x1": (0, 32768, 49152), "v5e:2x2": (0, 49152), "v6e:2x2": (0, 49152)}


def main() -> None:
    """Compiles what is asked for, and stores it beside what there is."""
    asked = [f"{name}={kib}" for name, limits in LIMITS.items() for kib in limits]
    path = RESULTS / "scoped_vmem.json"
    jax.config.update("jax_platforms", "cpu")
    for case in sys.argv[1:] or asked:
        found = compiled(*case.split("="))
        print(case, found, flush=True)
        rows = json.loads(path.read_text())["of_an_image"] if path.exists() else {}
        rows[case] = found
        about = {"images_per_chip": IMAGES_PER_CHIP, "depth": DEPTH, "encoder": "ViT-B/16"}
        write(path, {**about, "of_an_image": dict(sorted(rows.items()))}, ("libtpu",))


def compiled(topology: str, kib: str) -> dict[str, float]:
    """Returns the compiler's counts under a limit, in KiB."""
    config = imagenet_ddae_vit_b16.get_config()
    vit.SIZES["B"] = vit.SIZES["B"]._replace(depth=DEPTH)
    config.supervision.depths = (1, 2)
    mesh = make_mesh(devices=topology_devices(topology))
    config.batch_size = IMAGES_PER_CHIP * mesh.size
    job = pretrain.PretrainJob(config)
    program = job.program(Schedule(100, 1000), DataSpec())
    options = {"xla_tpu_scoped_vmem_limit_kib": kib} if int(kib) else {}
    lowered = lower_step(program, mesh, job.batch_spec(DataSpec()), options)
    began = time.process_time()
    step = lowered.compile()
    costs = step.cost_analysis()
    cycles = map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry(step.as_text())))
    return {
        "megabytes": costs["bytes accessed"] / IMAGES_PER_CHIP / 1e6,
        "optimal_us": known_seconds(costs["optimal_seconds"]) / IMAGES_PER_CHIP * 1e6,
        "kilocycles": sum(cycles) / IMAGES_PER_CHIP / 1e3,
        "compile_cpu_s": time.process_time() - began,
    }


def entry(program: str) -> str:
    """The instructions of the whole program, without those of the computations that it calls."""
    return program[program.index("\nENTRY") :]


if __name__ == "__main__":
    main()

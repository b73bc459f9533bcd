"""What GPUs compute while they send, with and without XLA's latency-hiding scheduler.

    python -m benchmarks.gpu_overlap

Compiles DDAE's step for ViT-B on eight H100 that need not be there, 64 images on each: parameters
whole on each, and spread over all. Needs jax[cuda12]. Tells of each collective operation the bytes
of its result and how many products stand between its start and its end, and whether the programs
with the scheduler, without it, and as XLA does by itself have the same operations, in that order.
Writes benchmarks/results/gpu_overlap.json.
"""

import re

import jax

from benchmarks.environment import store
from configs import imagenet_ddae_vit_b16
from ddae_jax import build, job, pretrain
from ddae_jax.forecast.compiled import forecast_options, lower_step
from ddae_jax.forecast.hlo import Operation, operations, own_result, sizes
from ddae_jax.forecast.topology import topology_devices
from ddae_jax.training.sharding import make_mesh

TOPOLOGY, IMAGES_PER_GPU = "h100:8", 64
OPTION = "xla_gpu_enable_latency_hiding_scheduler"


def main() -> None:
    """Compiles all and stores what is found."""
    jax.config.update("jax_platforms", "cpu")
    found = {"topology": TOPOLOGY, "images_per_gpu": IMAGES_PER_GPU}
    for fsdp in (1, 8):
        programs = [compiled(fsdp, options) for options in ({}, {OPTION: False}, {OPTION: True})]
        kinds = [[(line.kind, line.result) for line in operations(text)] for text in programs]
        found[f"fsdp={fsdp}"] = {
            "same_program": kinds[0] == kinds[1] == kinds[2],
            "products": sum(is_product(line) for line in operations(programs[0])),
            "collectives": overlap(programs[0]),
        }
        print(fsdp, found[f"fsdp={fsdp}"], flush=True)
    store("gpu_overlap", found)


def compiled(fsdp: int, options: dict[str, bool]) -> str:
    """The program's text."""
    config = imagenet_ddae_vit_b16.get_config()
    mesh = make_mesh(fsdp=fsdp, devices=topology_devices(TOPOLOGY))
    config.batch_size = IMAGES_PER_GPU * mesh.size
    program = pretrain.build_program(config, build.Schedule(100, 1000), job.Data())
    batch = pretrain.batch_shapes(config, job.Data())
    lowered = lower_step(program, mesh, batch, forecast_options(mesh) | options)
    return lowered.compile().as_text()


def is_product(line: Operation) -> bool:
    """Whether it is a matrix product or attention, of cuBLAS or cuDNN."""
    return "__cublas" in line.rest or "__cudnn$fmha" in line.rest


def overlap(program: str) -> list[dict[str, float]]:
    """Megabytes of each collective operation, and the products between its start and its end."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", program, re.MULTILINE)[1]
    lines = [line for line in operations(program) if line.computation == entry]
    places = {line.name: place for place, line in enumerate(lines)}
    return [
        {
            "megabytes": sum(sizes(own_result(line))) / 1e6,
            "products": sum(is_product(other) for other in lines[places[line.operands[0]] : place]),
        }
        for place, line in enumerate(lines)
        if line.kind.endswith("-done")
    ]


if __name__ == "__main__":
    main()

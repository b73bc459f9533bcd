"""What GPUs compute while they send, with and without XLA's latency-hiding scheduler.

    python -m benchmarks.gpu_overlap

Compiles DDAE's step for ViT-B on eight H100 that need not be there, 64 images on each: parameters
whole on each, and spread over all. Needs jax[cuda12]. Tells of each collective operation the bytes
of its result and how many products stand between its start and its end, and whether the programs
with the scheduler, without it, and as XLA does by itself have the same operations, in that order.
Writes benchmarks/results/gpu_overlap.json.
"""

import re

from benchmarks.environment import store
from ddae_jax import compile_check
from ddae_jax.aot.compiled_step import aot_options, lower_step
from ddae_jax.aot.hlo import Operation, operations, own_result, sizes

TOPOLOGY, IMAGES_PER_GPU = "h100:8", 64
OPTION = "xla_gpu_enable_latency_hiding_scheduler"


def main() -> None:
    """Compiles all and stores what is found."""
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
    request, _ = compile_check.parse_request(
        [
            *("--config=configs/imagenet_ddae_vit_b16.py", f"--topology={TOPOLOGY}"),
            *(f"--config.mesh.fsdp={fsdp}", f"--config.batch_size={8 * IMAGES_PER_GPU}"),
        ]
    )
    options = aot_options(request.mesh) | options
    lowered = lower_step(request.program(), request.mesh, request.batch(), options)
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

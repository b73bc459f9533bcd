"""Whether GPUs compute while they add gradients, with and without XLA's latency-hiding scheduler.

    python -m benchmarks.gpu_overlap

Compiles DDAE's step for ViT-B on eight H100 that need not be there, 64 images on each. Needs
jax[cuda12]. Tells of each collective operation the bytes of its result and how many products stand
between its start and its end, and whether both programs have the same operations in the same order.
Writes benchmarks/results/gpu_overlap.json.
"""

import re

import jax

from benchmarks.environment import store
from configs import imagenet_ddae_vit_b16
from ddae_jax import build, job, pretrain
from ddae_jax.forecast.compiled import forecast_options, lower_step
from ddae_jax.forecast.hlo import operations, sizes
from ddae_jax.forecast.topology import topology_devices
from ddae_jax.training.sharding import make_mesh

TOPOLOGY, IMAGES_PER_GPU = "h100:8", 64
OPTION = "xla_gpu_enable_latency_hiding_scheduler"


def main() -> None:
    """Compiles both and stores what is found."""
    jax.config.update("jax_platforms", "cpu")
    programs = {is_on: compiled(is_on) for is_on in (False, True)}
    kinds = {
        is_on: [(line.kind, line.result) for line in operations(text)]
        for is_on, text in programs.items()
    }
    found = {
        "topology": TOPOLOGY,
        "images_per_gpu": IMAGES_PER_GPU,
        "same_program": kinds[False] == kinds[True],
        "collectives": {OPTION + f"={is_on}": overlap(text) for is_on, text in programs.items()},
    }
    print(found)
    store("gpu_overlap", found)


def compiled(is_on: bool) -> str:
    """The program's text."""
    config = imagenet_ddae_vit_b16.get_config()
    mesh = make_mesh(devices=topology_devices(TOPOLOGY))
    config.batch_size = IMAGES_PER_GPU * mesh.size
    program = pretrain.build_program(config, build.Schedule(100, 1000), job.Data())
    options = forecast_options(mesh) | {OPTION: is_on}
    batch = pretrain.batch_shapes(config, job.Data())
    return lower_step(program, mesh, batch, options).compile().as_text()


def overlap(program: str) -> list[dict[str, float]]:
    """Megabytes of each collective operation, and the products between its start and its end."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", program, re.MULTILINE)[1]
    lines = [line for line in operations(program) if line.computation == entry]
    places = {line.name: place for place, line in enumerate(lines)}
    return [
        {
            "megabytes": sum(sizes(line.result)) / 1e6,
            "products": sum(
                "cublas" in other.rest or "fmha" in other.rest
                for other in lines[places[line.operands[0]] : place]
            ),
        }
        for place, line in enumerate(lines)
        if line.kind.endswith("-done")
    ]


if __name__ == "__main__":
    main()

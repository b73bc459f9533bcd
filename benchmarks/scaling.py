"""What the ImageNet configs need and send on TPUs and GPUs that are not there, by compile_check.

    python -m benchmarks.scaling [--only=TEXT] [--again]

Compiles each of :func:`cases` that benchmarks/results/scaling.json does not have yet (``--again``:
all), ``--only`` those whose name has that text, and prints what the file has as a table. It is
written after each. Those named "full input" are of the configs with mask tokens in the encoder,
which was DDAE's default before. Needs libtpu, a ViT-B takes 5 to 13 minutes on two busy cores, a
ViT-H 24; and for GPUs jax[cuda12], a ViT-B takes one minute.
"""

import argparse
import json
import types
from collections.abc import Iterable, Mapping

from benchmarks.environment import RESULTS, machine, write
from ddae_jax import compile_check

PATH = RESULTS / "scaling.json"
# As Cloud TPU names slices: of v4 and v5p by their cores, two a chip; of the others by their chips.
SLICES = types.MappingProxyType(
    {
        "v4-64": "v4:2x4x4",
        "v5e-64": "v5e:8x8",
        "v5e-256": "v5e:16x16",
        "v5p-64": "v5p:2x4x4",
        "v6e-64": "v6e:8x8",
    }
)
GPUS = types.MappingProxyType({"8 H100": "h100:8", "8 A100": "a100:8"})
# What a config needs to fit a slice; with 4,096 images a step, a chip of v4-64 and v5p-64 has 128.
CONFIGS: Mapping[str, Mapping[str, tuple[str, ...]]] = types.MappingProxyType(
    {
        "imagenet_ddae_vit_b16": {},
        "imagenet_ddae_vit_l16": {
            "v4-64": ("optimizer.micro_batches=2",),
            "8 H100": ("optimizer.micro_batches=2",),
            "8 A100": ("optimizer.micro_batches=2",),
        },
        "imagenet_ddae_vit_h14": {
            "v4-64": ("optimizer.micro_batches=4",),
            "v5e-64": ("optimizer.micro_batches=4",),
            "v6e-64": ("optimizer.micro_batches=2",),
            "8 H100": ("optimizer.micro_batches=4",),
            "8 A100": ("optimizer.micro_batches=4",),
        },
    }
)
# Where the configs are compiled as they are; with full input they are compiled everywhere.
VISIBLE: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "imagenet_ddae_vit_b16": ("v5e-64", "v5p-64", "8 H100"),
        "imagenet_ddae_vit_l16": ("v5e-64", "v5p-64"),
        "imagenet_ddae_vit_h14": ("v5p-64",),
    }
)
FULL = "model.encoder_input=full"
WEAK = types.MappingProxyType({1: "1x1", 4: "2x2", 16: "4x4", 256: "16x16"})  # 64 is v5e-64
IMAGES_PER_CHIP = 64  # in weak scaling
COLUMNS = (
    "chips",
    "images a chip",
    "GiB a chip",
    "operations over the model's",
    "MB an image",
    "MB sent",
    "bound, of peak",
    "compiler's estimate",
    "images/s/chip at half the bound",
    "hours",
)


def cases() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Config, topology and changes of each case, by its name.

    The configs as they are, on some slices and GPUs; with full input, on all of them; each with its
    own batch of 4,096. And ViT-B with full input on 1 to 256 chips of v5e with 64 images each,
    parameters whole on every chip.
    """
    machines = SLICES | GPUS
    found = {
        f"{config} on {name}": (config, machines[name], CONFIGS[config].get(name, ()))
        for config, names in VISIBLE.items()
        for name in names
    }
    for config, changes in CONFIGS.items():
        for name, topology in machines.items():
            case = (config, topology, (FULL, *changes.get(name, ())))
            found[f"{config}, full input, on {name}"] = case
    for count, sides in WEAK.items():
        changes = (FULL, f"batch_size={IMAGES_PER_CHIP * count}")
        case = ("imagenet_ddae_vit_b16", f"v5e:{sides}", changes)
        found[f"weak scaling, full input, to {count}"] = case
    return found


def main() -> None:
    """Compiles what is missing, and prints what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names that have this text")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    flags = parser.parse_args()
    for name, case in cases().items():
        if flags.only in name and (flags.again or name not in stored()):
            print(f"compiling {name}", flush=True)
            found = compiled(*case)
            write(PATH, {"cases": stored() | {name: found}})
    print("\n".join(table(stored())))


def stored() -> dict[str, dict]:
    """Reads the cases that were stored before."""
    return json.loads(PATH.read_text())["cases"] if PATH.exists() else {}


def compiled(config: str, topology: str, changes: tuple[str, ...]) -> dict:
    """Returns the result of compile_check, without the config."""
    flags = [f"--config=configs/{config}.py", f"--topology={topology}"]
    request, _ = compile_check.parse_request(
        [*flags, *(f"--config.{change}" for change in changes)]
    )
    found = compile_check.analyze(request, request.program())
    del found["config"]
    libtpu = {} if topology in GPUS.values() else {"libtpu": machine(("libtpu",))["libtpu"]}
    return {"changes": list(changes), **libtpu, **found}


def table(rows: Mapping[str, dict]) -> Iterable[str]:
    """The rows as a table in Markdown, in the order of :func:`cases`."""
    yield f"| | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name in cases():
        if name in rows:
            yield _row(name, rows[name])


def _row(name: str, found: Mapping) -> str:
    changes = [change for change in found["changes"] if change != FULL]  # which the name says
    cells = [" ".join([name, *changes]), found["num_devices"], found["batch_per_device"]]
    if not found["fits"]:
        return "| " + " | ".join(map(str, [*cells, found["why"]])) + " |"
    pace, estimate = found["pace"]["0.5"], found["peak_share_by_compiler"]
    sent = sum(traffic["sent"] for traffic in found["collectives"].values())
    cells += [
        f"{found['total_bytes_per_device'] / 2**30:.1f}",
        f"{found['flops_per_image']['ratio']:.3f}",
        f"{found['memory_traffic_per_image'] / 1e6:,.0f}",
        f"{sent / 1e6:,.0f}",
        f"{found['peak_share_at_bound']:.0%} ({found['bound']['limit']})",
        f"{estimate:.0%}" if estimate else "",
        f"{pace['images_per_s_per_chip']:,.0f}",
        f"{pace['hours']:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()

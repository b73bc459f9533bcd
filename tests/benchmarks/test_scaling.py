"""The benchmark of TPU slices: its cases can be asked, and its table says what was stored."""

import importlib
import math

import pytest

from benchmarks import scaling
from ddae_jax.config.values import parse_value

COMPILED = {
    "num_devices": 64,
    "batch_per_device": 64,
    "changes": [],
    "fits": True,
    "total_bytes_per_device": 5 * 2**30,
    "flops_per_image": {"ratio": 1.0104},
    "memory_traffic_per_image": 1.166e9,
    "collectives": {"all-reduce": {"sent": 342e6}, "all-gather": {"sent": 1e6}},
    "peak_share_at_bound": 0.75,
    "bound": {"limit": "memory"},
    "peak_share_by_compiler": 0.571,
    "pace": {"1": {}, "0.5": {"images_per_s_per_chip": 1234.5, "hours": 0.44}},
}
TOO_LARGE = {
    "num_devices": 64,
    "batch_per_device": 64,
    "changes": ["model.encoder_input=full", "mesh.fsdp=8"],
    "fits": False,
    "why": "17.0 GiB are needed, 16.0 GiB are there",
}


@pytest.mark.parametrize("case", scaling.cases().values(), ids=list(scaling.cases()))
def test_batches_of_all_cases_divide(case):
    name, topology, changes = case
    config = importlib.import_module(f"configs.{name}").get_config()
    for change in changes:
        key, _, value = change.partition("=")
        config.update_from_flattened_dict({key: parse_value(key, value)})
    chips = math.prod(map(int, topology.split(":")[1].split("x")))
    assert chips % config.mesh.fsdp == 0
    assert config.batch_size % (chips * config.optimizer.micro_batches) == 0


def test_slices_are_named_by_cores_or_chips():
    chips = {
        name: math.prod(map(int, topology.split(":")[1].split("x")))
        for name, topology in scaling.SLICES.items()
    }
    assert chips == {"v4-64": 32, "v5e-64": 64, "v5e-256": 256, "v5p-64": 32, "v6e-64": 64}


def test_the_table_has_a_row_for_each_case_that_is_stored():
    rows = {
        "imagenet_ddae_vit_h14, full input, on v5e-64": TOO_LARGE,
        "imagenet_ddae_vit_b16 on v5e-64": COMPILED,
    }
    *_, first, second = scaling.table(rows)
    assert first == (
        "| imagenet_ddae_vit_b16 on v5e-64 | 64 | 64 | 5.0 | 1.010 | 1,166 | 343 | 75% (memory) "
        "| 57% | 1,234 | 0.4 |"
    )
    assert (
        "| imagenet_ddae_vit_h14, full input, on v5e-64 mesh.fsdp=8 | 64 | 64 | 17.0 GiB are needed"
        in second
    )

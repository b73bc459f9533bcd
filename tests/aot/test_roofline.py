import pytest

from ddae_jax.aot.chips import CHIPS, Chip
from ddae_jax.aot.collectives import Traffic
from ddae_jax.aot.compiled_step import CompiledStep, known_seconds
from ddae_jax.aot.roofline import bound_of, pace

CHIP = Chip("toy", 100.0, 1000.0, 10.0, 4.0, "by hand")


def step(flops, memory, sent):
    traffic = {"all-reduce": Traffic(1, sent, sent / 2), "all-gather": Traffic(1, sent, sent / 2)}
    return CompiledStep(1.0, {"parameters": 1}, 2, flops, memory, None, traffic)


@pytest.mark.parametrize(
    ("needs", "seconds", "limit"),
    [
        ((500.0, 10.0, 4.0), (5.0, 1.0, 1.0), "compute"),
        ((100.0, 70.0, 4.0), (1.0, 7.0, 1.0), "memory"),
        ((100.0, 10.0, 36.0), (1.0, 1.0, 9.0), "interconnect"),
    ],
)
def test_the_slowest_of_three_bounds_a_step(needs, seconds, limit):
    bound = bound_of(step(*needs), CHIP)
    assert (bound.compute_s, bound.memory_s, bound.interconnect_s) == seconds
    assert bound.limit == limit
    assert bound.step_s == max(seconds)


def test_hours_of_a_run():
    found = pace(0.5, batch_size=64, num_devices=8, total_steps=7200)
    assert found.images_per_s_per_chip == 16
    assert found.hours == 1
    assert found.chip_hours == 8


def test_what_a_device_holds_together():
    assert step(1.0, 1.0, 1.0).total_bytes == 3


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_says_where_its_figures_are_from(chip):
    assert chip.source
    assert 1e14 < chip.peak_flops < 1e16
    assert 1e10 < chip.memory_bytes < 1e12
    assert 1e11 < chip.interconnect_bandwidth < chip.memory_bandwidth < 1e13


@pytest.mark.parametrize(
    ("counted", "known"), [(-52.75, 0.25), (-1.0, 0.0), (0.5, 0.5), (0.0, 0.0)]
)
def test_custom_calls_are_taken_out_of_the_compilers_seconds(counted, known):
    assert known_seconds(counted) == pytest.approx(known)

"""Roofline model: the shortest possible time of a step, and the pace of a whole run."""

import dataclasses

from ddae_jax.aot.chips import Chip
from ddae_jax.aot.compiled_step import CompiledStep


@dataclasses.dataclass(frozen=True)
class Bound:
    """Lower bounds of the time of a step, by resource.

    Attributes:
        compute_s: seconds for its operations at the chip's peak.
        memory_s: seconds for its memory traffic at the memory's bandwidth.
        interconnect_s: seconds for the bytes that it sends, at the bandwidth of all links together.

    Source: Williams et al. 2009, "Roofline: an insightful visual performance model".
    """

    compute_s: float
    memory_s: float
    interconnect_s: float

    @property
    def step_s(self) -> float:
        """The largest of the three: they are assumed to overlap completely."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def limit(self) -> str:
        """The resource with the largest bound: ``compute``, ``memory`` or ``interconnect``."""
        return max(("compute", "memory", "interconnect"), key=lambda n: getattr(self, f"{n}_s"))


def bound_of(step: CompiledStep, chip: Chip) -> Bound:
    """Returns the roofline bounds of a compiled step on a chip."""
    sent = sum(traffic.sent for traffic in step.collectives.values())
    return Bound(
        step.flops / chip.peak_flops,
        step.memory_traffic / chip.memory_bandwidth,
        sent / chip.interconnect_bandwidth,
    )


@dataclasses.dataclass(frozen=True)
class Pace:
    """Pace of a run whose steps take a given time.

    Attributes:
        images_per_s_per_chip: images per second on each device.
        hours: hours of the whole run, without loading data, evaluation and checkpoints.
        chip_hours: hours of all devices together.
    """

    images_per_s_per_chip: float
    hours: float
    chip_hours: float


def pace(step_s: float, batch_size: int, num_devices: int, total_steps: int) -> Pace:
    """Returns the pace of a run.

    Args:
        step_s: seconds per step.
        batch_size: images per step on all devices together.
        num_devices: number of devices.
        total_steps: steps of the run.
    """
    hours = step_s * total_steps / 3600
    return Pace(batch_size / num_devices / step_s, hours, hours * num_devices)

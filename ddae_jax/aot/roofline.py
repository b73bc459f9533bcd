"""How fast a step can be at the most: the roofline, and what that means for a whole run."""

import dataclasses

from ddae_jax.aot.chips import Chip
from ddae_jax.aot.compiled_step import CompiledStep


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a step takes at the least, for each thing that it needs.

    Attributes:
        compute_s: for its operations, at the chip's peak.
        memory_s: for what it reads and writes, at the memory's bandwidth.
        interconnect_s: for what it sends, at the bandwidth of all links together.

    Source: Williams et al. 2009, "Roofline: an insightful visual performance model".
    """

    compute_s: float
    memory_s: float
    interconnect_s: float

    @property
    def step_s(self) -> float:
        """The longest of them: as if all three went on at once."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def limit(self) -> str:
        """Which one that is: ``compute``, ``memory`` or ``interconnect``."""
        return max(("compute", "memory", "interconnect"), key=lambda n: getattr(self, f"{n}_s"))


def bound_of(step: CompiledStep, chip: Chip) -> Bound:
    """The roofline bound of a compiled step."""
    sent = sum(traffic.sent for traffic in step.collectives.values())
    return Bound(
        step.flops / chip.peak_flops,
        step.memory_traffic / chip.memory_bandwidth,
        sent / chip.interconnect_bandwidth,
    )


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long a run takes if a step takes so many seconds.

    Attributes:
        images_per_s_per_chip: images a second of each device.
        hours: of the whole run, without data, evaluation and checkpoints.
        chip_hours: of all devices together.
    """

    images_per_s_per_chip: float
    hours: float
    chip_hours: float


def pace(step_s: float, batch_size: int, num_devices: int, total_steps: int) -> Pace:
    """The pace of a run of so many steps, of so many images over all devices."""
    hours = step_s * total_steps / 3600
    return Pace(batch_size / num_devices / step_s, hours, hours * num_devices)

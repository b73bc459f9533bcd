"""What every recorded measurement says about where it was made, and how it is stored."""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import jax

RESULTS = pathlib.Path(__file__).parent / "results"


def machine(packages: Sequence[str] = ()) -> dict:
    """Processor, cores that this process may use, devices, and versions, also of ``packages``."""
    names = ("jax", "jaxlib", "flax", "numpy", *packages)
    versions = {name: importlib.metadata.version(name) for name in names}
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "python": platform.python_version(),
        **versions,
    }


def store(name: str, result: dict, packages: Sequence[str] = ()) -> pathlib.Path:
    """Writes ``results/NAME.json`` with the machine beside the result."""
    return write(RESULTS / f"{name}.json", result, packages)


def write(path: pathlib.Path, result: dict, packages: Sequence[str] = ()) -> pathlib.Path:
    """Writes a file like that."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(packages), **result}, indent=2) + "\n")
    return path


def time_in_turn(
    runs: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float] = perf_counter
) -> dict[str, dict]:
    """Seconds of each run: median, least and most; in turn, so that a drift meets all alike."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles
    for _ in range(repeats):
        for name, run in runs.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(x.split(":")[1].strip() for x in file if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

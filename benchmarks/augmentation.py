"""Where should images be cropped: in the input pipeline's workers, or on the device?

    python -m benchmarks.augmentation [--data_dir=TFDS_DIR] [--name=cifar10] [--repeats=5]

Measures images/s of 32-pixel images that the loader hands out (already cropped, or as they are),
and of `augment_on_device`, which the second kind still has to go through. Without --data_dir the
images are noise in memory; with it also a TFDS dataset, decoded anew each time and held in memory.
Prints a table and writes it, with machine and versions, to benchmarks/results/augmentation.json.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.environment import store
from ddae_jax.data.array_source import ArraySource, in_memory
from ddae_jax.data.augment import Augmentation, augment_on_device
from ddae_jax.data.source_base import Source
from ddae_jax.data.sources import make_source
from ddae_jax.data.train_loader import TrainLoader

_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS datasets lie; empty: noise only.")
_NAME = flags.DEFINE_string("name", "cifar10", "TFDS dataset of images of one size.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each row.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Duration of each measurement.", lower_bound=0.1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a batch.", lower_bound=1)

_LINE = "{:22} {:26} {:>7} {:>7} {:>9} {:>9} {:>9}"
# (worker processes, threads in each)
_READERS = ((0, 1), (0, 4), (2, 1), (4, 1))


def sources(data_dir: str, name: str) -> Iterator[tuple[str, Source]]:
    """Yields each source that is read, with its name in the table."""
    noise = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    yield "noise in memory", ArraySource(noise, np.zeros(len(noise), np.int32))
    if data_dir:
        source = make_source("tfds", name=name, data_dir=data_dir)
        yield f"{name}, decoded", source
        yield f"{name} in memory", in_memory(source)


def images_per_second(next_batch: Callable[[], Any], batch_size: int) -> list[float]:
    """One figure a repeat, after a batch that is not counted."""
    next_batch()
    return [_rate(next_batch, batch_size) for _ in range(_REPEATS.value)]


def _rate(next_batch: Callable[[], Any], batch_size: int) -> float:
    batches, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS.value:
        next_batch()
        batches += 1
    return batches * batch_size / elapsed


def measure_loader(source: Source, place: str, num_workers: int, num_threads: int) -> list[float]:
    """Images/s of a loader that nobody makes wait."""
    with TrainLoader(
        source,
        Augmentation((32, 32), augment_in=place),
        batch_size=_BATCH_SIZE.value,
        seed=0,
        num_workers=num_workers,
        num_threads=num_threads,
        max_corrupt_share=1.0,
    ) as loader:
        return images_per_second(partial(next, loader), _BATCH_SIZE.value)


def measure_device() -> list[float]:
    """Images/s of the jitted augmentation alone, with its input on the device already."""
    augment = jax.jit(partial(augment_on_device, size=(32, 32)))
    shape = (_BATCH_SIZE.value, 32, 32, 3)
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    key = jax.random.key(0)
    return images_per_second(lambda: augment(key, images).block_until_ready(), _BATCH_SIZE.value)


def row(source: str, what: str, workers: int | str, threads: int | str, rates: list[float]) -> dict:
    """A row of the table and of the results."""
    result = {
        "source": source,
        "what": what,
        "workers": workers,
        "threads": threads,
        "images_per_s": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
    }
    print(_LINE.format(*result.values()), flush=True)
    return result


def main(_: list[str]) -> None:
    header = ("source", "what", "workers", "threads", "images/s", "lowest", "highest")
    print(_LINE.format(*header))
    rows = [row("noise", "augment_on_device alone", "-", "-", measure_device())]
    for name, source in sources(_DATA_DIR.value, _NAME.value):
        for place in ("workers", "device"):
            for num_workers, num_threads in _READERS:
                rates = measure_loader(source, place, num_workers, num_threads)
                what = "loader, cropped" if place == "workers" else "loader, as they are"
                rows.append(row(name, what, num_workers, num_threads, rates))
    settings = {"batch_size": _BATCH_SIZE.value, "repeats": _REPEATS.value, "image_size": [32, 32]}
    packages = ("grain", "pillow", "tensorflow-datasets", "array-record")
    print(store("augmentation", {**settings, "rows": rows}, packages))


if __name__ == "__main__":
    app.run(main)

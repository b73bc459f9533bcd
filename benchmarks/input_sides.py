"""One side of `benchmarks.input_pipeline`, in a process of its own that is kept to one core.

    python benchmarks/input_sides.py SIDE FOLDER CORE BATCH_SIZE THREADS CONFIG

Reads, line by line, how many images to make, and answers each line with a JSON object: the images
made, and the seconds and seconds of CPU that took. Imports only what its side needs, so that the
Python that has torchvision need not have this package's dependencies.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOK_EVERY_S = 0.05
_LOOKS = 6
IMAGE_SIZE = 224
CROP_SCALE = (0.2, 1.0)  # of all sides; MAE's


def pipeline(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """Yields the sizes of batches of the pipeline that pretraining reads from, in this process."""
    from ddae_jax.builders.data import build_loader, build_source

    config = configured(config, folder, batch_size, threads)
    with build_loader(config, build_source(config, "train")) as loader:
        for batch in loader:
            yield len(batch["image"])


def decode(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """Each file read and decoded at full size by the pipeline's decoder, and dropped."""
    for _, image in _numbered_images(folder):
        image.decode()
        yield 1


def decode_to_array(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """As ``decode``, to an array of bytes: what anybody needs who goes on with it in NumPy."""
    for _, image in _numbered_images(folder):
        image.pixels()
        yield 1


def decode_reduced(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """As ``decode``, at the sizes to which random crops allow the pipeline to reduce a JPEG."""
    from ddae_jax.data.augment import decoding_reduction

    for image, bounds in _with_random_bounds(folder, config):
        image.decode(decoding_reduction(bounds, (IMAGE_SIZE, IMAGE_SIZE)))
        yield 1


def crop(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """Decoded as by ``decode_reduced`` and resized by Pillow, to an array: no flip and no batch."""
    from ddae_jax.data.augment import crop_and_resize

    for image, bounds in _with_random_bounds(folder, config):
        crop_and_resize(image, bounds, (IMAGE_SIZE, IMAGE_SIZE))
        yield 1


def torchvision(folder: str, batch_size: int, threads: int, config: str) -> Iterator[int]:
    """torchvision's pipeline with Pillow, to batches of bytes in this process."""
    yield from _torchvision(folder, batch_size, normalize=False)


def torchvision_normalized(
    folder: str, batch_size: int, threads: int, config: str
) -> Iterator[int]:
    """As ``torchvision``, to normalised floats: MAE's ``transform_train``."""
    yield from _torchvision(folder, batch_size, normalize=True)


_ALL = (
    *(pipeline, decode, decode_to_array, decode_reduced, crop),
    *(torchvision, torchvision_normalized),
)
SIDES = {side.__name__: side for side in _ALL}


def configured(path: str, folder: str, batch_size: int, threads: int):
    """The config of a file, with images of a folder, read in this process."""
    import runpy

    config = runpy.run_path(path)["get_config"]()
    config.batch_size = batch_size
    config.model.image_size, config.data.crop_scale = (IMAGE_SIZE, IMAGE_SIZE), CROP_SCALE
    config.data.source, config.data.data_dir = "folder", folder
    config.data.num_workers, config.data.num_threads = 0, threads
    return config


def _numbered_images(folder: str) -> Iterator[tuple]:
    from ddae_jax.data.sources import make_source

    source = make_source("folder", data_dir=folder)
    for index in itertools.cycle(range(len(source))):
        yield index, source.open([index])[0][0]


def _with_random_bounds(folder: str, config: str) -> Iterator[tuple]:
    """Images with the left, top, right and bottom of crops as the config draws them."""
    import numpy as np

    from ddae_jax.data.augment import random_box

    data = configured(config, folder, 1, 1).data
    rng = np.random.default_rng(0)
    drawn = {}  # once for each, so that what is measured draws none
    for number, image in _numbered_images(folder):
        if number not in drawn:
            box = random_box(rng, *image.size, tuple(data.crop_scale), tuple(data.crop_ratio))
            drawn[number] = (box.left, box.top, box.left + box.width, box.top + box.height)
        yield image, drawn[number]


def _torchvision(folder: str, batch_size: int, normalize: bool) -> Iterator[int]:
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    last = [transforms.PILToTensor()]
    if normalize:
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        last = [transforms.ToTensor(), transforms.Normalize(mean, deviation)]
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            *last,
        ]
    )
    with tempfile.TemporaryDirectory() as root:  # ImageFolder wants sub-folders
        _link_images(folder, Path(root) / "all")
        images = datasets.ImageFolder(root, transform)
        loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, drop_last=False)
        while True:
            for batch, _ in loader:
                yield len(batch)


def _link_images(folder: str, into: Path) -> None:
    into.mkdir()
    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)
    for number, path in enumerate(sorted(found)):
        (into / f"{number}{path.suffix}").symlink_to(path.resolve())


def serve(images: Iterator[int]) -> None:
    """Answers the lines of the standard input."""
    for line in sys.stdin:
        began, cpu_began = time.perf_counter(), time.process_time()
        made = 0
        while made < int(line):
            made += next(images)
        ended, cpu_ended = wait_until_idle(time.process_time)
        answer = {"images": made, "wall_s": ended - began, "cpu_s": cpu_ended - cpu_began}
        print(json.dumps(answer), flush=True)


def wait_until_idle(cpu_s: Callable[[], float], busy_share: float = 0.05) -> tuple[float, float]:
    """When threads that read ahead have filled their buffers, by the seconds of CPU used so far.

    So that what is measured between two such moments has made as much as it handed out.

    **Arguments:**

    - `busy_share`: of a core; what polls alone uses less.

    Returns when that was, by `time.perf_counter`, and the seconds of CPU.
    """
    ended, cpu, quiet = time.perf_counter(), cpu_s(), 0
    while quiet < _LOOKS:
        time.sleep(_LOOK_EVERY_S)
        now = cpu_s()
        quiet = quiet + 1 if now - cpu < busy_share * _LOOK_EVERY_S else 0
        if not quiet:
            ended, cpu = time.perf_counter(), now
    return ended, cpu


if __name__ == "__main__":
    side, folder, core, batch_size, threads, config = sys.argv[1:]
    if int(core) >= 0:
        os.sched_setaffinity(0, {int(core)})
    serve(SIDES[side](folder, int(batch_size), int(threads), config))

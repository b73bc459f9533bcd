"""How fast a core turns the JPEGs of a folder into training batches, and what else it could do.

    python -m benchmarks.input_pipeline --folder=PHOTOS [--torchvision_python=PYTHON]
        [--before=CHECKOUT] [--config=FILE] [--rounds=9] [--workers=1,2]

1. Images/s of one core: the pipeline of a pretraining config (read, decode, random resized crop to
   224 pixels, flip, batch) beside decoding alone, with the same decoder (Pillow's libjpeg-turbo):
   at full size, and at the sizes to which the pipeline reduces large JPEGs; beside decoding and
   resizing without a pipeline ("crop"); and beside torchvision's pipeline. Each side is a process
   that is kept to one core; they take turns, so that whatever else the machine does meets all
   alike, and rates are by seconds of CPU. `--before` adds the pipeline of another checkout of this
   package.
2. With worker processes, as `config.data.num_workers` sets them: images/s of all, and what the
   process that trains has to do itself for each image, in all of its threads and in its main one.
   How many cores' images the latter can take follows: that bounds what one process can feed,
   however many cores there are.

torchvision runs in the Python given, which needs it (`pip install torch torchvision`; the CPU is
enough): this one by default. Where it is not installed, it is left out.
Prints tables and writes them, with machine and versions, to benchmarks/results/NAME.json.
"""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

from absl import app, flags

from benchmarks.environment import spread, store
from benchmarks.input_sides import configured, wait_until_idle
from ddae_jax.builders.data import build_loader, build_source

_ROOT = pathlib.Path(__file__).parent.parent
_SIDES = pathlib.Path(__file__).with_name("input_sides.py")

_FOLDER = flags.DEFINE_string("folder", "../shared/data/photos", "Images, in whatever sub-folders.")
_CONFIG = flags.DEFINE_string(
    "config", str(_ROOT / "configs/imagenet_ddae_vit_b16.py"), "Whose pipeline is measured."
)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each side.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 320, "Images in each of them.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a batch.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 0, "Threads that read; 0: as the config.", lower_bound=0)
_CORE = flags.DEFINE_integer("core", -1, "Where all sides run; -1: the last core there is.")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of worker processes.")
_TORCHVISION = flags.DEFINE_string("torchvision_python", sys.executable, "The Python that has it.")
_BEFORE = flags.DEFINE_string("before", "", "Another checkout, in a folder of its commit's name.")
_NAME = flags.DEFINE_string(
    "name", "input_pipeline", "Of the file in benchmarks/results, or its path without .json."
)
_LEFT_OUT = flags.DEFINE_list("leave_out", [], "Sides that are not measured.")

_LINE = "{:24} {:>9} {:>7} {:>7} {:>9} {:>17} {:>9} {:>14}"
_COMPARED = ("decode", "decode reduced", "crop", "torchvision")


class Side:
    """A process that makes images when asked; see `benchmarks.input_sides`.

    Raises `RuntimeError` with what it said last, where it cannot.
    """

    def __init__(self, what: str, python: str = sys.executable, root: pathlib.Path = _ROOT):
        core = max(os.sched_getaffinity(0)) if _CORE.value < 0 else _CORE.value
        self._process = subprocess.Popen(
            [
                *(python, str(_SIDES), what, os.path.abspath(_FOLDER.value), str(core)),
                *(str(_BATCH_SIZE.value), str(_THREADS.value), os.path.abspath(_CONFIG.value)),
            ],
            env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def measure(self, images: int) -> dict[str, float]:
        """Images, and the seconds and the seconds of CPU that they took."""
        with contextlib.suppress(BrokenPipeError):
            print(images, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            said = self._process.stderr.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def sides() -> dict[str, Callable[[], Side]]:
    """Returns a function that starts each side, by the side's name in the table."""
    here = ("decode", "decode_to_array", "decode_reduced", "crop", "pipeline")
    found = {what: functools.partial(Side, what) for what in here}
    if _BEFORE.value:
        before = pathlib.Path(_BEFORE.value).absolute()
        found["pipeline_before"] = functools.partial(Side, "pipeline", root=before)
    for what in ("torchvision", "torchvision_normalized"):
        found[what] = functools.partial(Side, what, python=_TORCHVISION.value)
    named = {what.replace("_", " "): start for what, start in found.items()}
    return {name: start for name, start in named.items() if name not in _LEFT_OUT.value}


def measure_sides() -> dict[str, dict]:
    """Rates of each side by seconds of CPU and of the clock, and how they compare."""
    with contextlib.ExitStack() as stack:
        started = {name: start() for name, start in sides().items()}
        running = {}
        for name, side in started.items():
            stack.callback(side.close)
            try:
                side.measure(_IMAGES.value)  # starts, and fills what is read ahead
            except RuntimeError as error:
                if "torchvision" not in name:
                    raise
                print(f"{name} is left out: {error}")
                continue
            running[name] = side
        measured = {name: [] for name in running}
        for _ in range(_ROUNDS.value):
            for name, side in running.items():
                measured[name].append(side.measure(_IMAGES.value))
    by_cpu = {
        name: [one["images"] / one["cpu_s"] for one in found] for name, found in measured.items()
    }
    rows = {}
    for name, found in measured.items():
        rows[name] = {
            "images_per_cpu_s": spread(by_cpu[name]),
            "images_per_s": spread([one["images"] / one["wall_s"] for one in found]),
            "share_of": {
                other: spread([mine / its for mine, its in zip(by_cpu[name], rates, strict=True)])
                for other, rates in by_cpu.items()
                if other != name
            },
        }
    return rows


def print_sides(rows: dict[str, dict]) -> None:
    """The table of what a core does."""
    print(_LINE.format("one core", "img/CPU s", "least", "most", *(f"/ {x}" for x in _COMPARED)))
    for name, row in rows.items():
        shares = (row["share_of"].get(other) for other in _COMPARED)
        cells = ["-" if share is None else f"{share['median']:.2f}" for share in shares]
        rates = row["images_per_cpu_s"]
        print(
            _LINE.format(name, *(f"{rates[key]:.1f}" for key in ("median", "min", "max")), *cells)
        )


def measure_workers(num_workers: int) -> dict[str, dict[str, float]]:
    """Rates with worker processes, and what each image costs them and this process."""
    config = configured(_CONFIG.value, _FOLDER.value, _BATCH_SIZE.value, _THREADS.value)
    config.data.num_workers = num_workers
    rates, own, in_main, of_workers = [], [], [], []
    with build_loader(config, build_source(config, "train")) as loader:
        next(loader)
        wait_until_idle(_cpu_of_all, busy_share=0.4)
        for _ in range(_ROUNDS.value):
            began, children = time.perf_counter(), _cpu_of_children()
            cpu, of_thread = time.process_time(), time.thread_time()
            made = 0
            while made < _IMAGES.value:
                made += len(next(loader)["image"])
            own.append(1e3 * (time.process_time() - cpu) / made)
            in_main.append(1e3 * (time.thread_time() - of_thread) / made)
            ended, _ = wait_until_idle(_cpu_of_all, busy_share=0.4)
            rates.append(made / (ended - began))
            of_workers.append(1e3 * (_cpu_of_children() - children) / made)
    return {
        "images_per_s": spread(rates),
        "workers_cpu_ms_per_image": spread(of_workers),
        "own_cpu_ms_per_image": spread(own),
        "main_thread_cpu_ms_per_image": spread(in_main),
        "cores_that_keep_its_main_thread_busy": spread(
            [theirs / mine for theirs, mine in zip(of_workers, in_main, strict=True)]
        ),
    }


def _cpu_of_all() -> float:
    return time.process_time() + _cpu_of_children()


def _cpu_of_children() -> float:
    """Seconds of CPU that processes started by this one have used so far."""
    ticks = 0
    for task in os.listdir("/proc/self/task"):
        for child in pathlib.Path(f"/proc/self/task/{task}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError):
                after_name = pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2]
                ticks += sum(map(int, after_name.split()[11:13]))  # in user and in kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


def print_workers(rows: dict[str, dict]) -> None:
    """The table of what worker processes do, and what remains for this one."""
    line = "{:>8} {:>9} {:>26} {:>22} {:>20} {:>24}"
    heads = ("images/s", "workers' CPU, ms an image", "own CPU, ms an image", "in its main thread")
    print(line.format("workers", *heads, "cores that keep it busy"))
    for number, row in rows.items():
        print(line.format(number, *(f"{cell['median']:.3f}" for cell in row.values())))


def versions(python: str) -> dict[str, str]:
    """Versions that the torchvision side uses."""
    program = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in ('torch', 'torchvision', 'pillow')}))"
    )
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def main(_: list[str]) -> None:
    by_side = measure_sides()
    print_sides(by_side)
    by_workers = {number: measure_workers(int(number)) for number in _WORKERS.value}
    print_workers(by_workers)
    result = {
        "folder": pathlib.Path(_FOLDER.value).name,
        "config": pathlib.Path(_CONFIG.value).name,
        "batch_size": _BATCH_SIZE.value,
        "rounds": _ROUNDS.value,
        "images_a_round": _IMAGES.value,
        "one_core": by_side,
        "workers": by_workers,
    }
    if _BEFORE.value:
        result["before"] = pathlib.Path(_BEFORE.value).name
    if "torchvision" in by_side:
        result["torchvision_versions"] = versions(_TORCHVISION.value)
    print(store(_NAME.value, result, ("pillow", "grain")))


if __name__ == "__main__":
    app.run(main)

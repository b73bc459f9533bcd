"""The smallest runs that are still real: a config file and commands to start it with."""

import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
ONLY_TESTS = (
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
)

CONFIG = """
from ddae_jax.config import pretrain_defaults
from ddae_jax.models import vit

vit.SIZES["micro"] = vit.Size(16, 3, 2)


def get_config():
    config = pretrain_defaults()
    config.batch_size = 64
    config.epochs = 2.0
    config.model.size = "micro"
    config.model.image_size = (16, 16)
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.decoder.width = 16
    config.decoder.depth = 1
    config.decoder.num_heads = 2
    config.mask.ratio = 0.5
    config.optimizer.warmup_epochs = 0.5
    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.flip = False
    config.checkpoint.every_epochs = 0.2
    config.log.every_steps = 2
    return config
"""

SIMPLEST = ("--config.supervision.mode=last", "--config.targets.feature_weight=0")
"""For runs whatever they train: half as much to trace and to compile."""


def write_config(folder: pathlib.Path, depth: int = 3) -> pathlib.Path:
    """The config file of a tiny run on the digits: 22 steps an epoch, a checkpoint every 4."""
    path = folder / "tiny.py"
    path.write_text(CONFIG.replace("Size(16, 3, 2)", f"Size(16, {depth}, 2)"))
    return path


def command(job: str, *arguments: str, draws: bool = False) -> list[str]:
    """The command line of a job, that draws its pictures only where they are asked for."""
    program = ["-m", f"ddae_jax.{job}"] if draws else [str(ROOT / "tests" / "undrawn.py"), job]
    return [sys.executable, *program, *arguments]


def run_program(program: str) -> subprocess.CompletedProcess:
    """Runs a Python program in a process of its own, and keeps what it writes."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def environment(num_devices: int = 1, as_for_users: bool = False) -> dict[str, str]:
    """Environment of a subprocess with so many devices, on the CPU.

    It shares what it compiles with all tests, and does without what makes XLA slow to compile, as
    they do (see conftest.py). Where it finds a program that another is still writing, JAX warns and
    compiles it.

    Args:
        num_devices: of the process.
        as_for_users: instead, programs are compiled as for them, and kept in the workdir. So it is
            where a process is killed, as that may leave half of one.
    """
    flag = "--xla_force_host_platform_device_count"
    flags = re.sub(rf"{flag}=\d+", f"{flag}={num_devices}", os.environ["XLA_FLAGS"])
    ours = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    if not as_for_users:
        return os.environ | ours
    theirs = {name: value for name, value in os.environ.items() if name not in ONLY_TESTS}
    # Of GPUs; with it, the folder of programs would be part of their names.
    theirs["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
    return theirs | ours | {"XLA_FLAGS": f"{flag}={num_devices}"}


def run(job: str, *arguments: str, draws: bool = False, **kind) -> subprocess.CompletedProcess:
    """Runs a job to its end, in an environment of a kind; its output is text."""
    return subprocess.run(
        command(job, *arguments, draws=draws),
        env=environment(**kind),
        capture_output=True,
        text=True,
        timeout=300,
    )


def copy_of_short_run(folder: pathlib.Path) -> pathlib.Path:
    """A run of eight steps, in a new folder; whoever asks first in a run of the suite trains it."""
    shared = pathlib.Path(os.environ["TEST_PROGRAMS"]) / "short_run"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            config = write_config(shared)
            options = ("--config.epochs=0.36", "--config.log.tensorboard=false")
            done = run("pretrain", f"--config={config}", f"--workdir={shared / 'run'}", *options)
            assert done.returncode == 0, done.stderr
            (shared / "done").touch()
    return shutil.copytree(shared / "run", folder)


def records(workdir: pathlib.Path) -> list[dict]:
    """What a run wrote to metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_image(path: pathlib.Path, size: tuple[int, int] = (16, 16)) -> None:
    """A grey image file of noise; size is (height, width)."""
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(noise).save(path)

"""The devices of a command: joining other processes, and the programs that were compiled before."""

import contextlib
import ctypes
import dataclasses
import glob
import os
import pathlib
import re
import zlib
from collections.abc import Sequence

import jax
from absl import flags as absl_flags

from ddae_jax.training.logging import set_up_logging

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
"""Files of GPUs and TPUs, as their drivers make them."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Numbers of glibc's ``mallopt``."""
_HEARTBEAT_TIMEOUT_S = 60
"""After so many seconds without a sign of a process the others end, even where all are waiting."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the other processes are, for those that no scheduler's environment tells it.

    Attributes:
        coordinator: ``HOST:PORT`` of the first process.
        num_processes: of the run.
        process_id: of this one, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def cluster_of(flags: absl_flags.FlagValues) -> Cluster | None:
    """What the flags say of other processes. Raises ``ValueError`` where only a part is said."""
    told = (flags.coordinator, flags.num_processes, flags.process_id)
    if told == (None, None, None):
        return None
    if None in told:
        raise ValueError(
            f"--coordinator={told[0]}, --num_processes={told[1]}, --process_id={told[2]}: give all "
            "three, or --distributed alone where SLURM, GKE or a TPU pod tells them"
        )
    if not 0 <= flags.process_id < flags.num_processes:
        raise ValueError(
            f"--process_id={flags.process_id}; it lies in [0, {flags.num_processes - 1}], as "
            f"--num_processes={flags.num_processes}"
        )
    if not re.fullmatch(r".+:\d+", flags.coordinator):
        raise ValueError(f"--coordinator={flags.coordinator}; it is HOST:PORT, the same for all")
    return Cluster(*told)


def start_devices(is_distributed: bool, cluster: Cluster | None = None) -> bool:
    """Joins the other processes, if any, and sets up the log. True in the first process.

    Args:
        is_distributed: whether the environment tells where they are.
        cluster: else: where they are.

    Raises ``ValueError`` if they cannot be found.
    """
    if computes_on_cpu(jax.config.jax_platforms):
        keep_freed_memory()
    if is_distributed or cluster:
        # JAX's own answer to SIGTERM would take the place of StopRequest's, and end nothing.
        jax.config.update("jax_enable_preemption_service", False)
        options = {}
        if cluster:
            options = {f.name: getattr(cluster, f.name) for f in dataclasses.fields(Cluster)}
            options["coordinator_address"] = options.pop("coordinator")
        options["heartbeat_timeout_seconds"] = _HEARTBEAT_TIMEOUT_S
        try:
            jax.distributed.initialize(**options)
        except ValueError as error:
            raise ValueError(
                f"--distributed: no other processes were found ({error}); leave it out on one "
                "machine, start the job on all of them, as SLURM, GKE and TPU pods do, or give "
                "--coordinator, --num_processes and --process_id"
            ) from error
    is_primary = jax.process_index() == 0
    set_up_logging(is_primary)
    return is_primary


def computes_on_cpu(
    platforms: str | None, accelerator_files: Sequence[str] = _ACCELERATORS
) -> bool:
    """Whether JAX will compute on the CPU: it was told to, or there is no accelerator.

    Starts nothing, unlike ``jax.default_backend()``.

    Args:
        platforms: JAX's setting ``jax_platforms``.
        accelerator_files: patterns of files that are there where a GPU or TPU is.
    """
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(map(glob.glob, accelerator_files))


def keep_freed_memory() -> bool:
    """Lets glibc keep what this process frees, for what it needs next; False without glibc.

    On a CPU, XLA allocates the intermediate values of each step anew, and blocks of that size are
    new pages, which the system clears one by one (benchmarks/results/train_step_cpu_memory.json).
    The process stays as large as it once was. To be called before JAX starts its threads, as each
    takes an arena, of small blocks only, for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all(mallopt(option, value) for option, value in options.items())


def use_compilation_cache(folder: pathlib.Path) -> None:
    """Keeps compiled programs in a folder, so that a restart need not compile them again.

    Halves of them, left by a kill or a full disk, are removed first: JAX would neither read nor
    replace them.

    Where JAX's own variable ``JAX_COMPILATION_CACHE_DIR`` names another folder, that one is used,
    with JAX's own settings. Others may be writing there, so nothing in it is removed.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    for path in sorted(folder.glob("*-cache")):
        if not _is_whole(path.read_bytes()):
            path.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _is_whole(compressed: bytes) -> bool:
    """Whether all of a compressed program is there, as far as zlib, JAX's default, can tell."""
    if compressed.startswith(b"\x28\xb5\x2f\xfd"):  # Zstandard, where that is installed
        return True
    decompressor = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        decompressor.decompress(compressed)
    return decompressor.eof

"""Start of a command's devices: joins other processes, and sets up memory and compilation cache."""

import contextlib
import ctypes
import dataclasses
import glob
import os
import pathlib
import re
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence

import jax
from absl import flags as absl_flags

from ddae_jax.training.display import set_up_logging
from ddae_jax.training.peers import watch_each_other

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
"""Patterns of the device files that drivers of GPUs and TPUs create."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Numbers of glibc's ``mallopt``."""
_HEARTBEAT_TIMEOUT_S = 60
"""Seconds without a heartbeat of a process after which JAX ends the others."""
_JOIN_TIMEOUT_S = 300.0
"""Seconds that a process waits for others that start later."""
_WAIT_MESSAGE_AFTER_S = 10.0
"""Seconds of waiting after which a process says that it waits."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The location of the other processes, where no scheduler's environment says it.

    Attributes:
        coordinator: ``HOST:PORT`` of the first process.
        num_processes: number of processes of the run.
        process_id: number of this one, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def cluster_of(flags: absl_flags.FlagValues) -> Cluster | None:
    """Returns the cluster that the flags describe; None if they describe none.

    Raises ``ValueError`` if only some of the flags are given, or if a value is invalid.
    """
    values = (flags.coordinator, flags.num_processes, flags.process_id)
    if values == (None, None, None):
        return None
    if None in values:
        raise ValueError(
            f"--coordinator={values[0]}, --num_processes={values[1]}, "
            f"--process_id={values[2]}: give all three, or --distributed alone where SLURM, GKE or "
            "a TPU pod tells them"
        )
    if not 0 <= flags.process_id < flags.num_processes:
        raise ValueError(
            f"--process_id={flags.process_id}; it lies in [0, {flags.num_processes - 1}], as "
            f"--num_processes={flags.num_processes}"
        )
    if not re.fullmatch(r".+:\d+", flags.coordinator):
        raise ValueError(f"--coordinator={flags.coordinator}; it is HOST:PORT, the same for all")
    return Cluster(*values)


def start_devices(is_distributed: bool, cluster: Cluster | None = None) -> bool:
    """Joins the other processes, if any, and sets up the log.

    Args:
        is_distributed: whether there are other processes that the environment locates.
        cluster: the location of other processes that the environment does not locate.

    Returns:
        Whether this is the first process.

    Raises:
        ValueError: if the other processes cannot be found.
    """
    if computes_on_cpu(jax.config.jax_platforms):
        keep_freed_memory()
    if is_distributed or cluster:
        # JAX's own SIGTERM handler would replace that of StopRequest, and not end the run.
        jax.config.update("jax_enable_preemption_service", False)
        join(cluster)
        watch_each_other(cluster and cluster.coordinator.rpartition(":")[0].strip("[]"))
    is_primary = jax.process_index() == 0
    set_up_logging(is_primary)
    return is_primary


def join(cluster: Cluster | None, patience_s: float = _JOIN_TIMEOUT_S) -> None:
    """Waits for the other processes and joins them; exits this one if they do not come.

    Args:
        cluster: their location; None if the environment says it.
        patience_s: time to wait, seconds.

    Raises:
        ValueError: if the environment does not say where the other processes are.
    """
    options, where = {}, ""
    if cluster:
        options = {f.name: getattr(cluster, f.name) for f in dataclasses.fields(Cluster)}
        where = f" at {options.pop('coordinator')}"
        options["coordinator_address"] = cluster.coordinator
    options["heartbeat_timeout_seconds"] = _HEARTBEAT_TIMEOUT_S
    # Longer than patience_s, because JAX aborts the process at its own timeout.
    options["initialization_timeout"] = int(patience_s) + 60
    with telling_of_a_long_wait(where, patience_s):
        try:
            jax.distributed.initialize(**options)
        except ValueError as error:
            raise ValueError(
                f"--distributed: no other processes were found ({error}); leave it out on one "
                "machine, start the job on all of them, as SLURM, GKE and TPU pods do, or give "
                "--coordinator, --num_processes and --process_id"
            ) from error


@contextlib.contextmanager
def telling_of_a_long_wait(where: str, patience_s: float) -> Iterator[None]:
    """Prints that the body waits for other processes; exits this one after ``patience_s`` seconds.

    A thread does both, because JAX does not return from its wait.
    """
    is_over = threading.Event()

    def print_and_exit() -> None:
        if is_over.wait(min(_WAIT_MESSAGE_AFTER_S, patience_s)):
            return
        print(
            f"waiting for the other processes of this run{where}, for up to {patience_s:g} s",
            file=sys.stderr,
            flush=True,
        )
        if is_over.wait(max(patience_s - _WAIT_MESSAGE_AFTER_S, 0)):
            return
        print(
            f"error: not all processes of this run have come together{where} within "
            f"{patience_s:g} s. Start the same command on all of them, with the same coordinator, "
            "and let the network pass its port",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=print_and_exit, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def computes_on_cpu(
    platforms: str | None, accelerator_files: Sequence[str] = _ACCELERATORS
) -> bool:
    """Returns whether JAX will compute on the CPU: by its settings, or for lack of accelerators.

    Unlike ``jax.default_backend()``, it does not start a backend.

    Args:
        platforms: JAX's setting ``jax_platforms``.
        accelerator_files: patterns of files that exist only where there is a GPU or TPU.
    """
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(map(glob.glob, accelerator_files))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for reuse; returns whether it does, False without glibc.

    On a CPU, XLA allocates the intermediate values of each step anew. By default, blocks of that
    size are new pages, which the system clears one by one
    (benchmarks/results/train_step_cpu_memory.json). In exchange, the process never shrinks.

    Call it before JAX starts its threads: each thread takes an arena for good, and arenas other
    than the main one hold only small blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all(mallopt(option, value) for option, value in options.items())


def use_compilation_cache(folder: pathlib.Path) -> None:
    """Sets the folder of compiled programs, so that a restart need not compile them again.

    Truncated programs, left by a kill or a full disk, are removed first: JAX would neither read
    nor replace them.

    If the variable ``JAX_COMPILATION_CACHE_DIR`` names another folder, that one is used with JAX's
    own settings. Nothing in it is removed, because other processes may be writing there.
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
    """Returns whether a compressed program is complete, as far as zlib, JAX's default, can tell."""
    if compressed.startswith(b"\x28\xb5\x2f\xfd"):  # Zstandard, where that is installed
        return True
    decompressor = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        decompressor.decompress(compressed)
    return decompressor.eof

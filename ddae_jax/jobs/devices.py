"""The devices of a command: joining other processes, and the programs that were compiled before."""

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
"""Files of GPUs and TPUs, as their drivers make them."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
"""Numbers of glibc's ``mallopt``."""
_HEARTBEAT_TIMEOUT_S = 60
"""After so many seconds without a sign of a process JAX ends the others, if nothing else has."""
_JOIN_TIMEOUT_S = 300.0
_TELL_AFTER_S = 10.0
"""So long processes wait for others that start later, and until they say so."""


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
        join(cluster)
        watch_each_other(cluster and cluster.coordinator.rpartition(":")[0].strip("[]"))
    is_primary = jax.process_index() == 0
    set_up_logging(is_primary)
    return is_primary


def join(cluster: Cluster | None, patience_s: float = _JOIN_TIMEOUT_S) -> None:
    """Joins the other processes, for which it waits; ends this one if they do not come.

    Args:
        cluster: where they are; None where the environment tells.
        patience_s: how long to wait, seconds.

    Raises ``ValueError`` if the environment does not tell where they are.
    """
    options, where = {}, ""
    if cluster:
        options = {f.name: getattr(cluster, f.name) for f in dataclasses.fields(Cluster)}
        where = f" at {options.pop('coordinator')}"
        options["coordinator_address"] = cluster.coordinator
    options["heartbeat_timeout_seconds"] = _HEARTBEAT_TIMEOUT_S
    # Longer than the patience here: at the end of its own JAX aborts amid its code.
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
    """Says that the body waits for other processes, and ends this one if it does so for too long.

    A thread does, as JAX would not return from its wait.
    """
    is_over = threading.Event()

    def tell() -> None:
        if is_over.wait(min(_TELL_AFTER_S, patience_s)):
            return
        print(
            f"waiting for the other processes of this run{where}, for up to {patience_s:g} s",
            file=sys.stderr,
            flush=True,
        )
        if is_over.wait(max(patience_s - _TELL_AFTER_S, 0)):
            return
        print(
            f"error: not all processes of this run have come together{where} within "
            f"{patience_s:g} s. Start the same command on all of them, with the same coordinator, "
            "and let the network pass its port",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


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

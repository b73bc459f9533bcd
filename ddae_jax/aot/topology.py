"""TPU slices and GPUs that are not attached, as devices that JAX can compile for."""

import ctypes.util
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from packaging.requirements import Requirement

from ddae_jax.aot.gpu_targets import GPUS, target_config
from ddae_jax.suggestions import did_you_mean

# Number of dimensions of a slice of each generation, and chips of a host by default.
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_HOST = (2, 2, 1)
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server knows the type of this machine's TPU
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any type will do, but the compiler complains without one
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}  # both cores of a chip are one device

_GPU_COMPILERS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the chips of a TPU slice, or GPUs, that need not be attached.

    It sets environment variables for the TPU compiler and leaves them set, so do not train on an
    accelerator in the same process afterwards.

    Args:
        name: a slice, such as ``v5e:16x16``; or GPUs of one machine, such as ``h100:8``, or of
            several machines, such as ``h100:4x8`` for four machines of eight.

    Raises:
        ValueError: if the name is not one of a slice or of GPUs; the message says which are.
        FileNotFoundError: if the compiler is not installed; the message says how to install it.
    """
    kind, sides = _parse(name)
    if kind in GPUS:
        return _gpus(name, kind, sides)
    bring = f'`pip install "jax[tpu]=={jax.__version__}"`'
    if not _is_installed("libtpu"):
        raise FileNotFoundError(
            f"--topology={name}: the TPU compiler is not installed; on x86-64 Linux, {bring} "
            "brings it, and no TPU is needed"
        )
    if misfit := _misfit("libtpu"):
        raise ValueError(f"--topology={name}: {misfit}; {bring} brings the one that fits")
    for variable, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(variable, value)
    host = tuple(math.gcd(side, most) for side, most in zip((*sides, 1), _HOST, strict=False))
    options = dict(_OPTIONS.get(kind, {}))
    if host != _HOST:
        options |= {"chips_per_host_bounds": host, "chip_config_name": "default"}
    return _described(name, platform="tpu", topology_name=name, **options)


def _gpus(name: str, kind: str, sides: tuple[int, ...]) -> list[jax.Device]:
    missing = _missing_for_gpus()
    if missing:
        raise FileNotFoundError(
            f"--topology={name}: {missing} is not installed; on Linux, "
            '`pip install "jax[cuda12]"` brings it, and no GPU is needed'
        )
    jax.devices()  # this makes JAX look for its compilers
    machines, each = (1, *sides)[-2:]
    return _described(
        name,
        platform="cuda",
        target_config=target_config(GPUS[kind]),
        topology=f"1x{machines}x{each}",
    )


def _misfit(package: str) -> str | None:
    """Describes how an optional package's version fails JAX's requirement; None if it meets it.

    A compiler of another version compiles for minutes, and then ends with a stack trace.
    """
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed, but not by pip
        return None
    specifiers = [
        requirement.specifier
        for requirement in map(Requirement, importlib.metadata.requires("jax") or [])
        if requirement.name == package
    ]
    if not specifiers or any(each.contains(version, prereleases=True) for each in specifiers):
        return None
    return f"{package} {version} does not fit jax {jax.__version__}, which asks for {specifiers[0]}"


def _missing_for_gpus() -> str:
    """Names what is missing for compiling for GPUs; an empty string if nothing is."""
    if not any(map(_is_installed, _GPU_COMPILERS)):
        return "the GPU compiler"
    has_cudnn = _is_installed("nvidia.cudnn") or ctypes.util.find_library("cudnn")
    return "" if has_cudnn else "cuDNN"  # JAX reads its version


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _described(name: str, **description: Any) -> list[jax.Device]:
    try:
        return list(topologies.get_topology_desc(**description).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={name}: {str(error).splitlines()[0]}") from error
    except NotImplementedError as error:  # JAX has found no compiler of its own version
        raise FileNotFoundError(
            f"--topology={name}: the compiler is not that of jax {jax.__version__}; both have the "
            "same version"
        ) from error


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    kinds = (*_DIMENSIONS, *GPUS)
    known = ", ".join(kinds)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise ValueError(
            f"--topology={name}; it is a generation and the chips along each side, such as "
            f"v5e:16x16 or v5p:4x4x4, or GPUs, such as h100:8 or h100:4x8; known: {known}"
        )
    kind, sides = match[1], tuple(map(int, match[2].split("x")))
    if kind not in kinds:
        raise ValueError(f"--topology={name}; known: {known}{did_you_mean(kind, kinds)}")
    if kind in GPUS:
        if len(sides) > 2 or min(sides) < 1:
            raise ValueError(
                f"--topology={name}; it is a number of GPUs, such as {kind}:8, or machines times "
                f"the GPUs of each, such as {kind}:4x8"
            )
        return kind, sides
    dimensions = _DIMENSIONS[kind]
    if len(sides) != dimensions or min(sides) < 1:
        such_as = "x".join("4" * dimensions)
        raise ValueError(
            f"--topology={name}; a slice of {kind} has {dimensions} sides of at least 1, "
            f"such as {kind}:{such_as}"
        )
    return kind, sides

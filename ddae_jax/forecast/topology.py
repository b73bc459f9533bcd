"""TPU slices that are not there, as devices that the compiler compiles for."""

import math
import os
import re

import jax
from jax.experimental import topologies

from ddae_jax.hints import did_you_mean

# Dimensions of a slice of each generation, and what its hosts hold by default.
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_HOST = (2, 2, 1)
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is nobody to ask which one this machine has
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # nor does it matter, but the compiler complains without
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}  # both cores of a chip are one device


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of a slice such as ``v5e:16x16`` or ``v4:2x2x1``.

    The environment keeps what is told to the compiler about this machine: not for a process that
    trains on a TPU afterwards.

    Raises:
        ValueError: for what names no slice, saying what does.
        FileNotFoundError: if the TPU compiler is not installed, saying how to install it.
    """
    generation, sides = _parse(name)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise FileNotFoundError(
            f"--topology={name}: the TPU compiler is not installed; on x86-64 Linux, "
            "`pip install libtpu` (or ddae-jax[tpu]) brings it, and no TPU is needed"
        ) from None
    for variable, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(variable, value)
    host = tuple(math.gcd(side, most) for side, most in zip((*sides, 1), _HOST, strict=False))
    options = dict(_OPTIONS.get(generation, {}))
    if host != _HOST:
        options |= {"chips_per_host_bounds": host, "chip_config_name": "default"}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={name}: {str(error).splitlines()[0]}") from error
    return list(described.devices)


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    known = ", ".join(_DIMENSIONS)
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found:
        raise ValueError(
            f"--topology={name}; it is a generation and the chips along each side, such as "
            f"v5e:16x16 or v5p:4x4x4; known generations: {known}"
        )
    generation, sides = found[1], tuple(map(int, found[2].split("x")))
    if generation not in _DIMENSIONS:
        hint = did_you_mean(generation, _DIMENSIONS)
        raise ValueError(f"--topology={name}; known generations: {known}{hint}")
    dimensions = _DIMENSIONS[generation]
    if len(sides) != dimensions or min(sides) < 1:
        such_as = "x".join("4" * dimensions)
        raise ValueError(
            f"--topology={name}; a slice of {generation} has {dimensions} sides of at least 1, "
            f"such as {generation}:{such_as}"
        )
    return generation, sides

"""Tests of compiler options, for devices that need not be attached."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.training import program
from ddae_jax.training.compiler_options import compiler_options
from ddae_jax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    device_kind: str


@dataclasses.dataclass(frozen=True)
class Devices:
    devices: np.ndarray

    @property
    def size(self):
        return self.devices.size


def mesh(platform, kind, count=4):
    return Devices(np.full((count, 1), Device(platform, kind)))


@pytest.mark.parametrize(
    ("platform", "kind", "count", "expected"),
    [
        ("cpu", "cpu", 4, {}),
        ("gpu", "NVIDIA H100 80GB HBM3", 8, {}),
        ("tpu", "TPU v4", 4, {}),
        ("tpu", "TPU v5 lite", 4, {}),
        ("tpu", "TPU v5", 1, {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
        ("tpu", "TPU v5p", 4, {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
        ("tpu", "TPU v6 lite", 4, {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
        ("tpu", "TPU v6e", 4, {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
        ("tpu", "TPU of another kind", 4, {}),
    ],
)
def test_each_kind_of_device_has_its_own(platform, kind, count, expected):
    assert compiler_options(mesh(platform, kind, count)) == expected


def test_what_the_environment_sets_is_left(monkeypatch):
    v5p = mesh("tpu", "TPU v5p")
    assert compiler_options(v5p)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=16384")
    assert compiler_options(v5p) == {}


def test_a_training_step_is_compiled_with_them(monkeypatch):
    class Nothing(program.TrainProgram):
        def train_step(self, state, batch):
            return state, {}

        def state_shapes(self, mesh=None):
            return jnp.zeros(8)

    monkeypatch.setattr(program, "compiler_options", lambda mesh: {"no_such_option": True})
    take = Nothing(*[None] * 5, channels=1, seed=0).jit(make_mesh())
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'no_such_opt"):
        take(jnp.zeros(8), jnp.zeros(8))

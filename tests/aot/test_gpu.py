"""Tests of a training step, compiled by the GPU compiler for GPUs that are not attached."""

import pytest

from absent_devices import compile_check, needs_compiler

# The compiler hands attention to cuDNN without calling it, so that its version number is enough.
_WITH_CUDNN = """
from jax._src.cudnn import fused_attention_stablehlo
fused_attention_stablehlo.check_cudnn_version = lambda: 91000
from ddae_jax.aot import topology
topology._missing_for_gpus = lambda: ""
"""


@needs_compiler("gpu")
def test_a_step_is_compiled_for_gpus(tmp_path):
    # 17 tokens, a number that cuDNN's gradient does not take as it is; two micro-batches in a loop.
    changes = ("model.dtype=bfloat16", "mesh.fsdp=2", "optimizer.micro_batches=2")
    # With statistics of the whole batch, the teacher's forward pass would be computed twice.
    changes += ("targets.feature_normalization=layer",)
    found, said, _ = compile_check("gpu", tmp_path, "h100:4", *changes, before=_WITH_CUDNN)
    assert (found["topology"], found["chip"]["name"]) == ("h100:4", "H100")
    assert found["mesh"] == {"data": 2, "fsdp": 2}
    assert found["fits"]
    assert "of which JAX takes" in said
    assert found["usable_bytes"] == pytest.approx(0.75 * found["chip"]["memory_bytes"])
    held = found["bytes_per_device"]
    assert held["parameters"] > 0
    assert held["activations"] > 0
    # In each micro-batch, parameters are gathered over fsdp=2, and gradients are scattered again.
    parameters, sent = held["parameters"], found["collectives"]
    assert parameters / 2 < sent["all-gather"]["sent"] < 8 * parameters
    assert parameters / 2 < sent["reduce-scatter"]["sent"] < 4 * parameters
    assert sent["all-reduce"]["count"] > 0
    assert 1 <= found["flops_per_image"]["ratio"] < 1.2  # padded to 18 tokens instead of 17
    assert found["memory_traffic_per_image"] > 0

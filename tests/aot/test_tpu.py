"""Tests of a training step, compiled by the TPU compiler for a slice that is not attached."""

from absent_devices import compile_check, needs_compiler


@needs_compiler("tpu")
def test_a_step_is_compiled_for_a_slice(tmp_path):
    changes = ("model.dtype=bfloat16", "mesh.fsdp=2")
    found, _, errors = compile_check("tpu", tmp_path, "v5p:2x2x1", *changes)
    assert (found["topology"], found["chip"]["name"]) == ("v5p:2x2x1", "v5p")
    assert found["mesh"] == {"data": 2, "fsdp": 2}
    assert found["fits"]
    held = found["bytes_per_device"]
    assert held["parameters"] > 0
    assert held["activations"] > 0
    # Parameters are gathered over fsdp=2, and gradients are reduced over all devices.
    assert found["collectives"]["all-gather"]["bytes"] > held["parameters"] / 2
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert found["bound"]["memory_s"] > 0
    assert 0 < found["peak_share_by_compiler"] < 1
    assert "TPU_WORKER_HOSTNAMES" not in errors  # no complaint that this machine has no TPU

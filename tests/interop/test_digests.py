"""Digests in weight files: damage is refused, and named by file and array."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddae_jax.interop.digests import DamagedWeights, digest_metadata
from ddae_jax.interop.weight_files import read_weights

WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.ones(4, ml_dtypes.bfloat16),
    "scale": np.array(2, np.float32),
    "nothing": np.zeros((0, 3), np.float32),
}


def write(folder, weights, digests):
    file = folder / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt", **digests})
    return file


def test_whole_weights_are_read_and_those_without_digests_too(tmp_path):
    for digests in (digest_metadata(WEIGHTS), {}):
        weights = read_weights(write(tmp_path, WEIGHTS, digests))
        assert weights.keys() == WEIGHTS.keys()
        np.testing.assert_array_equal(weights["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.weight": np.zeros((2, 3), np.float32)}, "a.weight is not what was written"),
        ({"a.weight": WEIGHTS["a.weight"].reshape(3, 2)}, "a.weight is not what was written"),
        ({"b.bias": np.ones(4, np.float32)}, "b.bias is not what was written"),
        ({"scale": np.array(-2, np.float32)}, "scale is not what was written"),
        ({"c": np.ones(1)}, "c is new"),
        ({"a.weight": None, "scale": None}, "a.weight is lacking, scale is lacking"),
        (
            dict.fromkeys(WEIGHTS, np.ones(1)),
            "a.weight is not .*, b.bias is not .*, scale is not what was written, and 1 more",
        ),
    ],
)
def test_arrays_that_were_not_written_are_named(changes, message, tmp_path):
    changed = {name: array for name, array in (WEIGHTS | changes).items() if array is not None}
    file = write(tmp_path, changed, digest_metadata(WEIGHTS))
    pattern = (
        rf"model\.safetensors is damaged, by .*: {message}\. Copy or export it again; .*'ddae_jax"
    )
    with pytest.raises(DamagedWeights, match=pattern):
        read_weights(file)


def test_every_bit_of_an_array_counts(tmp_path):
    whole = write(tmp_path, WEIGHTS, digest_metadata(WEIGHTS)).read_bytes()
    size = sum(array.nbytes for array in WEIGHTS.values())
    for place in range(len(whole) - size, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(DamagedWeights, match=r"damaged\.safetensors is damaged"):
            read_weights(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("text", ["{", "3", json.dumps(["a"])])
def test_digests_that_are_damaged_themselves_are_named(text, tmp_path):
    file = write(tmp_path, WEIGHTS, {"ddae_jax.sha256": text})
    with pytest.raises(DamagedWeights, match="is damaged: 'ddae_jax.sha256' in its metadata"):
        read_weights(file)

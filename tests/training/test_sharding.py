import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ddae_jax.models.vit import ViT
from ddae_jax.training.sharding import (
    abstract,
    batch_sharding,
    bytes_per_device,
    check_divisible,
    make_mesh,
    put_batch,
    replicated,
    state_sharding,
)


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (4, 2, (4, 2)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 8, (1, 8))],
)
def test_a_mesh_has_the_axes_that_are_asked_for(data, fsdp, shape):
    mesh = make_mesh(data, fsdp)
    assert dict(mesh.shape) == {"data": shape[0], "fsdp": shape[1]}
    assert mesh.devices.ravel().tolist() == jax.devices()


@pytest.mark.parametrize(
    ("data", "fsdp"), [(3, 1), (2, 2), (-1, 3), (-1, -1), (0, 8), (-1, 0), (-2, -4), (-2, -1)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(data, fsdp):
    with pytest.raises(ValueError, match=rf"mesh.data={data}, mesh.fsdp={fsdp}; .*devices, 8"):
        make_mesh(data, fsdp)


@pytest.mark.parametrize(
    ("batch_size", "nearest"), [(100, 96), (101, 104), (3, 8), (0, 8), (-8, 8)]
)
def test_a_batch_that_does_not_split_evenly_is_refused_naming_the_nearest(batch_size, nearest):
    message = (
        rf"batch_size={batch_size} .*8 devices.*mesh.data=4 x mesh.fsdp=2.*nearest: {nearest}$"
    )
    with pytest.raises(ValueError, match=message):
        check_divisible(batch_size, make_mesh(4, 2))


def test_a_batch_that_splits_evenly_is_accepted():
    assert all(check_divisible(size, make_mesh(4, 2)) is None for size in (8, 4096))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 64), PartitionSpec(None, "fsdp")),
        ((64, 16), PartitionSpec("fsdp", None)),
        ((8, 7, 12), PartitionSpec(None, None, "fsdp")),
        ((9, 8), PartitionSpec(None, "fsdp")),  # the longest axis cannot be split
        ((6, 7), PartitionSpec()),
        ((3,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_the_longest_axis_that_divides_is_split(shape, spec):
    mesh = make_mesh(2, 4)
    sharding = state_sharding(mesh, {"a": jax.ShapeDtypeStruct(shape, jnp.float32)})["a"]
    assert sharding.spec == spec
    assert sharding.mesh == mesh


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_bytes_on_each_device_fall_with_fsdp(fsdp):
    mesh = make_mesh(-1, fsdp)
    state = {"kernel": np.ones((48, 64), np.float32), "bias": np.ones(64, np.float32)}
    placed = jax.device_put(state, state_sharding(mesh, state))
    for name, array in placed.items():
        sizes = {shard.data.nbytes for shard in array.addressable_shards}
        assert sizes == {state[name].nbytes // fsdp}


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_of_a_vit_each_device_holds_its_share(fsdp):
    encoder = ViT((16, 16), 4, width=48, depth=2, num_heads=3)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    laid_out = abstract(shapes, state_sharding(make_mesh(-1, fsdp), shapes))
    block = 4 * 48 * 48 + 4 * 48 + 2 * 4 * 48 * 48 + 5 * 48 + 2 * 2 * 48
    embeddings = 4 * 4 * 3 * 48 + 48 + 48  # of patches, with bias, and the class token
    whole = 4 * (2 * block + embeddings + 2 * 48)
    assert bytes_per_device(laid_out) == whole // fsdp


def test_put_batch_gives_each_device_its_images_in_order():
    mesh = make_mesh(4, 2)
    images = np.arange(16 * 6).reshape(16, 2, 3)
    placed = put_batch({"image": images}, mesh)["image"]
    np.testing.assert_array_equal(placed, images)
    assert placed.sharding == batch_sharding(mesh)
    by_device = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    for number, device in enumerate(mesh.devices.ravel()):
        np.testing.assert_array_equal(by_device[device], images[2 * number : 2 * number + 2])


def test_put_batch_is_an_explicit_transfer():
    with jax.transfer_guard("disallow"):
        placed = put_batch(np.ones((8, 2), np.uint8), make_mesh())
    assert placed.dtype == np.uint8


def test_replicated_is_whole_on_every_device():
    placed = jax.device_put(np.arange(5), replicated(make_mesh(2, 4)))
    shards = [shard.data.tolist() for shard in placed.addressable_shards]
    assert shards == [[0, 1, 2, 3, 4]] * 8

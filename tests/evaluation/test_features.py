import functools

import jax
import numpy as np
import pytest

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.images import CorruptImage
from ddae_jax.evaluation import features
from ddae_jax.evaluation.features import (
    cached,
    encode_dataset,
    make_encode,
    raw_pixel_size,
    raw_pixels,
)
from ddae_jax.evaluation.labelled_images import LabelledImages, untrained_params
from ddae_jax.models.vit import ViT
from ddae_jax.training.sharding import make_mesh

COUNT = 37
ENCODER = ViT((8, 8), patch_size=4, width=8, depth=2, num_heads=2, mlp_ratio=2.0)


def normalize(images):
    return images / 127.5 - 1


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    variables = jax.jit(ENCODER.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    return variables["params"]


def labels():
    return np.arange(100, 100 + COUNT, dtype=np.int32)


def batches(images, batch_size, corrupt=None):
    source = ArraySource(images, labels(), corrupt=corrupt)
    return eval_batches(source, (8, 8), batch_size)


@pytest.fixture(scope="module")
def expected(images, params):
    """Returns the encoder's own tokens after each block, on one device and in one batch."""
    tokens = ENCODER.apply({"params": params}, normalize(images.astype(np.float32)), depths=(1, 2))
    return np.asarray(tokens.tokens, np.float64)


def test_images_without_a_label_are_left_out_and_counted_once(images, caplog):
    some = np.where(np.arange(COUNT) % 5 == 0, -1, labels()).astype(np.int32)
    for _ in range(2):
        unlabelled = eval_batches(ArraySource(images, some), (8, 8), 8)
        features, found = raw_pixels(unlabelled, make_mesh())
        np.testing.assert_array_equal(found, some[some >= 0])
        expected = images[some >= 0].reshape(len(found), -1) / 255
        np.testing.assert_allclose(features, expected, rtol=1e-6)
    assert caplog.text.count("8 of 37 images have no label") == 1


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((32, 32), (32, 32)),
        ((8, 20), (8, 20)),
        ((224, 224), (32, 32)),
        ((96, 64), (32, 21)),
        ((33, 1000), (1, 32)),
    ],
)
def test_raw_pixels_are_compared_at_32_pixels_a_side_at_most(size, wanted):
    grey = np.full((8, *size, 1), 51, np.uint8)
    source = ArraySource(grey, np.zeros(8, np.int32))
    features, _ = raw_pixels(eval_batches(source, size, 8), make_mesh())
    assert raw_pixel_size(size) == wanted
    assert features.shape == (8, wanted[0] * wanted[1])
    np.testing.assert_allclose(features, 0.2, rtol=1e-5)


def test_where_another_process_cannot_read_the_cache_all_compute(tmp_path, monkeypatch):
    def compute():
        computed.append(1)
        return ((np.ones((2, 3)), np.arange(2)),) * 2

    computed, asked = [], []

    def all_true(value):
        asked.append(value)
        return False  # as if the other process had answered False

    cached(tmp_path, {"a": 1}, compute)
    monkeypatch.setattr(features, "all_true", all_true)
    cached(tmp_path, {"a": 1}, compute)
    cached(tmp_path, {"b": 1}, compute)
    assert (len(computed), asked) == (3, [True, False])


def test_a_cache_that_cannot_be_read_or_kept_is_done_without(images, tmp_path, caplog):
    def compute():
        computed.append(1)
        return ((np.ones((2, 3)), np.arange(2)),) * 2

    computed = []
    cached(tmp_path, {"a": 1}, compute)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    train, _ = cached(tmp_path, {"a": 1}, compute)
    assert len(computed) == 2
    assert train[1].tolist() == [0, 1]
    assert "computed anew" in caplog.text
    cached(tmp_path, {"a": 1}, compute)
    assert len(computed) == 2
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    cached(in_the_way, {"a": 1}, compute)
    assert len(computed) == 3
    assert "could not be kept" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size"), [((8, 1), 8), ((4, 2), 16), ((1, 1), 64)])
def test_every_example_is_encoded_once_in_order_whatever_the_devices(
    images, params, expected, devices, batch_size
):
    mesh = make_mesh(*devices, jax.devices()[: devices[0] * devices[1]])
    encode = make_encode(ENCODER, normalize, mesh, depth=2, pool="mean")
    features, found = encode_dataset(encode, params, batches(images, batch_size), mesh)
    np.testing.assert_array_equal(found, labels())
    # The mean over patches leaves out the class token, which comes first.
    np.testing.assert_allclose(features, expected[1, :, 1:].mean(axis=1), rtol=1e-4, atol=1e-5)
    assert features.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_the_class_token_is_read_at_the_depth_that_is_asked_for(images, params, expected, depth):
    mesh = make_mesh()
    encode = make_encode(ENCODER, normalize, mesh, depth=depth, pool="class_token")
    features, _ = encode_dataset(encode, params, batches(images, 8), mesh)
    np.testing.assert_allclose(features, expected[depth - 1, :, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_norm_can_be_that_of_the_mean(images, params, depth):
    """Computes the mean of the patches without their norm, and then its norm, by the formula."""
    norm = {"scale": np.linspace(0.5, 2, 8), "bias": np.linspace(-1, 1, 8)}
    params = {**params, "norm": norm}
    apply = functools.partial(ENCODER.apply, depths=(depth,), normalize=False)
    patches = apply({"params": params}, normalize(images.astype(np.float32))).patches[0]
    mean = np.asarray(patches, np.float64).mean(axis=1)
    centred = mean - mean.mean(axis=1, keepdims=True)
    wanted = centred / np.sqrt(centred.var(axis=1, keepdims=True) + ENCODER.norm_epsilon)
    wanted = wanted * norm["scale"] + norm["bias"]
    encode = make_encode(ENCODER, normalize, make_mesh(), depth=depth, pool="normed_mean")
    features, _ = encode_dataset(encode, params, batches(images, 8), make_mesh())
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-4)
    usual = make_encode(ENCODER, normalize, make_mesh(), depth=depth, pool="mean")
    others, _ = encode_dataset(usual, params, batches(images, 8), make_mesh())
    assert np.abs(others - features).max() > 0.01


def test_raw_pixels_are_the_pixels(images):
    features, found = raw_pixels(batches(images, 8), make_mesh())
    np.testing.assert_array_equal(found, labels())
    np.testing.assert_allclose(features, images.reshape(COUNT, -1) / 255, rtol=1e-6)


def test_images_that_cannot_be_read_are_left_out(images):
    source_batches = batches(
        images, 16, corrupt={index: CorruptImage("broken") for index in (0, 20)}
    )
    features, found = raw_pixels(source_batches, make_mesh())
    kept = np.delete(np.arange(COUNT), [0, 20])
    np.testing.assert_array_equal(found, labels()[kept])
    np.testing.assert_allclose(features, images[kept].reshape(len(kept), -1) / 255, rtol=1e-6)


def test_accuracy_is_the_share_that_is_predicted_right(images):
    def walk(first, last):
        return batches_of(images[first:last], np.arange(last - first, dtype=np.int32) % 5)

    def batches_of(some, its_labels):
        return eval_batches(ArraySource(some, its_labels), (8, 8), 8)

    labelled = LabelledImages(
        train_batches=functools.partial(walk, 0, 20),
        test_batches=functools.partial(walk, 20, 30),
        num_classes=5,
        mesh=make_mesh(),
    )
    train, test = labelled.pixels()
    assert (len(train[0]), len(test[0])) == (20, 10)
    seen = {}

    def predict(train_features, train_labels, test_features, *, num_classes):
        seen.update(num_classes=num_classes, labels=train_labels)
        return np.where(np.arange(len(test_features)) < 7, np.arange(10) % 5, 99)

    assert labelled.accuracy(predict, train, test) == 0.7
    assert seen["num_classes"] == 5
    np.testing.assert_array_equal(seen["labels"], np.arange(20) % 5)
    np.testing.assert_array_equal(labelled.pixels()[1][0], test[0])  # a second pass


def test_untrained_parameters_are_those_the_run_started_with():
    found = untrained_params(lambda key: {"a": jax.random.normal(key, (3,))}, seed=5)
    np.testing.assert_array_equal(found["a"], jax.random.normal(jax.random.key(5), (3,)))


# ---- the cache


def examples(offset):
    rng = np.random.default_rng(offset)
    return tuple(
        (rng.normal(size=(n, 4)).astype(np.float32), np.arange(n, dtype=np.int32)) for n in (6, 3)
    )


def must_not_be_called():
    raise AssertionError("the cache was not used")


def test_the_same_key_is_computed_once(tmp_path):
    folder = tmp_path / "features"
    key = {"step": 10, "pool": "mean", "depth": 2}
    first = cached(folder, key, lambda: examples(1))
    again = cached(folder, dict(reversed(key.items())), must_not_be_called)
    for found in (first, again):
        jax.tree.map(np.testing.assert_array_equal, found, examples(1))
    assert [array.dtype for array in jax.tree.leaves(again)] == [np.float32, np.int32] * 2


@pytest.mark.parametrize("change", [{"step": 20}, {"pool": "class_token"}, {"limit": 5}])
def test_another_key_is_computed_anew(tmp_path, change):
    key = {"step": 10, "pool": "mean"}
    cached(tmp_path, key, lambda: examples(1))
    found = cached(tmp_path, key | change, lambda: examples(2))
    jax.tree.map(np.testing.assert_array_equal, found, examples(2))
    jax.tree.map(
        np.testing.assert_array_equal, cached(tmp_path, key, must_not_be_called), examples(1)
    )


def test_a_computation_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, {"a": 1}, lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []

"""A batch in parts gives the loss and the gradient that it gives as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddae_jax.data.batch_augment import smoothed_one_hot
from ddae_jax.masking import random_mask
from ddae_jax.methods import find_method
from ddae_jax.methods.supervised import LabelledTask, classification_error
from ddae_jax.models.classifier import Classifier
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import make_mesh, put_batch

TASK = LabelledTask(
    Classifier(ViT((8, 8), 4, width=16, depth=1, num_heads=2), 3, init_deviation=0.1),
    classification_error,
    keeps_average=True,
)
BATCH = {
    "image": np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32),
    "label": (np.arange(16) % 3).astype(np.int32),
}


ENCODER = ViT((8, 8), 2, width=16, depth=2, num_heads=2)
METHOD = find_method("ddae").build(
    ENCODER,
    None,
    sample_mask=functools.partial(random_mask, grid=ENCODER.grid, num_masked=10),
    num_masked=10,
    depths=(1, 2),
)


def of_the_whole_batch(normalization):
    """A method whose targets are standardised over the batch, and that samples hidden patches."""
    return find_method("ddae").build(
        ENCODER,
        Decoder(ENCODER.grid, width=8, depth=1, num_heads=2, kind="cross"),
        sample_mask=functools.partial(random_mask, grid=ENCODER.grid, num_masked=10),
        num_masked=10,
        depths=(1, 2),
        intermediate_share=0.5,
        feature_normalization=normalization,
    )


def prepare(key, batch):
    return batch["image"], smoothed_one_hot(batch["label"], 3, 0.1)


def after_two_steps(micro_batches, num_devices, method=TASK, prepare=prepare):
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    program = TrainProgram(
        method,
        prepare,
        optax.sgd(0.5),
        learning_rate=optax.constant_schedule(0.5),
        momentum=optax.constant_schedule(0.5),
        channels=3,
        seed=0,
        micro_batches=micro_batches,
    )
    take, state = program.jit(mesh), program.init_state(mesh)
    for _ in range(2):
        state, metrics = take(state, put_batch(BATCH, mesh))
    return jax.device_get((state, metrics))


@pytest.fixture(scope="module")
def whole():
    return after_two_steps(1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batches", "num_devices"), [(4, 1), (2, 8)])
def test_parts_of_a_batch_learn_what_the_whole_does(micro_batches, num_devices, whole):
    found = after_two_steps(micro_batches, num_devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, whole)


@pytest.mark.slow
def test_parts_of_a_pretraining_batch_learn_what_the_whole_does_with_the_same_masks():
    images = lambda key, batch: batch["image"]  # noqa: E731
    whole = after_two_steps(1, 1, METHOD, images)
    found = after_two_steps(4, 2, METHOD, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, whole)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["batch", "position"])
def test_parts_on_several_devices_have_the_statistics_of_the_whole_batch(normalization):
    method = of_the_whole_batch(normalization)
    images = lambda key, batch: batch["image"]  # noqa: E731
    whole = after_two_steps(1, 1, method, images)
    found = after_two_steps(4, 2, method, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-5), found, whole)


@pytest.mark.slow
def test_the_average_follows_the_parameters(whole):
    state, _ = whole
    start = jax.jit(lambda key: TASK.init(key, 3))(jax.random.key(0))
    kernel = state.teacher["average"]["classifier"]["kernel"]
    first, last = start["classifier"]["kernel"], state.params["classifier"]["kernel"]
    assert 0 < jnp.abs(kernel - first).max() < jnp.abs(last - first).max()
    assert jnp.abs(kernel - last).max() > 0


def test_each_device_keeps_its_images():
    """No image travels: the program has no collective operation but the sums of gradients."""
    mesh = make_mesh()
    program = TrainProgram(
        TASK,
        lambda key, batch: (batch["image"], smoothed_one_hot(batch["label"], 3)),
        optax.sgd(0.5),
        learning_rate=optax.constant_schedule(0.5),
        momentum=optax.constant_schedule(0.5),
        channels=3,
        seed=0,
        micro_batches=2,
    )
    lowered = program.jit(mesh).lower(program.state_shapes(), put_batch(BATCH, mesh))
    compiled = lowered.compile().as_text()
    assert "all-reduce" in compiled
    assert "all-to-all" not in compiled
    assert "all-gather" not in compiled
    assert "collective-permute" not in compiled

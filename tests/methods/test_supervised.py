"""The moving average of parameters: by hand after a step, and its use in predictions."""

import jax
import numpy as np
import optax
import pytest

from ddae_jax.methods.supervised import LabelledTask, classification_error
from ddae_jax.models.classifier import Classifier
from ddae_jax.models.vit import ViT
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import make_mesh

DECAY = 0.75
NETWORK = Classifier(ViT((8, 8), 4, width=8, depth=1, num_heads=2), 3, init_deviation=0.1)
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[np.arange(6) % 3]


def task(keeps_average):
    return LabelledTask(NETWORK, classification_error, keeps_average=keeps_average)


@pytest.fixture(scope="module")
def averaged():
    """The state before and after one step."""
    program = program_of(task(True))
    before = program.init_state(make_mesh(1, 1, jax.devices()[:1]))
    after, _ = jax.jit(program.train_step)(before, (IMAGES, TARGETS))
    return jax.device_get((before, after))


def program_of(trained):
    return TrainProgram(
        trained,
        lambda key, batch: batch,
        optax.sgd(0.5),
        learning_rate=optax.constant_schedule(0.5),
        momentum=optax.constant_schedule(DECAY),
        channels=1,
        seed=0,
    )


def test_a_step_leaves_a_state_of_the_types_that_it_took():
    """This includes batch statistics. Other types would compile the second step again."""
    normed = LabelledTask(NETWORK.clone(normalization="batch"), classification_error)
    program = program_of(normed)
    before = program.state_shapes()
    after, _ = jax.eval_shape(program.train_step, before, (IMAGES, TARGETS))
    assert jax.tree.leaves(before.teacher["statistics"])
    assert after == before  # shapes, dtypes and weak types


def test_the_average_is_decay_of_the_old_and_the_rest_of_the_new(averaged):
    before, after = averaged
    old, new, found = (
        jax.tree.leaves(tree) for tree in (before.params, after.params, after.teacher["average"])
    )
    assert max(np.abs(a - b).max() for a, b in zip(old, new, strict=True)) > 1e-2  # they differ
    for a, b, average in zip(old, new, found, strict=True):
        np.testing.assert_allclose(average, DECAY * a + (1 - DECAY) * b, atol=1e-6)


def test_predictions_are_those_of_the_average(averaged):
    _, after = averaged
    logits = jax.jit(lambda params: NETWORK.apply({"params": params}, IMAGES))
    found = jax.jit(task(True).predict)(after.params, after.teacher, IMAGES)
    np.testing.assert_allclose(found, logits(after.teacher["average"]), atol=1e-6)
    assert np.abs(found - logits(after.params)).max() > 1e-2


@pytest.mark.slow
def test_without_an_average_predictions_are_those_of_the_parameters(averaged):
    params = averaged[1].params
    teacher = task(False).init_teacher(params)
    assert teacher["average"] == {}
    expected = jax.jit(NETWORK.apply)({"params": params}, IMAGES)
    found = jax.jit(task(False).predict)(params, teacher, IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-6)

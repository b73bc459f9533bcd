import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.masking import random_mask
from ddae_jax.methods.ddae import ddae
from ddae_jax.models.vit import ViT
from ddae_jax.training.optimizer import make_optimizer
from ddae_jax.training.program import TrainProgram, step_key
from ddae_jax.training.schedules import learning_rate_schedule, momentum_schedule
from ddae_jax.training.sharding import make_mesh, put_batch, state_sharding

SEED = 11
TOTAL_STEPS = 20
LEARNING_RATE = learning_rate_schedule(0.02, 256, 2, TOTAL_STEPS)
MOMENTUM = momentum_schedule(0.9, 1.0, TOTAL_STEPS)
BATCH = 16
DEPTHS = (1, 2)
PLACES = [f"{objective}/depth_{depth}" for objective in ("pixels", "features") for depth in DEPTHS]


def tiny_method(mode="deep_dynamic"):
    depths = DEPTHS if mode != "last" else (2,)
    return ddae(
        ViT((16, 16), patch_size=4, width=16, depth=2, num_heads=2, mlp_ratio=2.0),
        None,
        sample_mask=functools.partial(random_mask, grid=(4, 4), num_masked=10),
        num_masked=10,
        depths=depths,
        channels=1,
        mode=mode,
    )


def tiny_optimizer():
    return make_optimizer(LEARNING_RATE, total_steps=TOTAL_STEPS, clip_norm=0.5)


def prepare_images(key, images):
    """Normalises, and shifts brightness at random: an augmentation that uses its key."""
    return images.astype(jnp.float32) / 127.5 - 1 + 0.1 * jax.random.normal(key, ())


def batch_of(number):
    rng = np.random.default_rng(number)
    smooth = rng.integers(0, 256, (BATCH, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
    return (smooth // 2 + rng.integers(0, 128, smooth.shape)).astype(np.uint8)


def program_of(method, optimizer):
    return TrainProgram(
        task=method,
        preprocess=prepare_images,
        optimizer=optimizer,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        channels=1,
        seed=SEED,
    )


@dataclasses.dataclass
class Trainer:
    """A compiled step and the host copy of the state that it starts from."""

    mesh: jax.sharding.Mesh
    step: Callable
    start: object

    def place(self, state=None):
        """A fresh copy on the devices: the step takes its own away."""
        state = self.start if state is None else state
        return jax.device_put(state, state_sharding(self.mesh, state))

    def run(self, num_steps):
        """Host copies of the states, the one at the start included, and of the metrics."""
        state, states, metrics = self.place(), [self.start], []
        for number in range(num_steps):
            state, measured = self.step(state, put_batch(batch_of(number), self.mesh))
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(measured))
        return states, metrics


@pytest.fixture(scope="module")
def make_trainer():
    method, optimizer = tiny_method(), tiny_optimizer()
    program = program_of(method, optimizer)
    fresh = dataclasses.replace(program, seed=0).init_state(make_mesh(1, 1, jax.devices()[:1]))
    start = jax.device_get(fresh)

    @functools.cache
    def make(data, fsdp):
        mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        return Trainer(mesh, program.jit(mesh), start)

    return make


@pytest.fixture(scope="module")
def one_device(make_trainer):
    return make_trainer(1, 1)


@pytest.fixture(scope="module")
def one_device_run(one_device):
    return one_device.run(4)


@pytest.fixture(scope="module")
def loss_and_gradients():
    """Loss, and its gradients with respect to student and teacher, without any training code."""
    method = tiny_method()

    @jax.jit
    def compute(params, teacher, images, step):
        augment_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(SEED), step))
        images = prepare_images(augment_key, images)
        (loss, _), gradients = jax.value_and_grad(method.loss, (0, 1), has_aux=True)(
            params, teacher, images, loss_key
        )
        return loss, *gradients

    return compute


def named_leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def global_norm(tree):
    return np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (1, 8)])
def test_eight_devices_give_the_losses_and_parameters_of_one(
    make_trainer, one_device_run, data, fsdp
):
    states, metrics = one_device_run
    found_states, found_metrics = make_trainer(data, fsdp).run(len(metrics))
    for expected, found in zip(metrics, found_metrics, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=5e-6, atol=5e-7, err_msg=name)
    found = named_leaves(found_states[-1].params)
    for name, expected in named_leaves(states[-1].params).items():
        if "'qkv'" in name and "bias" in name:
            # The loss does not depend on the keys' bias: its gradient is rounding, which Adam
            # brings to full size.
            expected, found[name] = (
                np.delete(p.reshape(3, -1), 1, 0) for p in (expected, found[name])
            )
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=3e-6, err_msg=name)


def test_the_state_keeps_its_layout(make_trainer):
    trainer = make_trainer(1, 8)
    before = trainer.place()
    layout = jax.tree.map(lambda leaf: leaf.sharding, before)
    after, _ = trainer.step(before, put_batch(batch_of(0), trainer.mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == layout


@pytest.mark.slow
def test_teacher_follows_the_student(one_device_run):
    states, metrics = one_device_run
    for number, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        momentum = 1 - 0.1 * (np.cos(np.pi * number / TOTAL_STEPS) + 1) / 2
        np.testing.assert_allclose(metrics[number]["momentum"], momentum, rtol=1e-6)
        expected = jax.tree.map(
            lambda teacher, student, m=momentum: m * teacher + (1 - m) * student,
            before.teacher,
            after.params["encoder"],
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            after.teacher,
            expected,
        )
    moved = jax.tree.map(lambda a, b: np.any(a != b), states[0].teacher, states[-1].teacher)
    assert moved["patch_embedding"]["kernel"]


def test_teacher_starts_as_a_copy_of_the_students_encoder():
    program = program_of(tiny_method(), tiny_optimizer())
    state = program.init_state(make_mesh(1, 1, jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, state.teacher, state.params["encoder"])
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher(one_device_run, loss_and_gradients):
    # A teacher unlike the student: else its gradient could vanish by chance.
    state = one_device_run[0][-1]
    _, of_student, of_teacher = loss_and_gradients(state.params, state.teacher, batch_of(0), 0)
    assert global_norm(of_student) > 0.01
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


def test_randomness_of_a_step_is_that_of_seed_and_step(one_device_run, loss_and_gradients):
    states, metrics = one_device_run
    for number in (0, 3):
        before = states[number]
        loss, gradient, _ = loss_and_gradients(
            before.params, before.teacher, batch_of(number), number
        )
        np.testing.assert_allclose(metrics[number]["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(
            metrics[number]["gradient_norm"], global_norm(gradient), rtol=1e-5
        )
    state = states[0]
    losses = {
        float(loss_and_gradients(state.params, state.teacher, batch_of(0), step)[0])
        for step in range(4)
    }
    assert len(losses) == 4


def test_step_key_is_fold_in_of_seed_and_step():
    expected = jax.random.fold_in(jax.random.key(3), 7)
    assert jax.random.key_data(step_key(3, 7)).tolist() == jax.random.key_data(expected).tolist()
    others = [step_key(3, 8), step_key(4, 7)]
    assert all(jnp.any(jax.random.key_data(o) != jax.random.key_data(expected)) for o in others)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 2)])
def test_the_step_is_deterministic(make_trainer, data, fsdp):
    trainer = make_trainer(data, fsdp)
    first, second = (trainer.run(2) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_beta_rises_from_where_it_starts(one_device_run):
    states, metrics = one_device_run
    betas = [state.params["supervision"]["beta"] for state in states]
    assert betas[0].tolist() == [[-0.5, -0.5], [-0.5, -0.5]]
    for before, after in zip(betas, betas[1:], strict=False):
        assert (after > before).all()
    shown = [metrics[-1][f"beta/{place}"] for place in PLACES]
    np.testing.assert_array_equal(shown, betas[-2].ravel())  # as the step's loss used it


def test_betas_of_all_objectives_and_depths_keep_step(one_device_run):
    """Whatever the size of their errors, which differ here by a factor of 1.4."""
    states, metrics = one_device_run
    losses = [metrics[0][f"loss/{place}"] for place in PLACES]
    assert max(losses) > 1.4 * min(losses)
    first, last = (states[i].params["supervision"]["beta"] for i in (0, -1))
    rises = last - first
    assert rises.max() < 1.1 * rises.min()
    # A step is beta_step / total steps times a mean of -log of distances, which is at most log 3.
    assert 0.1 * 4 / TOTAL_STEPS < rises.min() < np.log(3) * 4 / TOTAL_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["last", "deep"])
def test_without_dynamics_there_is_no_beta_and_the_loss_is_plain(one_device, mode):
    method = tiny_method(mode)
    shapes = jax.eval_shape(functools.partial(method.init, channels=1), jax.random.key(0))
    params = {name: part for name, part in one_device.start.params.items() if name != "supervision"}
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    loss, supervised = jax.jit(method.loss)(
        params, params["encoder"], prepare_images(jax.random.key(1), batch_of(0)), jax.random.key(2)
    )
    assert supervised.losses.shape == (2, 1 if mode == "last" else 2)
    np.testing.assert_array_equal(supervised.beta, 0)
    np.testing.assert_array_equal(supervised.losses, supervised.plain_losses)
    np.testing.assert_allclose(loss, supervised.plain_losses.sum(), rtol=1e-6)


def test_metrics_name_every_objective_and_depth(one_device_run):
    metrics = one_device_run[1]
    kinds = ("loss", "plain_loss", "beta")
    general = {"loss", "plain_loss", "gradient_norm", "parameter_norm", "learning_rate", "momentum"}
    assert metrics[0].keys() == general | {f"{kind}/{place}" for kind in kinds for place in PLACES}
    for number, measured in enumerate(metrics):
        for kind in ("loss", "plain_loss"):
            total = sum(measured[f"{kind}/{place}"] for place in PLACES)
            np.testing.assert_allclose(measured[kind], total, rtol=1e-6)
        for place in PLACES:  # distances are at most 1, so that a negative beta adds weight
            excess = measured[f"loss/{place}"] - measured[f"plain_loss/{place}"]
            assert np.sign(excess) == -np.sign(measured[f"beta/{place}"])
        np.testing.assert_allclose(measured["learning_rate"], LEARNING_RATE(number))
        assert all(value.dtype == np.float32 and value.shape == () for value in measured.values())


def test_the_first_step_of_a_warm_up_moves_beta_and_nothing_else(one_device_run):
    before, after = (named_leaves(state.params) for state in one_device_run[0][:2])
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved == {"['supervision']['beta']"}


def test_steps_are_counted(one_device_run):
    assert [int(state.step) for state in one_device_run[0]] == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 2)])
def test_the_state_is_donated(make_trainer, data, fsdp):
    trainer = make_trainer(data, fsdp)
    state = trainer.place()
    trainer.step(state, put_batch(batch_of(0), trainer.mesh))
    kept = [name for name, leaf in named_leaves(state).items() if not leaf.is_deleted()]
    assert kept == []


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 2)])
def test_a_step_makes_no_hidden_transfer(make_trainer, data, fsdp):
    trainer = make_trainer(data, fsdp)
    state = trainer.place()
    trainer.step(trainer.place(), put_batch(batch_of(0), trainer.mesh))  # compiles
    with jax.transfer_guard("disallow"):
        state, metrics = trainer.step(state, put_batch(batch_of(0), trainer.mesh))
        with pytest.raises(Exception, match="[Dd]isallowed"):
            state.step + np.ones(3)  # the guard is on
    assert np.isfinite(metrics["loss"])

"""DDAE as a whole: its loss by hand, its teacher, its one head, and its figures' arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ddae_jax.masking import random_mask
from ddae_jax.methods import METHODS, find_method
from ddae_jax.methods.ddae import ddae
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT
from six_patches import (
    GRID,
    MASK,
    NUM_MASKED,
    PATCH,
    SIZE,
    VISIBLE,
    WIDTH,
    always_the_same_mask,
    images_of,
    key,
    numpy_patches,
    random_like,
)

INPUTS = ("full", "visible")
both_inputs = pytest.mark.parametrize("inputs", INPUTS)


def sampled_mask(key, batch):
    return random_mask(key, batch, GRID, NUM_MASKED)


class Example:
    """A method with compiled functions, random parameters and a teacher that differs from them."""

    def __init__(self, method):
        self.method = method
        shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), 3))
        self.params = random_like(shapes)
        self.teacher = random_like(method.init_teacher(shapes), seed=1)
        self.init = jax.jit(lambda: method.init(jax.random.key(0), 3))
        self.targets = jax.jit(method.targets)
        self.predict = jax.jit(
            lambda params, images: method.student.apply(
                {"params": params}, images, MASK, method.num_visible, method="predict"
            )
        )
        self.visualize = jax.jit(method.visualize)
        self.loss = jax.jit(method.loss, static_argnames="is_training")
        # ((loss, output), (gradient by the student's parameters, gradient by the teacher's))
        self.step = jax.jit(jax.value_and_grad(method.loss, argnums=(0, 1), has_aux=True))


@functools.cache
def example_of(inputs="full", depths=(1, 2), sample_mask=always_the_same_mask, **options):
    encoder_options = {
        "drop_path_rate": options.pop("drop_path_rate", 0.0),
        "dtype": options.pop("dtype", jnp.float32),
    }
    encoder = ViT(SIZE, PATCH, width=WIDTH, depth=2, num_heads=2, **encoder_options)
    decoder = None
    if inputs == "visible":
        decoder = Decoder(GRID, width=12, depth=1, num_heads=2, dtype=encoder.dtype)
    method = ddae(
        encoder,
        decoder,
        sample_mask=sample_mask,
        num_masked=NUM_MASKED,
        depths=depths,
        **{"pixel_weight": 2.0, "feature_weight": 0.5, **options},
    )
    return Example(method)


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def layer_normalised(features: np.ndarray) -> np.ndarray:
    mean, variance = features.mean(-1, keepdims=True), features.var(-1, keepdims=True)
    return (features - mean) / np.sqrt(variance + 1e-6)


def losses_by_hand(inputs, method, params, teacher, images):
    """Computes ``L_os`` in NumPy from the networks' features."""
    encoder, decoder = method.student.encoder, method.student.decoder

    @jax.jit
    def features():
        taught = encoder.apply({"params": teacher}, images, depths=(1, 2), normalize=False)
        own = {"params": params["encoder"]}
        if inputs == "full":
            return taught.patches, encoder.apply(own, images, mask=MASK, depths=(1, 2)).patches
        seen = encoder.apply(own, images, visible=VISIBLE, depths=(1, 2))
        return taught.patches, decoder.apply({"params": params["decoder"]}, seen, MASK)

    taught, decoded = (np.asarray(value, np.float64) for value in features())
    outputs = decoded @ params["head"]["kernel"] + params["head"]["bias"]
    predictions = np.split(outputs, [PATCH * PATCH * 3], axis=-1)
    patches = numpy_patches(images.astype(np.float64))
    pixels = patches - patches.mean(-1, keepdims=True)
    pixels /= np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    targets = [np.stack([pixels, pixels]), layer_normalised(taught)]
    losses = np.zeros((2, 2))
    for o, s in np.ndindex(2, 2):
        errors = np.square(predictions[o][s] - targets[o][s]).mean(axis=-1)
        beta = float(params["supervision"]["beta"][o, s])
        for image, hidden in enumerate(MASK):
            distance = ndimage.distance_transform_edt(hidden.reshape(GRID)).ravel()
            weights = (distance[hidden] / distance.max()) ** beta
            losses[o, s] += (weights * errors[image, hidden]).sum() / MASK.sum()
    return losses


@both_inputs
def test_the_loss_is_the_one_written_out_by_hand(inputs):
    example, images = example_of(inputs), images_of()
    params, teacher = example.params, example.teacher
    (loss, supervised), _ = example.step(params, teacher, images, key())
    expected = losses_by_hand(inputs, example.method, params, teacher, images)
    np.testing.assert_allclose(supervised.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(loss, 2 * expected[0].sum() + 0.5 * expected[1].sum(), rtol=1e-5)
    assert loss.dtype == jnp.float32


@pytest.mark.slow
@both_inputs
def test_the_teacher_receives_no_gradient_but_is_listened_to(inputs):
    example, images = example_of(inputs), images_of()
    (loss, _), (_, by_teacher) = example.step(example.params, example.teacher, images, key())
    assert jax.tree.structure(by_teacher) == jax.tree.structure(example.teacher)
    for leaf in jax.tree.leaves(by_teacher):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    other_teacher = random_like(example.teacher, seed=2)
    (other_loss, _), _ = example.step(example.params, other_teacher, images, key())
    assert abs(other_loss - loss) > 1e-3


@both_inputs
def test_every_parameter_of_the_student_receives_a_gradient(inputs):
    example = example_of(inputs)
    _, (by_student, _) = example.step(example.params, example.teacher, images_of(), key())
    unmoved = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(by_student)
        if not np.abs(leaf).max() > 0
    ]
    assert unmoved == []


def test_the_teacher_is_the_students_encoder_and_starts_as_it():
    example = example_of("full")
    params = example.params
    teacher = example.method.init_teacher(params)
    jax.tree.map(np.testing.assert_array_equal, teacher, params["encoder"])
    assert "head" not in teacher
    # With nothing hidden and equal parameters, student and teacher compute the same features.
    targets = example.targets(teacher, images_of())["features"]
    encode = functools.partial(example.method.student.encoder.apply, depths=(1, 2), normalize=False)
    nothing_hidden = np.zeros((3, 6), bool)
    features = jax.jit(encode)({"params": params["encoder"]}, images_of(), mask=nothing_hidden)
    np.testing.assert_allclose(targets, features.patches, rtol=1e-4, atol=1e-5)


def test_features_are_compared_at_the_same_depth():
    example = example_of("full")
    teacher, images = example.teacher, images_of()
    targets = np.asarray(example.targets(teacher, images)["features"])
    assert targets.shape == (2, 3, 6, WIDTH)
    other = {**teacher, "block_02": jax.tree.map(lambda leaf: leaf + 0.1, teacher["block_02"])}
    changed = np.asarray(example.targets(other, images)["features"])
    np.testing.assert_array_equal(changed[0], targets[0])
    assert np.abs(changed[1] - targets[1]).max() > 1e-3


def test_the_teacher_sees_the_whole_image():
    example = example_of("full")

    def of_images(images):
        return (example.targets(example.teacher, images)["features"] ** 3).sum()

    assert (np.asarray(jax.jit(jax.grad(of_images))(images_of())) != 0).all()


@both_inputs
def test_predictions_do_not_depend_on_hidden_pixels(inputs):
    example = example_of(inputs)
    hidden = MASK.reshape(3, *GRID).repeat(PATCH, axis=1).repeat(PATCH, axis=2)[..., None]
    repainted = np.where(hidden, images_of(seed=1), images_of())
    predictions = example.predict(example.params, images_of())
    assert {name: value.shape for name, value in predictions.items()} == {
        "pixels": (2, 3, 6, 12),
        "features": (2, 3, 6, WIDTH),
    }
    after = example.predict(example.params, repainted)
    jax.tree.map(np.testing.assert_array_equal, after, predictions)


@both_inputs
def test_deep_is_deep_dynamic_at_beta_zero(inputs):
    deep, dynamic = example_of(inputs, mode="deep"), example_of(inputs)
    params, teacher = deep.params, deep.teacher
    assert "supervision" not in params
    with_beta = {**params, "supervision": {"beta": np.zeros((2, 2), np.float32)}}
    of_deep, _ = deep.loss(params, teacher, images_of(), key())
    (of_dynamic, _), _ = dynamic.step(with_beta, teacher, images_of(), key())
    np.testing.assert_allclose(of_dynamic, of_deep, rtol=1e-6)


def test_last_is_the_last_depth_of_deep():
    last, deep = example_of("full", depths=(2,), mode="last"), example_of("full", mode="deep")
    params, teacher = deep.params, deep.teacher
    _, of_last = last.loss(params, teacher, images_of(), key())
    _, of_deep = deep.loss(params, teacher, images_of(), key())
    assert of_last.losses.shape == (2, 1)
    np.testing.assert_allclose(of_last.losses[:, 0], of_deep.losses[:, 1], rtol=1e-6)
    expected = 2 * of_deep.losses[0, 1] + 0.5 * of_deep.losses[1, 1]
    np.testing.assert_allclose(of_last.loss, expected, rtol=1e-6)


@both_inputs
def test_supervised_depths_add_no_parameter_but_their_betas(inputs):
    shallow, deep = example_of(inputs, depths=(2,)), example_of(inputs)
    assert count(deep.params) - count(shallow.params) == 2 * (2 - 1)
    assert count(deep.params) - count(example_of(inputs, mode="deep").params) == 2 * 2
    # One head predicts both the pixels of a patch and its features.
    width = WIDTH if inputs == "full" else 12
    assert deep.params["head"]["kernel"].shape == (width, PATCH * PATCH * 3 + WIDTH)


def test_without_the_features_there_is_no_teacher():
    example = example_of(feature_weight=0.0)
    assert not example.method.has_momentum_encoder
    assert list(example.method.objectives) == ["pixels"]
    params = example.params
    assert example.method.init_teacher(params) == {}
    assert params["supervision"]["beta"].shape == (1, 2)
    assert params["head"]["kernel"].shape == (WIDTH, 12)
    _, alone = example.loss(params, {}, images_of(), key())
    both = example_of("full")
    head = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[..., :8]], -1), params["head"])
    beta = params["supervision"]["beta"].repeat(2, axis=0)
    with_features = {**params, "head": head, "supervision": {"beta": beta}}
    (_, together), _ = both.step(with_features, both.teacher, images_of(), key())
    np.testing.assert_allclose(alone.losses[0], together.losses[0], rtol=1e-5)


def test_without_the_pixels_there_is_nothing_to_reconstruct():
    example = example_of(pixel_weight=0.0)
    assert example.method.has_momentum_encoder
    assert list(example.method.objectives) == ["features"]
    seen = example.visualize(example.params, example.teacher, images_of(), key())
    assert "reconstructions" not in seen


@pytest.mark.parametrize(("pixel_weight", "feature_weight"), [(0.0, 0.0), (-1.0, 1.0), (1.0, -0.5)])
def test_no_objective_or_a_negative_weight_is_an_error_naming_both(pixel_weight, feature_weight):
    message = f"pixel_weight={pixel_weight}, feature_weight={feature_weight}"
    with pytest.raises(ValueError, match=message):
        example_of(pixel_weight=pixel_weight, feature_weight=feature_weight)


def test_the_loss_is_a_function_of_its_key():
    example = example_of(sample_mask=sampled_mask, drop_path_rate=0.5)
    params, teacher, images = example.params, example.teacher, images_of()
    losses = [example.loss(params, teacher, images, key(seed))[0] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_stochastic_depth_is_the_students_in_training_only():
    example = example_of(drop_path_rate=0.5)  # the mask is fixed: only this depends on the key
    params, teacher, images = example.params, example.teacher, images_of()

    def losses(is_training):
        return {
            float(example.loss(params, teacher, images, key(seed), is_training=is_training)[0])
            for seed in range(4)
        }

    assert len(losses(is_training=True)) > 1
    (expected, _), _ = example_of("full").step(params, teacher, images, key())
    assert list(losses(is_training=False)) == [pytest.approx(float(expected), 1e-6)]


@pytest.mark.slow
@both_inputs
def test_bfloat16_keeps_parameters_gradients_and_losses_in_float32(inputs):
    example, plain = example_of(inputs, dtype=jnp.bfloat16), example_of(inputs)
    inputs = example.params, example.teacher, images_of(), key()
    (loss, supervised), gradients = example.step(*inputs)
    assert loss.dtype == supervised.losses.dtype == jnp.float32
    shapes = jax.eval_shape(example.init)
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes, gradients))} == {jnp.dtype("float32")}
    (expected, _), _ = plain.step(*inputs)
    assert loss != expected
    assert loss == pytest.approx(float(expected), rel=0.02)


@both_inputs
def test_what_people_look_at_is_what_the_documentation_says(inputs):
    example = example_of(inputs)
    params, images = example.params, images_of()
    seen = example.visualize(params, example.teacher, images, key())
    assert {name: value.shape for name, value in seen.items()} == {
        "mask": (3, 6),
        "distance": (3, 6),
        "weights": (2, 2, 3, 6),
        "beta": (2, 2),
        "reconstructions": (2, 3, *SIZE, 3),
    }
    np.testing.assert_array_equal(seen["mask"], MASK)
    np.testing.assert_array_equal(seen["beta"], params["supervision"]["beta"])
    distance = np.stack([ndimage.distance_transform_edt(row.reshape(GRID)).ravel() for row in MASK])
    np.testing.assert_allclose(seen["distance"], distance, rtol=1e-6)
    share = np.where(MASK, distance / distance.max(axis=1, keepdims=True), 1)
    weights = share ** params["supervision"]["beta"][..., None, None] * MASK
    np.testing.assert_allclose(seen["weights"], weights, rtol=1e-5)


@pytest.mark.parametrize("is_normalized", [True, False])
def test_reconstructions_are_predictions_in_the_units_of_the_images(is_normalized):
    example = example_of("full", **({} if is_normalized else {"normalize_pixels": False}))
    params, images = example.params, images_of()
    predicted = np.asarray(example.predict(params, images)["pixels"], np.float64)
    if is_normalized:
        patches = numpy_patches(images.astype(np.float64))
        deviation = np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
        predicted = predicted * deviation + patches.mean(-1, keepdims=True)
    seen = example.visualize(params, example.teacher, images, key())
    reconstructions = np.asarray(seen["reconstructions"])
    for depth in range(2):
        np.testing.assert_allclose(
            numpy_patches(reconstructions[depth]), predicted[depth], rtol=1e-4, atol=1e-5
        )


def test_initial_beta_is_negative_and_depth_weights_pass_through():
    example = example_of(depth_weights=(0.0, 1.0))
    params = example.init()
    np.testing.assert_array_equal(params["supervision"]["beta"], np.full((2, 2), -0.5, np.float32))
    loss, supervised = example.loss(params, example.method.init_teacher(params), images_of(), key())
    expected = 2 * supervised.losses[0, 1] + 0.5 * supervised.losses[1, 1]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_methods_are_found_by_name_and_an_unknown_one_names_the_nearest():
    assert find_method("ddae").build is ddae
    with pytest.raises(ValueError, match="method='ddea'") as error:
        find_method("ddea")
    assert "did you mean 'ddae'?" in str(error.value)
    with pytest.raises(ValueError, match="known: ") as error:
        find_method("resnet")
    assert all(name in str(error.value) for name in METHODS)
    assert "did you mean" not in str(error.value)

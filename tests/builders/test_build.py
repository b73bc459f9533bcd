import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddae_jax import pretrain
from ddae_jax.builders import evaluation
from ddae_jax.builders.data import (
    build_eval_batches,
    build_preprocess,
    build_view,
    settle_crop_share,
)
from ddae_jax.builders.evaluation import build_encode, build_labelled_images, build_predict
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.optimization import build_learning_rate, build_momentum, build_optimizer
from ddae_jax.config import pretrain_defaults
from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.view import View
from ddae_jax.jobs.job import DataSpec, make_schedule
from ddae_jax.models import vit
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import make_mesh


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(width=16, depth=3, num_heads=2))


def tiny(**changes):
    """A tiny run on colour images; ``__`` stands for the dot."""
    config = pretrain_defaults()
    base = {
        "batch_size": 16,
        "model.size": "micro",
        "model.image_size": (16, 8),
        "model.patch_size": 4,
        "model.dtype": "float32",
        "mask.ratio": 0.5,
        "data.mean": (0.5, 0.25, 0.75),
        "data.std": (0.1, 0.2, 0.4),
        "data.test_split": "test",
    }
    config.update_from_flattened_dict(base | {k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 8, 3)).astype(np.uint8)


def by_hand(pixels):
    return (pixels / 255 - [0.5, 0.25, 0.75]) / [0.1, 0.2, 0.4]


# ---- what the step does to images first


def test_images_from_the_workers_are_only_normalised(pixels):
    prepare = build_preprocess(tiny(data__augment_in="workers"))
    found = jax.jit(prepare)(jax.random.key(0), {"image": pixels})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_hand(pixels), rtol=1e-5, atol=1e-6)


def test_images_augmented_on_the_device_are_normalised_too(pixels):
    # A crop of the whole image of the wanted size, not flipped, is the image itself.
    config = tiny(
        data__augment_in="device",
        data__crop_scale=(1.0, 1.0),
        data__crop_ratio=(0.5, 0.5),
        data__flip=False,
    )
    found = jax.jit(build_preprocess(config))(jax.random.key(0), {"image": pixels})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_hand(pixels), rtol=1e-4, atol=1e-4)


def is_brighter_on_the_left(images):
    left, right = images[:, :, :2].mean((1, 2, 3)), images[:, :, -2:].mean((1, 2, 3))
    return left > right + 1  # of 3.5 between dark and bright; the cubic kernel overshoots less


@pytest.mark.slow
def test_images_augmented_on_the_device_get_the_models_size_and_the_configs_range():
    images = np.full((64, 20, 30, 3), 51, np.uint8)
    images[:, :, 15:] = 204  # left dark, right bright
    prepare = jax.jit(build_preprocess(tiny(data__augment_in="device")))
    found = np.asarray(prepare(jax.random.key(0), {"image": images}))
    assert found.shape == (64, 16, 8, 3)
    low, high = by_hand(np.array([[0, 0, 0], [255, 255, 255]]))
    assert (found >= low - 1e-4).all()
    assert (found <= high + 1e-4).all()
    assert 5 < is_brighter_on_the_left(found).sum() < 59  # some are flipped
    never = build_preprocess(tiny(data__augment_in="device", data__flip=False))
    found = np.asarray(jax.jit(never)(jax.random.key(0), {"image": images}))
    assert not is_brighter_on_the_left(found).any()


def test_the_same_key_augments_alike_and_another_does_not(pixels):
    prepare = jax.jit(build_preprocess(tiny(data__augment_in="device")))
    first, again, other = (prepare(jax.random.key(seed), {"image": pixels}) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


# ---- model and method


def test_the_encoder_is_the_configs():
    config = tiny(
        model__positions="learned", model__use_class_token=False, model__drop_path_rate=0.1
    )
    encoder = build_encoder(config)
    assert (encoder.width, encoder.depth, encoder.num_heads) == (16, 3, 2)
    assert (encoder.image_size, encoder.patch_size, encoder.grid) == ((16, 8), 4, (4, 2))
    assert (encoder.positions, encoder.use_class_token) == ("learned", False)
    assert (encoder.drop_path_rate, encoder.dtype) == (0.1, jnp.float32)
    assert build_encoder(tiny(model__dtype="bfloat16")).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "depths", "expected"),
    [
        ("last", (), (3,)),
        ("deep", (), (2, 3)),
        ("deep_dynamic", (), (2, 3)),
        ("deep_dynamic", (1, 3), (1, 3)),
    ],
)
def test_supervision_is_the_configs(mode, depths, expected):
    config = tiny(supervision__mode=mode, supervision__depths=depths, supervision__beta_init=-0.25)
    method = build_method(config)
    assert method.supervision.depths == expected
    params = jax.eval_shape(lambda key: method.init(key, 3), jax.random.key(0))
    assert ("supervision" in params) == (mode == "deep_dynamic")
    assert method.supervision.beta_init == -0.25


def test_only_visible_input_has_a_decoder_and_only_full_input_a_mask_token():
    decoder = {"decoder__width": 8, "decoder__depth": 1, "decoder__num_heads": 1}

    def shapes(encoder_input):
        method = build_method(tiny(model__encoder_input=encoder_input, **decoder))
        return jax.eval_shape(lambda key: method.init(key, 3), jax.random.key(0))

    full, visible = shapes("full"), shapes("visible")
    assert "decoder" not in full
    assert visible["decoder"]["mask_token"].shape == (8,)
    assert "mask_token" in full["encoder"]
    assert "mask_token" not in visible["encoder"]


@pytest.mark.parametrize(
    ("kind", "ratio", "hidden"), [("random", 0.5, 4), ("random", 0.3, 2), ("block", 0.75, 6)]
)
def test_masks_hide_the_configs_share(kind, ratio, hidden):
    config = tiny(mask__kind=kind, mask__ratio=ratio, decoder__intermediate_share=1.0)
    method = build_method(config)
    mask = jax.jit(method.sample_mask, static_argnums=1)(jax.random.key(0), 5)
    assert (method.num_masked, method.num_visible) == (hidden, 8 - hidden)
    np.testing.assert_array_equal(mask.sum(axis=1), hidden)


def test_an_objective_of_weight_0_is_left_out_and_the_teacher_with_the_features():
    assert tuple(build_method(tiny()).objectives) == ("pixels", "features")
    pixels = build_method(tiny(targets__feature_weight=0.0))
    assert (tuple(pixels.objectives), pixels.has_momentum_encoder) == (("pixels",), False)
    features = build_method(tiny(targets__pixel_weight=0.0, targets__feature_weight=2.0))
    assert (tuple(features.objectives), features.has_momentum_encoder) == (("features",), True)
    assert features.supervision.objective_weights == (2.0,)
    with pytest.raises(ValueError, match="one of them is positive"):
        build_method(tiny(targets__pixel_weight=0.0, targets__feature_weight=0.0))


# ---- schedules and optimizer


def source_of(count, num_classes=None):
    names = None if num_classes is None else tuple(map(str, range(num_classes)))
    images = np.zeros((count, 16, 8, 3), np.uint8)
    return ArraySource(images, np.zeros(count, np.int32), class_names=names)


@pytest.mark.parametrize(
    ("count", "epochs", "steps_per_epoch", "total_steps"),
    [(160, 3.0, 10, 30), (175, 2.5, 10, 25), (5, 4.0, 1, 4), (160, 0.001, 10, 1)],
)
def test_steps_follow_from_images_batch_and_epochs(count, epochs, steps_per_epoch, total_steps):
    schedule = make_schedule(tiny(epochs=epochs), count)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (steps_per_epoch, total_steps)
    assert schedule.steps(1.0) == steps_per_epoch
    assert schedule.steps(0.0001) == 1


@pytest.mark.parametrize(("epochs", "count"), [(1e300, 160), (1.8e308 / 2, 160), (2.0**28, 160)])
def test_more_steps_than_can_be_counted_are_refused(epochs, count):
    with pytest.raises(
        ValueError, match=r"epochs=.* of 10 steps are .* at most 2147483647, .*=2147"
    ):
        make_schedule(tiny(epochs=epochs), count)


def test_the_longest_run_is_allowed():
    schedule = make_schedule(tiny(epochs=2.0**31 - 1), 16)
    assert schedule.total_steps == 2**31 - 1
    np.int32(schedule.total_steps)


@pytest.mark.parametrize("epochs", [1e12, 1e300, 1.7e308])
def test_what_happens_every_so_many_epochs_may_happen_never(epochs):
    config = tiny(optimizer__warmup_epochs=epochs)
    schedule = make_schedule(config, 160)
    assert schedule.total_steps < schedule.steps(epochs) < 2**31
    learning_rate = build_learning_rate(config, schedule)
    found = [float(learning_rate(step)) for step in (0, 500, 998)]
    np.testing.assert_allclose(found, np.array([0, 500, 998]) / 999 * 1.5e-4 / 16, rtol=1e-5)


def test_a_batch_larger_than_the_source_warns_with_both_numbers(caplog):
    make_schedule(tiny(batch_size=16), 16)
    assert not caplog.records
    schedule = make_schedule(tiny(batch_size=16), 7)
    assert schedule.steps_per_epoch == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "batch_size=16 is more than the 7 images" in record.getMessage()


def test_last_supervision_leaves_out_the_weights_of_several_depths():
    weights = {"supervision__depths": (1, 3), "supervision__depth_weights": (0.5, 2.0)}
    deep = build_method(tiny(supervision__mode="deep", **weights))
    last = build_method(tiny(supervision__mode="last", **weights))
    assert deep.supervision.depth_weights == (0.5, 2.0)
    assert last.supervision.depth_weights is None
    assert last.supervision.depths == (3,)


def test_the_optimizer_has_the_configs_schedules():
    config = tiny(
        epochs=10.0,
        optimizer__learning_rate=0.08,
        optimizer__end_learning_rate=0.016,
        optimizer__warmup_epochs=2.0,
        teacher__half_life_epochs=0.0,
        teacher__momentum_start=0.9,
        teacher__momentum_end=0.99,
    )
    learning_rate = build_learning_rate(config, Schedule(5, 50))
    momentum = build_momentum(config, Schedule(5, 50))
    # 0.08 * 16 / 256, reached after 2 epochs of 5 steps; at the end 0.016 * 16 / 256
    found = [float(learning_rate(step)) for step in (0, 5, 10, 30, 50)]
    np.testing.assert_allclose(found, [0, 0.0025, 0.005, 0.003, 0.001], rtol=1e-5)
    np.testing.assert_allclose([momentum(0), momentum(50)], [0.9, 0.99], rtol=1e-6)


def test_the_teachers_pace_is_the_configs_in_epochs():
    def momentum(**changes):
        config = tiny(epochs=10.0, **{f"teacher__{name}": v for name, v in changes.items()})
        return build_momentum(config, Schedule(8, 80))

    slow = {"half_life_epochs": 4.0, "half_life_start_epochs": 1.0, "hold": 0.25, "warmup": 0.5}
    slower = momentum(**slow, min_half_lives=0.0)
    half_lives = [-1 / np.log2(float(slower(step))) / 8 for step in (0, 20, 40, 60, 80)]
    np.testing.assert_allclose(half_lives, [1, 1, 2, 4, 4], rtol=1e-3)
    # The hold has 2.5 epochs: twenty half-lives of an eighth, and not the two and a half of above.
    closer = momentum(**slow, min_half_lives=20.0)
    half_lives = [-1 / np.log2(float(closer(step))) / 8 for step in (0, 20, 60, 80)]
    np.testing.assert_allclose(half_lives, [0.125, 0.125, 4, 4], rtol=1e-3)
    unhurried = momentum(**slow, min_half_lives=2.5)
    np.testing.assert_allclose(-1 / np.log2(float(unhurried(0))) / 8, 1, rtol=1e-3)
    steady = momentum(half_life_epochs=4.0, half_life_start_epochs=0.0)
    np.testing.assert_allclose(-1 / np.log2(float(steady(0))) / 8, 4, rtol=1e-3)
    copied = momentum(copy_every_epochs=0.5)
    assert [float(copied(step)) for step in range(8)] == [1, 1, 1, 0, 1, 1, 1, 0]


@pytest.mark.slow
def test_what_changes_over_a_run_follows_its_progress():
    """The step hands the share of the run that is done to the loss."""
    ramp = {"targets__feature_start": 0.25, "targets__feature_warmup": 0.5}
    config = tiny(epochs=2.0, targets__pixel_fade=1.0, **ramp)
    program = pretrain.PretrainJob(config).program(Schedule(4, 8), DataSpec())
    state = program.init_state(make_mesh(1, 1, jax.devices()[:1]))
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 8, 3)).astype(np.uint8)
    step, weights = jax.jit(program.train_step), []
    for _ in range(8):
        state, metrics = step(state, {"image": images})
        weights.append((float(metrics["weight/pixels"]), float(metrics["weight/features"])))
    features = np.clip((np.arange(8) / 8 - 0.25) / 0.5, 0, 1)
    np.testing.assert_allclose(weights, np.stack([1 - features, features], axis=1), atol=1e-6)


@pytest.mark.parametrize(("clip_norm", "first_moment"), [(1.0, 0.1 / 5), (0.0, 0.1), (9.0, 0.1)])
def test_a_clipping_norm_of_0_is_none(clip_norm, first_moment):
    config = tiny(optimizer__clip_norm=clip_norm, supervision__beta_step=2.0)
    schedule = Schedule(5, 50)
    optimizer = build_optimizer(config, build_learning_rate(config, schedule), schedule)
    params = {"layer": {"kernel": jnp.ones(25)}, "beta": jnp.zeros(1)}
    gradient = {"layer": {"kernel": jnp.ones(25)}, "beta": jnp.full(1, -3.0)}  # norm 5, and beta's
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (25,)]
    np.testing.assert_allclose(moments[0], first_moment, rtol=1e-5)
    np.testing.assert_allclose(updates["beta"], 3.0 * 2 / 50, rtol=1e-6)


# ---- evaluation


@pytest.mark.slow
def test_features_are_read_at_the_last_block_by_default_on_normalised_images(pixels):
    config = tiny()
    mesh = make_mesh(1, 1, jax.devices()[:1])
    encoder = build_encoder(config)
    variables = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, 16, 8, 3), np.float32))
    read = jax.jit(lambda images: encoder.apply(variables, images, depths=(2, 3)).patches)
    expected = read(by_hand(pixels).astype(np.float32))
    for depth, row in ((0, 1), (2, 0)):
        encode = build_encode(config, mesh, depth=depth, pool="mean")
        found = encode(variables["params"], pixels)
        np.testing.assert_allclose(found, expected[row].mean(axis=1), rtol=1e-4, atol=1e-5)


@pytest.fixture
def splits(monkeypatch):
    """What ``build_source`` finds."""
    splits = {}
    monkeypatch.setattr(evaluation, "build_source", lambda config, split: splits[split])
    return splits


def test_evaluation_batches_divide_over_the_devices(splits):
    splits.update(train=source_of(50, 3), test=source_of(20, 3))
    labelled = build_labelled_images(tiny(evaluation__batch_size=13), make_mesh())
    assert [len(batch["label"]) for batch in labelled.test_batches()] == [16, 16]
    assert labelled.num_classes == 3
    limited = build_labelled_images(tiny(), make_mesh(), limit=7)
    assert sum(batch["valid"].sum() for batch in limited.train_batches()) == 7


@pytest.mark.parametrize(("train", "test"), [(None, 3), (3, None), (None, None)])
def test_evaluation_without_labels_is_refused(splits, train, test):
    splits.update(train=source_of(5, train), test=source_of(5, test))
    counts = [f"'{s}' split has {n or 'no'} classes" for s, n in (("train", train), ("test", test))]
    with pytest.raises(ValueError, match=" and the ".join(counts)):
        build_labelled_images(tiny(), make_mesh())


def test_classes_of_the_splits_are_matched_by_their_names(splits, caplog):
    splits.update(train=source_of(5, 3), test=source_of(5, 3))
    splits["test"].class_names = ("0", "1", "cat")
    unknown = "the 'test' split has classes that the 'train' split does not have: cat"
    with pytest.raises(ValueError, match=unknown):
        build_labelled_images(tiny(), make_mesh())

    def labels():
        images = build_labelled_images(tiny(), make_mesh())
        assert images.num_classes == 3
        return [int(n) for b in images.test_batches() for n in b["label"] if n >= 0]

    as_they_are = splits["test"].labels().tolist()
    splits["test"].class_names = ("1", "0", "2")
    assert labels() == [[1, 0, 2][label] for label in as_they_are]
    splits["test"] = source_of(5, 2)
    splits["test"].class_names = ("2", "0")
    assert labels() == [[2, 0][label] for label in splits["test"].labels()]
    assert "has no images of 1 of the 3 classes of the 'train' split: 1" in caplog.text


def test_classifiers_are_the_configs():
    features = np.array([[1, 0], [0.9, 0.2], [0.8, 0.3], [0, 1]], np.float32)
    labels = np.array([0, 1, 1, 0])
    test = np.array([[1, 0]], np.float32)
    by_votes = {
        k: build_predict(tiny(evaluation__k=k, evaluation__temperature=0.0), "knn")(
            features, labels, test, num_classes=2
        ).tolist()
        for k in (1, 3)
    }
    assert by_votes == {1: [0], 3: [1]}
    linear = build_predict(tiny(), "linear")
    separable = (np.array([[0.0], [1], [4], [5]]), np.array([0, 0, 1, 1]))
    assert linear(*separable, np.array([[0.5], [4.5]]), num_classes=2).tolist() == [0, 1]


# ---- what evaluation shows of images


@pytest.mark.parametrize(
    ("image_size", "given", "share"),
    [
        ((16, 8), 0.0, 1.0),  # as they are
        ((8, 16), 0.0, 0.875),
        (None, 0.0, 0.875),  # of many sizes
        ((16, 8), 0.7, 0.7),
    ],
)
def test_images_of_the_inputs_size_are_shown_whole_unless_the_config_says_otherwise(
    image_size, given, share
):
    config = tiny(evaluation__crop_share=given)
    source = ArraySource(np.zeros((2, *(image_size or (1, 1)), 3), np.uint8), np.arange(2))
    source.image_size = image_size
    settle_crop_share(config, source)
    assert config.evaluation.crop_share == share


def test_evaluation_shows_images_as_the_config_says(pixels):
    options = {"crop_share": 0.6, "interpolation": "box", "crop_mode": "squash"}
    config = tiny(**{f"evaluation__{name}": value for name, value in options.items()})
    assert build_view(config) == View(0.6, "box", "squash")
    source = ArraySource(pixels, np.arange(4))
    (batch,) = build_eval_batches(config, source, make_mesh())
    image = Image.fromarray(pixels[2])
    wanted = image.resize((13, 26), Image.Resampling.BOX).crop((2, 5, 10, 21))
    np.testing.assert_array_equal(batch["image"][2], np.asarray(wanted))

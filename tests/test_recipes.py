"""The grid of methods and supervisions: each cell is a config, and trains."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

import stand_ins
import tiny
from ddae_jax import pretrain
from ddae_jax.builders.data import build_preprocess
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.optimization import build_learning_rate, build_momentum, build_optimizer
from ddae_jax.config import pretrain_defaults, to_plain
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.config.earlier import EARLIER_DEFAULTS
from ddae_jax.config.recipes import recipe_differences, use_recipe
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import contradictions, take_stored
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.sources import make_source
from ddae_jax.jobs import cli
from ddae_jax.jobs.job import DataSpec
from ddae_jax.methods import METHODS
from ddae_jax.methods.supervision import MODES
from ddae_jax.methods.targets import hog_targets
from ddae_jax.models import vit
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import make_mesh, put_batch

MASKED = [name for name, spec in METHODS.items() if spec.kind == "masked"]
CELLS = [",".join(cell) for cell in itertools.product(MASKED, MODES)]
# Every method, and every supervision. How errors are weighed does not depend on the method.
TRAINED = [f"{method},deep_dynamic" for method in MASKED] + ["mae,deep", "mae,last"]


def config_of(cell):
    return cli.load_config(f"{tiny.ROOT / 'configs' / 'cifar10.py'}:{cell}")


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_a_sound_config_of_its_name(cell):
    config = config_of(cell)
    check_config(config)
    assert f"{config.method},{config.supervision.mode}" == cell
    assert ignored_keys(config) == []


@pytest.fixture
def small(monkeypatch):
    """A config made small, with an untrained tokenizer or teacher if it needs one."""
    stand_ins.put_in_place(monkeypatch, num_codes=6)
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(24, 2, 2))

    def make(config):
        config.model.size = "micro"
        config.model.dtype = "float32"
        config.batch_size = 8
        config.decoder.width = 24
        config.decoder.num_heads = 2
        config.decoder.depth = 1
        config.data.augment_in = "workers"
        config.tokenizer.num_codes = 6
        config.tokenizer.decoder_depth = 1
        config.optimizer.warmup_epochs = 0.0
        config.optimizer.learning_rate = 0.02
        return config

    return make


@functools.cache
def eight_images():
    """Of CIFAR-10 where it is at hand, else patches of one colour."""
    folder = tiny.SHARED_DATA / "tfds"
    if folder.is_dir():
        source = make_source("tfds", name="cifar10", data_dir=str(folder), split="train")
        return next(eval_batches(source, image_size=(32, 32), batch_size=8, limit=8))["image"]
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    return images.repeat(4, axis=1).repeat(4, axis=2)


def build_program(config):
    schedule = Schedule(steps_per_epoch=30, total_steps=30)
    learning_rate = build_learning_rate(config, schedule)
    return TrainProgram(
        build_method(config),
        build_preprocess(config),
        build_optimizer(config, learning_rate, schedule),
        learning_rate,
        build_momentum(config, schedule),
        channels=3,
        seed=0,
        total_steps=schedule.total_steps,
    )


def train(config, num_steps, mesh):
    """The state and the metrics after each step, of one batch again and again."""
    program = build_program(config)
    take, state = program.jit(mesh), program.init_state(mesh)
    records = []
    for _ in range(num_steps):
        state, metrics = take(state, put_batch({"image": eight_images()}, mesh))
        records.append(jax.device_get(metrics))
    return state, records


def weight_of(beta):
    """The metric that has the weight of a beta's objective: no weight, no move."""
    return f"weight/{beta.split('/')[1]}"


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_every_cell_supervises_its_depths(cell, small):
    config = small(config_of(cell))
    program = build_program(config)
    before, batch = program.state_shapes(), {"image": eight_images()}
    after, metrics = jax.eval_shape(program.train_step, before, batch)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(np.shape, before)
    assert bool(after.teacher) == (config.method in ("ddae", "beit", "beit2"))
    depths = {name.rpartition("_")[2] for name in metrics if name.startswith("beta/")}
    aggregated = {"4"} if config.method == "beit2" else set()  # two blocks more
    assert depths == aggregated | ({"2"} if config.supervision.mode == "last" else {"1", "2"})


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell, marks=[] if cell in ("ddae,deep_dynamic", "mae,last") else pytest.mark.slow
        )
        for cell in TRAINED
    ],
)
def test_every_method_and_every_supervision_trains(cell, small):
    config = small(config_of(cell))
    _, records = train(config, 5, make_mesh(1, 1, jax.devices()[:1]))
    losses = [record["loss"] for record in records]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    betas = {name: value for name, value in records[-1].items() if name.startswith("beta/")}
    moves = config.supervision.mode == "deep_dynamic"
    weighed = {
        name: beta for name, beta in betas.items() if records[-2].get(weight_of(name), 1.0) > 0
    }
    assert weighed.keys() >= {name for name in betas if "features" not in name}
    assert all((beta > -0.5) if moves else (beta == 0) for beta in weighed.values())


def test_features_are_learned_once_they_have_weight(small):
    config = small(config_of("ddae,deep_dynamic"))
    _, records = train(config, 20, make_mesh(1, 1, jax.devices()[:1]))  # of 30; from 0.4 on
    weights = [record["weight/features"] for record in records]
    assert weights[:12] == [0] * 12
    assert weights[16:] == [1] * 4
    assert [record["weight/pixels"] for record in records[16:]] == [0.5] * 4
    betas = [record["beta/features/depth_1"] for record in records]
    assert betas[:12] == [-0.5] * 12
    assert np.all(np.diff(betas[13:]) > 0)
    assert records[-1]["plain_loss/features/depth_2"] < records[12]["plain_loss/features/depth_2"]


@pytest.mark.slow
def test_beta_descends_the_loss_or_its_logarithm(small):
    """Of the same first step, the one gradient is the other times what the loss contributes."""

    def first_moves(gradient):
        config = small(config_of("mae,deep_dynamic"))
        config.supervision.beta_gradient = gradient
        config.supervision.depth_weights = (0.5, 1.0)
        _, records = train(config, 2, make_mesh(1, 1, jax.devices()[:1]))
        losses = np.array([records[0][f"loss/pixels/depth_{depth}"] for depth in (1, 2)])
        betas = np.array([records[1][f"beta/pixels/depth_{depth}"] for depth in (1, 2)])
        return betas + 0.5, losses

    relative, _ = first_moves("relative")
    absolute, losses = first_moves("absolute")
    assert np.all(relative > 0.01)
    np.testing.assert_allclose(absolute, relative * losses * [0.5, 1.0], rtol=1e-4)


@pytest.mark.slow
def test_a_step_that_went_wrong_may_leave_everything_as_it_was(small, monkeypatch):
    """All but the step's number: parameters, optimizer and teacher, also where others see NaN."""
    mesh = make_mesh(1, 1, jax.devices()[:1])
    config = small(config_of("ddae,deep_dynamic"))
    config.optimizer.skip_nonfinite = 1
    program = pretrain.PretrainJob(config).program(Schedule(30, 30), DataSpec())
    state = program.init_state(mesh)
    before = jax.device_get(state)
    preprocess = program.preprocess

    def with_a_hole(key, batch):
        return preprocess(key, batch).at[0].set(np.nan)

    broken = dataclasses.replace(program, preprocess=with_a_hole)
    take = broken.jit(mesh)
    state, metrics = take(state, put_batch({"image": eight_images()}, mesh))
    assert np.isnan(metrics["loss"])
    assert (metrics["skipped"], int(state.step)) == (1, 1)
    for name in ("params", "teacher", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
    take = program.jit(mesh)
    state, metrics = take(state, put_batch({"image": eight_images()}, mesh))
    assert metrics["skipped"] == 0
    assert np.any(state.params["head"]["kernel"] != before.params["head"]["kernel"])


@pytest.mark.slow
def test_weights_by_neighbourhood_learn_no_beta(small):
    config = small(config_of("mae,deep_dynamic"))
    config.supervision.weighting = "neighbourhood"
    state, records = train(config, 5, make_mesh(1, 1, jax.devices()[:1]))
    assert "supervision" not in state.params
    assert records[-1]["loss"] < records[0]["loss"]
    for depth in (1, 2):
        place = f"pixels/depth_{depth}"
        assert records[0][f"beta/{place}"] == 0
        # Weights lie between 10/9 and 2.
        assert 1.1 < records[0][f"loss/{place}"] / records[0][f"plain_loss/{place}"] < 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ddae", "mae"])
@pytest.mark.parametrize(("kind", "share"), [("self", 0.25), ("cross", 0.5)])
def test_each_method_with_visible_input_has_each_decoder_and_share(method, kind, share, small):
    config = small(config_of(f"{method},deep"))
    config.decoder.kind, config.decoder.intermediate_share = kind, share
    _, records = train(config, 4, make_mesh(1, 1, jax.devices()[:1]))
    assert records[-1]["plain_loss"] < records[0]["plain_loss"]


@pytest.mark.slow
def test_over_four_devices_it_learns_what_it_learns_on_one(small):
    config = small(config_of("beit2,deep_dynamic"))
    _, one = train(config, 3, make_mesh(1, 1, jax.devices()[:1]))
    state, four = train(config, 3, make_mesh(2, 2, jax.devices()[:4]))
    for of_one, of_four in zip(one, four, strict=True):
        assert of_one.keys() == of_four.keys()
        for name, value in of_one.items():
            np.testing.assert_allclose(of_four[name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 10


# By the authors' code: all that has a gradient and more than one axis, but for what their models
# name as no_weight_decay: nothing in MAE and MaskFeat, class token and positions in the others.
DECAYED = {
    "ddae": {"kernel"},
    "mae": {"kernel", "class_token", "mask_token"},
    "simmim": {"kernel", "mask_token", "table"},
    "maskfeat": {"kernel", "class_token", "mask_token", "positions"},
    "beit": {"kernel", "mask_token", "table"},
    "beit2": {"kernel", "mask_token", "table"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", MASKED)
def test_each_recipe_decays_what_its_authors_do(method, small):
    """What nothing pulls at shrinks by its share of the learning rate, or stays."""
    config = small(config_of(f"{method},last"))
    shapes = jax.eval_shape(
        functools.partial(build_method(config).init, channels=3), jax.random.key(0)
    )
    schedule = Schedule(30, 30)
    learning_rate = build_learning_rate(config, schedule)
    optimizer = build_optimizer(config, learning_rate, schedule)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    state, nothing = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    updates = jax.tree.leaves_with_path(optimizer.update(nothing, state, params)[0])
    expected = -float(learning_rate(0)) * config.optimizer.weight_decay
    assert expected < 0
    moved = {path[-1].key for path, leaf in updates if np.any(leaf)}
    for path, leaf in updates:
        np.testing.assert_allclose(leaf, expected if path[-1].key in moved else 0, rtol=1e-5)
    assert moved == DECAYED[method]


def test_maskfeat_s_blocks_and_histograms_are_its_authors(small):
    config = cli.load_config(str(tiny.ROOT / "configs" / "imagenet_maskfeat_vit_b16.py"))
    method = build_method(config)
    assert method.sample_mask.keywords["min_block"] == 15
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    expected = hog_targets(images, 16, 8, "sobel")
    np.testing.assert_array_equal(method.targets({}, images)["hog"][0], expected)


@pytest.mark.parametrize("method", MASKED)
def test_a_run_that_began_before_goes_on_with_what_it_did(method):
    """The same config file now says more, of which it had none: see EARLIER_DEFAULTS."""
    config = config_of(method)
    stored = to_plain(config) | {"defaults_version": 5}
    for key in EARLIER_DEFAULTS[5]["pretrain"]:
        section, _, name = key.rpartition(".")
        del (stored[section] if section else stored)[name]
    replaced = take_stored(config, stored, ())
    assert "model.frozen_dtype" in replaced
    assert ("mask.min_block_share" in replaced) == (method == "maskfeat")
    assert ("optimizer.decay_also" in replaced) == (method != "ddae")
    assert config.optimizer.decay_also == ""
    assert config.mask.min_block_share == 0
    assert config.targets.hog_form == "differences"
    assert config.model.frozen_dtype == "as_trained"
    assert contradictions(stored, to_plain(config)) == []


def test_recipes_hold_keys_that_exist():
    for spec in METHODS.values():
        assert spec.recipe.keys() <= flatten(pretrain_defaults()).keys()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("mea,last", "known: beit, beit2, ddae, mae, maskfeat, simmim, vqkd; did you mean 'mae'"),
        ("MAE", "did you mean 'mae'"),
        ("mae,deep-dynamic", "did you mean 'deep_dynamic'"),
        ("vqkd,deep", "supervised at its end"),
        ("mae,deeper", "known: last, deep, deep_dynamic"),
        ("", "known: beit, beit2, ddae, mae"),
    ],
)
def test_an_unknown_cell_names_the_known_ones(cell, message):
    with pytest.raises(ValueError, match=message):
        use_recipe(pretrain_defaults(), cell)
    with pytest.raises(ValueError, match=message) as caught:
        config_of(cell)
    assert "line" not in str(caught.value)  # of a config file, which is not to blame


@pytest.mark.parametrize("method", MASKED)
def test_a_method_without_its_recipe_is_told_apart_from_the_published_one(method):
    config = config_of(method)
    assert recipe_differences(config) == []
    other = pretrain_defaults()
    other.method = method
    found = recipe_differences(other)
    assert bool(found) == (method in ("mae", "simmim", "maskfeat", "beit", "beit2"))
    if method == "mae":
        assert sorted(found) == [
            "decoder.kind='cross', not 'self'",
            "optimizer.decay_also='', not 'class_token,mask_token'",
        ]
    if method == "simmim":
        assert "targets.normalize_pixels=True, not False" in found


@pytest.mark.parametrize("method", ["mae", "simmim", "maskfeat", "beit", "beit2"])
def test_each_papers_own_config_is_the_published_method(method):
    path = tiny.ROOT / "configs" / f"imagenet_{method}_vit_b16.py"
    for supervision in ("", ":deep_dynamic"):
        assert recipe_differences(cli.load_config(f"{path}{supervision}")) == []


def test_a_mask_in_units_that_is_not_the_method_s_is_told():
    config = config_of("mae,last")
    config.mask.unit = 2
    assert recipe_differences(config) == ["mask.unit=2, not 1"]


def test_a_config_that_takes_no_cell_says_which_do():
    file = str(tiny.ROOT / "configs" / "digits.py")
    with pytest.raises(ValueError, match=r"takes no ':mae'; those that take .*cifar10.py"):
        cli.load_config(f"{file}:mae")


def test_any_method_takes_a_folder_of_images():
    config = cli.load_config(str(tiny.ROOT / "configs" / "folder.py") + ":mae,last")
    assert (config.method, config.model.encoder_input) == ("mae", "visible")
    assert config.data.source == "folder"

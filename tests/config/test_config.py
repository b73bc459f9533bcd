import ast
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from ddae_jax.config import defaults as config_defaults
from ddae_jax.config import from_plain, pretrain_defaults, to_plain
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.config.defaults import JOBS, defaults_by_key, defaults_of
from ddae_jax.config.earlier import DEFAULTS_VERSION, EARLIER_DEFAULTS, RENAMED, RETIRED
from ddae_jax.config.keys import ALL_KEYS
from ddae_jax.config.schema import flatten
from ddae_jax.config.unknown_keys import unknown_key
from ddae_jax.config.values import contradictions, is_free, parse_value, take_stored, typed


def changed(**changes):
    """The defaults, with keys changed; ``__`` stands for the dot."""
    config = pretrain_defaults()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


CHOICES = {name: key.words for name, key in ALL_KEYS.items() if key.words}
OF_A_JOB = [(job, key) for job in JOBS for key in CHOICES if key in defaults_by_key(job)]

# ---- what a config may hold


@pytest.mark.parametrize("job", JOBS)
def test_the_defaults_pass(job):
    assert check_config(JOBS[job]()) is None


def test_keys_cannot_be_added():
    config = pretrain_defaults()
    with pytest.raises(AttributeError, match="model_size"):
        config.model_size = "B"
    with pytest.raises(AttributeError, match="patchsize"):
        config.model.patchsize = 8


@pytest.mark.parametrize(("job", "key"), OF_A_JOB)
def test_a_word_that_is_none_of_the_known_is_refused_naming_them(job, key):
    config = JOBS[job]()
    bad = 2 if isinstance(CHOICES[key][0], int) else CHOICES[key][-1] + "x"
    config.update_from_flattened_dict({key: bad})
    with pytest.raises(ValueError, match=re.escape(f"{key}={bad!r}; known: ")) as caught:
        check_config(config)
    assert all(repr(word) in str(caught.value) for word in CHOICES[key])
    if isinstance(bad, str) and len(bad) > 3:
        assert f"did you mean {CHOICES[key][-1]!r}?" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "key", "word"),
    [
        (job, key, word)
        for job, key in OF_A_JOB
        for word in CHOICES[key]
        if key != "data.channels" and (job, word) != ("segment", "digits")
    ],
)
def test_every_known_word_passes(job, key, word):
    config = JOBS[job]()
    config.update_from_flattened_dict({key: word})
    if word == "H":
        config.model.patch_size, config.model.image_size = 14, (224, 224)
    if word == "tfds":
        config.data.name = "cifar10"
    if key == "targets.feature_places":
        config.model.encoder_input = "visible"
    if job == "pretrain":
        if key == "model.relative_positions" or word in ("beit2", "vqkd"):
            config.model.encoder_input = "full"
        config.targets.tokenizer = config.tokenizer.teacher = "runs/earlier"
    assert check_config(config) is None


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("model.drop_path_rate", -0.1, "in [0, 0.99]"),
        ("model.drop_path_rate", 1.0, "in [0, 0.99]"),
        ("teacher.momentum_start", 1.1, "in [0, 1]"),
        ("teacher.momentum_end", -0.1, "in [0, 1]"),
        ("data.max_corrupt_share", 1.5, "in [0, 1]"),
        ("batch_size", 0, "in [1, "),
        ("epochs", -1.0, "more than 0"),
        ("epochs", 0.0, "more than 0"),
        ("checkpoint.every_epochs", 0.0, "more than 0"),
        ("checkpoint.every_epochs", -2.0, "more than 0"),
        ("model.patch_size", 0, "in [1, "),
        ("log.every_steps", 0, "in [1, "),
        ("checkpoint.keep_last", 0, "in [1, "),
        ("checkpoint.keep_every", -1, "in [0, "),
        ("optimizer.learning_rate", -1e-3, "in [0, "),
        ("optimizer.weight_decay", -0.1, "in [0, "),
        ("optimizer.warmup_epochs", -1.0, "at least 0"),
        ("optimizer.clip_norm", -3.0, "in [0, "),
        ("evaluation.k", 0, "in [1, "),
        ("evaluation.temperature", -0.1, "in [0, "),
        ("data.num_workers", -1, "in [0, "),
        ("data.num_threads", -1, "in [0, "),
        ("seed", -1, "in [0, 4294967295]"),
        ("seed", 2**32, "in [0, 4294967295]"),
        ("batch_size", 10**6 + 1, "in [1, 1000000]"),
        ("evaluation.batch_size", 10**20, "in [1, 1000000]"),
        ("data.num_workers", 10**6, "in [0, 1024]"),
        ("optimizer.learning_rate", 1e308, "in [0, 1e+30]"),
        ("supervision.beta_step", 1e308, "in [0, 1000000]"),
        ("evaluation.temperature", 1e-9, "at least 0.001, or 0"),
        ("epochs", float("inf"), "a finite number, more than 0"),
        ("checkpoint.every_epochs", float("inf"), "a finite number, more than 0"),
    ],
)
def test_a_number_out_of_range_is_refused_naming_what_is_allowed(key, bad, allowed):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: bad})
    with pytest.raises(ValueError, match=re.escape(f"{key}={bad}; it is {allowed}")):
        check_config(config)


@pytest.mark.parametrize(
    "key",
    [
        "epochs",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "teacher.momentum_start",
        "evaluation.temperature",
    ],
)
def test_not_a_number_is_refused(key):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: float("nan")})
    with pytest.raises(ValueError, match=re.escape(f"{key}=nan")):
        check_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"supervision.beta_range": (1.0, -1.0)},
        {"data.std": (0.2, 0.0, 0.2)},
        {"optimizer.b1": 1.0},
        {"optimizer.b2": -0.1},
        {"evaluation.batch_size": 0},
        {"evaluation.max_examples": -1},
        {"evaluation.knn_every_epochs": -1.0},
        {"log.figures_every_epochs": -1.0},
        {"decoder.num_heads": 7, "model.encoder_input": "visible"},
        {"decoder.depth": -1, "model.encoder_input": "visible"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_could_only_fail_later_is_refused_at_once(changes):
    config = pretrain_defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=re.escape(next(iter(changes)))):
        check_config(config)


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        (
            "model.image_size",
            (224,),
            r"model.image_size=\(224,\); it is 2 whole numbers, such as \(224",
        ),
        ("data.crop_scale", (0.2, 0.5, 1.0), r"data.crop_scale=.*; it is 2 numbers, such as"),
        ("data.crop_ratio", (1.0,), r"data.crop_ratio=.*; it is 2 numbers, such as"),
        ("supervision.beta_range", (0.0,), r"supervision.beta_range=.*; it is 2 numbers, such as"),
        ("data.mean", (0.5,), r"data.mean=\(0.5,\); data.channels=3 asks for 3 values"),
        ("data.std", (0.5, 0.5), r"data.std=.*0.5\); data.channels=3 asks for 3 values"),
        ("data.channels", 12, r"12 values in each of data.mean.*python -m ddae_jax.pixel_stat"),
        ("data.channels", 0, r"data.channels=0; it is in \[1, 1000\]"),
        ("data.channels", 1, r"data.mean=.*1 value in each of data.mean and data.std: .*=0.5$"),
        (
            "model.image_size",
            (230, 224),
            r"^model.image_size=\(230, .*model.patch_size=16.*\(224, 2",
        ),
        (
            "model.image_size",
            (8, 8),
            r"model.image_size=\(8, 8\), model.patch_size=16; .*one patch",
        ),
        ("mask.ratio", 1.2, r"^mask.ratio=1.2; it is the hidden share of patches and lies in"),
        ("mask.ratio", 0.0, r"^mask.ratio=0.0; .*lies in \(0, 1\)"),
        ("mask.ratio", 0.999, r"^mask.ratio=0.999 leaves no visible patch of the 196"),
        ("supervision.depths", (6, 13), r"supervision.depths=\(6, 13\).*at most 12"),
        ("supervision.depths", (0, 6), r"supervision.depths=\(0, 6\).*at least 1"),
        ("supervision.depths", (8, 6), r"supervision.depths=\(8, 6\); they ascend"),
        ("supervision.depth_weights", (1.0, 2.0), r"depth_weights=\(1.0, 2.0\); one for each"),
        ("evaluation.depth", 13, r"evaluation.depth=13; it lies in \[1, 12\], or is 0"),
        ("evaluation.depth", -1, r"evaluation.depth=-1; it lies in"),
    ],
)
def test_what_does_not_fit_together_is_refused(key, bad, message):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: bad})
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_class_token_pooling_needs_a_class_token():
    config = changed(evaluation__pool="class_token", model__use_class_token=False)
    with pytest.raises(ValueError, match=r"'class_token' needs model.use_class_token=True"):
        check_config(config)


@pytest.mark.parametrize("mode", ["deep", "deep_dynamic"])
@pytest.mark.parametrize("weights", [(0, 0), (1.0, 0.0)])
def test_weights_that_leave_the_last_blocks_untrained_are_refused(mode, weights):
    config = changed(
        supervision__mode=mode, supervision__depths=(6, 12), supervision__depth_weights=weights
    )
    with pytest.raises(
        ValueError, match=r"depth_weights=.*the last one, of depth 12, must be more"
    ):
        check_config(config)
    config.supervision.depth_weights = (0, 0.5)
    assert check_config(config) is None


def test_last_supervision_takes_a_config_made_for_several_depths():
    config = changed(supervision__depths=(6, 12), supervision__depth_weights=(0.5, 1.0))
    assert check_config(config) is None
    config.supervision.mode = "last"
    assert check_config(config) is None


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data.crop_ratio", [(1e-9, 1e9), (0.001, 1), (1, 101)]),
        ("data.crop_scale", [(5e-324, 1), (0.2, 1.1), (0, 0)]),
        ("data.mean", [(123.7, 116.3, 103.5), (-0.1, 0, 0)]),  # of 0..255
        ("data.std", [(58.4, 57.1, 57.4), (1e-9, 1, 1)]),
        ("supervision.beta_range", [(-100, 0), (0, 1e300)]),
        ("supervision.depth_weights", [(1, 1, 1, -1), (1, 1, 1, 1e300)]),
        ("model.image_size", [(-1, 16), (2**40, 16)]),
    ],
)
def test_extreme_values_of_a_tuple_are_refused(key, values):
    for value in values:
        config = pretrain_defaults()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=re.escape(f"{key}={value}; each is in [")):
            check_config(config)


@pytest.mark.parametrize("size", [(0, 16), (16, 0), (0, 0)])
def test_images_of_no_size_are_refused_but_for_that_of_an_encoder(size):
    with pytest.raises(ValueError, match=re.escape(f"model.image_size={size}; both sides are at")):
        check_config(changed(model__image_size=size))
    config = JOBS["finetune"]()
    config.init_from = "runs/pretrained"
    config.model.image_size = (0, 0)
    assert check_config(config) is None


@pytest.mark.parametrize("beta_init", [-2.1, 2.1])
def test_beta_starts_in_its_range(beta_init):
    with pytest.raises(ValueError, match=rf"beta_init={beta_init} lies outside .*beta_range=\(-2"):
        check_config(changed(supervision__beta_init=beta_init))
    assert check_config(changed(supervision__beta_init=-2.0)) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("optimizer.end_learning_rate", "optimizer.learning_rate"),
        ("teacher.momentum_start", "teacher.momentum_end"),
    ],
)
def test_schedules_do_not_run_backwards(low, high):
    config = pretrain_defaults()
    config.update_from_flattened_dict({low: 0.5, high: 0.25})
    with pytest.raises(ValueError, match=f"{low}=0.5 must not exceed {high}=0.25"):
        check_config(config)
    config.update_from_flattened_dict({high: 0.5})
    assert check_config(config) is None


def test_a_tfds_source_needs_a_name():
    with pytest.raises(ValueError, match=r"data.source='tfds' needs .*data.name='cifar10'"):
        check_config(changed(data__source="tfds"))


@pytest.mark.parametrize("key", flatten(pretrain_defaults()))
def test_none_is_refused_naming_the_key(key):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: None})
    with pytest.raises(ValueError, match=f"config.{key}=None is of the wrong type; it is "):
        check_config(config)


def test_a_config_without_a_key_or_with_another_is_refused():
    config = pretrain_defaults()
    config.unlock()
    del config.model.size
    with pytest.raises(ValueError, match=r"config.model.size is missing; .*pretrain_defaults\(\)"):
        check_config(config)
    config = pretrain_defaults()
    config.unlock()
    config.model.sise = "B"
    with pytest.raises(ValueError, match=r"config.model.sise is no key.*config.model.size\?"):
        check_config(config)


@pytest.mark.parametrize("job", JOBS)
def test_weight_decay_of_what_is_nowhere_is_refused_naming_what_may_be(job):
    config = JOBS[job]()
    config.optimizer.decay_also = "mask_token, relative-positions"
    told = (
        "optimizer.decay_also='mask_token, relative-positions': 'relative-positions' is nothing "
        "that weight decay may include beside kernels; known, separated by commas: 'class_token', "
        "'mask_token', 'positions', 'relative_positions'; did you mean 'relative_positions'?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        check_config(config)


# ---- what is set and has no effect

FULL = {"model.encoder_input": "full"}
DEEP = {"model.encoder_input": "visible", "supervision.mode": "deep_dynamic"}
BOTH = DEEP | {"targets.pixel_weight": 1.0, "targets.feature_weight": 1.0}
BOTH |= {"targets.feature_places": "both", "supervision.weighting": "power"}
BY_STEP = {"teacher.half_life_epochs": 0.0, "teacher.half_life_start_epochs": 0.0}
BY_STEP |= {"teacher.copy_every_epochs": 0.0}
"""What has an effect with these."""


@pytest.mark.parametrize("job", JOBS)
def test_the_defaults_ignore_nothing(job):
    assert ignored_keys(JOBS[job]()) == []


def test_switching_off_what_is_at_its_default_ignores_nothing():
    assert ignored_keys(changed(supervision__mode="last", targets__feature_weight=0.0)) == []


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"supervision.mode": "last", "supervision.depths": (6, 12)}, ["supervision.depths"]),
        (
            {"supervision.mode": "last", "supervision.depth_weights": (0.5, 1.0)},
            ["supervision.depth_weights"],
        ),
        ({"supervision.mode": "deep", "supervision.depths": (6, 12)}, []),
        (
            {
                "supervision.mode": "deep",
                "supervision.weighting": "normalised",
                "supervision.beta_init": 0.0,
                "supervision.beta_step": 3.0,
                "supervision.beta_range": (-1.0, 1.0),
            },
            [
                "supervision.beta_init",
                "supervision.beta_range",
                "supervision.beta_step",
                "supervision.weighting",
            ],
        ),
        ({"supervision.weighting": "normalised"}, []),
        (
            {"decoder.width": 64, "decoder.depth": 1, "model.encoder_input": "full"},
            ["decoder.depth", "decoder.width"],
        ),
        ({"decoder.width": 64, "model.encoder_input": "visible"}, []),
        (
            {"teacher.momentum_start": 0.9, "targets.feature_weight": 0.0},
            ["teacher.momentum_start"],
        ),
        ({"teacher.momentum_start": 0.9, **BY_STEP}, []),
        (
            {"targets.normalize_pixels": False, "targets.pixel_weight": 0.0},
            ["targets.normalize_pixels"],
        ),
        ({"data.name": "cifar10"}, ["data.name"]),
        ({"data.name": "cifar10", "data.source": "tfds"}, []),
        ({"data.data_dir": "/data", "data.source": "digits"}, ["data.data_dir"]),
        ({"data.data_dir": "/data"}, []),
        ({"mask.unit": 2, "mask.kind": "block"}, ["mask.unit"]),
        ({"method": "mae", "targets.pixel_weight": 2.0}, ["targets.pixel_weight"]),
        ({"method": "mae", "teacher.momentum_start": 0.9}, ["teacher.momentum_start"]),
        (
            {"method": "mae", "targets.hog_cell": 4, "targets.tokenizer": "runs/tokenizer"},
            ["targets.hog_cell", "targets.tokenizer"],
        ),
        ({"method": "maskfeat", "targets.hog_cell": 4}, []),
        ({"method": "maskfeat", "targets.hog_form": "differences"}, []),
        ({"method": "mae", "targets.hog_form": "differences"}, ["targets.hog_form"]),
        ({"mask.min_block_share": 0.2}, ["mask.min_block_share"]),
        ({"mask.min_block_share": 0.2, "mask.kind": "block"}, []),
        ({"method": "mae", "model.frozen_dtype": "bfloat16"}, ["model.frozen_dtype"]),
        ({"method": "vqkd", "model.frozen_dtype": "bfloat16"}, []),
        (
            {"optimizer.decay_also": "class_token", "optimizer.weight_decay": 0.0},
            ["optimizer.decay_also"],
        ),
        ({"optimizer.decay_also": "class_token"}, []),
        (
            {"method": "maskfeat", "targets.normalize_pixels": False},
            ["targets.normalize_pixels"],
        ),
        ({"method": "beit2", "targets.tokenizer": "runs/a", "targets.aggregation_blocks": 3}, []),
        (
            {"method": "beit", "targets.tokenizer": "runs/a", "targets.aggregation_blocks": 3},
            ["targets.aggregation_blocks"],
        ),
        ({"tokenizer.num_codes": 64}, ["tokenizer.num_codes"]),
        (
            {"method": "vqkd", "tokenizer.num_codes": 64, "supervision.mode": "deep"},
            ["supervision.mode"],
        ),
        ({"method": "vqkd", "mask.ratio": 0.5}, ["mask.ratio"]),
        (
            {
                "model.encoder_input": "visible",
                "supervision.mode": "last",
                "decoder.intermediate_blocks": 1,
            },
            ["decoder.intermediate_blocks"],
        ),
        ({"evaluation.max_examples": 64}, ["evaluation.max_examples"]),
        ({"evaluation.max_examples": 64, "evaluation.knn_every_epochs": 1.0}, []),
    ],
    ids=str,
)
def test_keys_that_others_switch_off_are_named_with_the_reason(changes, ignored):
    config = pretrain_defaults()
    config.update_from_flattened_dict(changes)
    lines = ignored_keys(config)
    assert sorted(line.partition("=")[0] for line in lines) == ignored
    for line in lines:
        key = line.partition("=")[0]
        value, reason = line.removeprefix(f"{key}=").split(" is ignored: ")
        assert value == repr(changes[key])
        assert reason.partition("=")[0] in flatten(config)  # the key that switches it off


def unlike(key):
    """A value of a key that is not its default."""
    value = defaults_by_key()[key]
    if key in CHOICES:
        return next(word for word in CHOICES[key] if word != value)
    if isinstance(value, tuple):
        return (-1.5, 1.5)  # of beta_range
    return not value if isinstance(value, bool) else value + 1


OF_FEATURES = [f"targets.feature_{name}" for name in ("start", "warmup", "normalization", "places")]
OF_FEATURES += ["targets.normalize_predictions", "targets.pixel_fade"]


@pytest.mark.parametrize(
    ("on", "off", "ignored"),
    [
        (BOTH, {"targets.feature_weight": 0.0}, OF_FEATURES),
        (BOTH, {"method": "mae"}, OF_FEATURES),
        (BOTH, {"targets.pixel_weight": 0.0}, ["targets.feature_start", "targets.feature_warmup"]),
        (BOTH, {"targets.pixel_weight": 0.0}, ["targets.pixel_fade", "targets.normalize_pixels"]),
        (BOTH, {"targets.feature_places": "visible"}, ["targets.normalize_predictions"]),
        (
            DEEP,
            {"model.encoder_input": "full"},
            ["decoder.kind", "decoder.intermediate_share", "decoder.is_shared", "decoder.width"],
        ),
        (
            DEEP,
            {"supervision.mode": "last"},
            [
                "decoder.intermediate_blocks",
                "decoder.intermediate_share",
                "decoder.is_shared",
                "supervision.normalize_intermediate",
            ],
        ),
        (
            BOTH,
            {"supervision.weighting": "neighbourhood"},
            ["supervision.beta_init", "supervision.beta_step", "supervision.beta_range"],
        ),
        (
            BOTH | BY_STEP,
            {"teacher.half_life_epochs": 2.0},
            ["teacher.momentum_start", "teacher.momentum_end"],
        ),
        (
            BOTH | BY_STEP,
            {"teacher.copy_every_epochs": 1.0},
            ["teacher.momentum_start", "teacher.momentum_end"],
        ),
        (
            BOTH | BY_STEP | {"teacher.half_life_epochs": 2.0},
            {"teacher.copy_every_epochs": 1.0},
            ["teacher.half_life_start_epochs"],
        ),
        (
            BOTH
            | BY_STEP
            | {"teacher.half_life_epochs": 2.0, "teacher.half_life_start_epochs": 1.0},
            {"teacher.half_life_start_epochs": 0.0},
            ["teacher.hold", "teacher.warmup"],
        ),
        (
            BOTH
            | BY_STEP
            | {"teacher.half_life_epochs": 2.0, "teacher.half_life_start_epochs": 1.0},
            {"teacher.half_life_epochs": 0.0},
            ["teacher.half_life_start_epochs", "teacher.hold", "teacher.warmup"],
        ),
    ],
    ids=str,
)
def test_keys_are_named_where_another_switches_them_off_and_only_there(on, off, ignored):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: unlike(key) for key in ignored} | on)

    def named():
        return {line.partition("=")[0]: line for line in ignored_keys(config)}

    assert not set(named()) & set(ignored)
    config.update_from_flattened_dict({key: unlike(key) for key in ignored} | off)
    assert set(ignored) <= set(named())
    for key in ignored:
        reason = named()[key].split(" is ignored: ")[1]
        assert reason.partition("=")[0] in off
    assert len(ignored_keys(config)) == len(named())  # each once


# ---- values in words


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epochs", "3", 3.0),
        ("epochs", "1e-3", 0.001),
        ("batch_size", "64", 64),
        ("data.flip", "true", True),
        ("data.flip", "0", False),
        ("data.data_dir", "", ""),
        ("data.data_dir", "a=b, c", "a=b, c"),
        ("model.image_size", "32,24", (32, 24)),
        ("model.image_size", "(32, 24)", (32, 24)),
        ("model.image_size", "[32,24,]", (32, 24)),
        ("data.mean", "0.5", (0.5,)),
        ("data.mean", "(0.5,)", (0.5,)),
        ("supervision.depths", "()", ()),
        ("supervision.depths", "", ()),
        ("supervision.depths", "12", (12,)),
    ],
)
def test_values_are_read_from_text(key, text, value):
    found = parse_value(key, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("epochs", "True", "a number, such as --config.epochs=100.0"),
        ("epochs", "", "a number, such as --config.epochs=100.0"),
        ("batch_size", "2.5", "a whole number, such as --config.batch_size=256"),
        ("batch_size", "True", "a whole number, such as --config.batch_size=256"),
        ("data.flip", "3", "True or False, such as --config.data.flip=True"),
        ("model.image_size", "32", "2 whole numbers, such as --config.model.image_size=224,224"),
        ("model.image_size", "32x32", "2 whole numbers, such as --config.model.image_size=224,224"),
        ("model.image_size", "32 32", "2 whole numbers, such as --config.model.image_size=224,224"),
        ("model.image_size", "32.0,32", "2 whole numbers, such as --config.model.image_size=224,"),
        ("model.image_size", "(32,32", "2 whole numbers, such as --config.model.image_size=224,"),
        ("supervision.depths", "6,,12", "whole numbers, such as --config.supervision.depths=6,12"),
        ("data.mean", "None", "numbers, such as --config.data.mean=0.485,0.456,0.406"),
    ],
)
def test_a_text_that_is_no_value_is_refused_with_an_example(key, text, allowed):
    message = f"config.{key}={text!r} is of the wrong type; it is {allowed}"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_value(key, text)


@pytest.mark.parametrize("job", JOBS)
def test_examples_in_messages_are_values(job):
    for key in defaults_by_key(job):
        with pytest.raises(ValueError, match="it is ") as caught:
            typed(key, None, job)
        _, has_example, example = str(caught.value).partition(", such as ")
        if has_example:
            assert typed(key, ast.literal_eval(example), job) == ast.literal_eval(example)


def test_types_are_kept_apart():
    assert (typed("epochs", 3), type(typed("epochs", 3))) == (3.0, float)
    assert typed("data.mean", [0, 0.5]) == (0, 0.5)
    for key, value in [
        ("epochs", True),
        ("batch_size", True),
        ("batch_size", 2.0),
        ("data.flip", 1),
        ("model.size", 3),
        ("model.image_size", 32),
        ("model.image_size", (32, True)),
        ("epochs", 10**400),
    ]:
        with pytest.raises(ValueError, match=f"config.{key}={re.escape(repr(value))} is of the wr"):
            typed(key, value)


# ---- stored and read again


def test_a_config_comes_back_exactly_from_json():
    config = changed(
        model__image_size=(32, 24),
        supervision__depths=(3, 6),
        data__mean=(0.1, 1 / 3, 0.7),
        optimizer__learning_rate=1e-7,
        data__data_dir="/data/naïve",
    )
    stored = json.loads(json.dumps(to_plain(config)))
    found = from_plain(stored)
    assert isinstance(found, ConfigDict)
    before, after = flatten(config), flatten(found)
    assert before == after
    assert {k: type(v) for k, v in before.items()} == {k: type(v) for k, v in after.items()}
    with pytest.raises(AttributeError):
        found.model.unknown = 1


def test_a_stored_key_that_no_config_has_is_refused():
    stored = to_plain(pretrain_defaults())
    stored["model"]["sise"] = "B"
    with pytest.raises(ValueError, match=r"config.model.sise is no key.*config.model.size\?"):
        from_plain(stored)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([], r"holds \[\]; it must hold the keys of a config"),
        (None, r"holds None; it must hold the keys of a config"),
        ({"epochs": "ten"}, r"config.epochs='ten' is of the wrong type; it is a number"),
        ({"epochs": None}, r"config.epochs=None is of the wrong type; it is a number"),
        ({"epochs": {}}, r"config.epochs=\{\} is of the wrong type; it is a number"),
        ({"epochs": {"a": 1}}, r"config.epochs.a is no key.*did you mean config.epochs\?"),
        ({"batch_size": 2.5}, r"config.batch_size=2.5 is of the wrong type; it is a whole number"),
        ({"data": {"flip": 1}}, r"config.data.flip=1 is of the wrong type; it is True or False"),
        ({"data": {"mean": 0.5}}, r"config.data.mean=0.5 is of the wrong type; it is numbers"),
        ({"data": {"mean": ["a"]}}, r"config.data.mean=\['a'\] is of the wrong type; it is num"),
        ({"model": "B"}, r"config.model is a section; its keys are model.activation, "),
        ({"modle": {"size": "B"}}, r"config.modle.size is no key.*config.model.size\?"),
    ],
    ids=str,
)
def test_a_stored_config_that_somebody_broke_names_file_and_key(stored, message):
    for read in (
        lambda: from_plain(stored, "W/config.json"),
        lambda: contradictions(stored, to_plain(pretrain_defaults()), "W/config.json"),
    ):
        with pytest.raises(ValueError, match=rf"^W/config.json:? {message}"):
            read()


def test_a_stored_config_may_have_keys_by_their_older_names():
    stored = to_plain(pretrain_defaults())
    del stored["evaluation"]["max_examples"]
    stored["evaluation"]["max_train_examples"] = 64
    assert from_plain(stored).evaluation.max_examples == 64
    assert contradictions(stored, to_plain(pretrain_defaults())) == []


def test_a_stored_config_may_have_keys_that_are_no_more():
    stored = to_plain(pretrain_defaults())
    stored["tokenizer"]["min_perplexity"] = 16.0
    assert from_plain(stored).to_dict() == pretrain_defaults().to_dict()
    assert contradictions(stored, to_plain(pretrain_defaults())) == []


def test_renamed_keys_are_none_any_more_and_lead_to_one():
    known = flatten(pretrain_defaults())
    assert not RETIRED & set(known)
    assert not set(RENAMED) & set(known)
    assert set(RENAMED.values()) <= set(known)


def test_flatten_names_keys_by_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": (2,)}, "e": 3}) == {"a.b.c": 1, "a.d": (2,), "e": 3}


# ---- continuing


def test_the_same_config_does_not_contradict_itself():
    plain = to_plain(pretrain_defaults())
    assert contradictions(plain, plain) == []


def test_contradictions_name_each_key_with_both_values():
    stored = to_plain(changed(model__image_size=(32, 24), seed=3))
    given = to_plain(changed(optimizer__learning_rate=1e-3, seed=4))
    assert sorted(contradictions(stored, given)) == [
        "model.image_size: [32, 24] in the workdir, [224, 224] given",
        "optimizer.learning_rate: 0.00015 in the workdir, 0.001 given",
        "seed: 3 in the workdir, 4 given",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint.every_epochs", 7.0),
        ("log.tensorboard", False),
        ("evaluation.k", 5),
        ("mesh.fsdp", 4),
        ("data.data_dir", "/elsewhere"),
        ("data.num_workers", 9),
        ("data.num_threads", 9),
        ("data.max_corrupt_share", 0.5),
    ],
)
def test_keys_that_do_not_change_what_is_computed_are_free(key, value):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: value})
    assert flatten(config)[key] != flatten(pretrain_defaults())[key]
    assert contradictions(to_plain(pretrain_defaults()), to_plain(config)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 7.0),
        ("data.augment_in", "device"),
        ("data.name", "x"),
        ("data.flip", False),
        ("data.in_memory", True),  # a JPEG is decoded smaller where it is decoded for each crop
    ],
)
def test_keys_that_do_are_not(key, value):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: value})
    found = contradictions(to_plain(pretrain_defaults()), to_plain(config))
    assert [line.split(":")[0] for line in found] == [key]


def test_keys_younger_than_a_stored_config_have_their_defaults():
    stored = to_plain(pretrain_defaults())
    del stored["model"]["attention_form"]
    del stored["supervision"]
    assert contradictions(stored, to_plain(pretrain_defaults())) == []
    given = to_plain(changed(model__attention_form="batched_matmul"))
    assert contradictions(stored, given) == [
        "model.attention_form: 'auto' in the workdir, 'batched_matmul' given"
    ]


# ---- the nearest key


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("batchsize", "batch_size"),
        ("model.patchsize", "model.patch_size"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),  # the section left out
        ("model.ratio", "mask.ratio"),  # another section's
        ("evaluation.max_train_examples", "evaluation.max_examples"),  # its older name
        ("max_train_examples", "evaluation.max_examples"),
        ("evaluation.max_train_exampels", "evaluation.max_examples"),
        ("epochs.number", "epochs"),  # it has no keys below it
        ("mode.size", "model.size"),
        ("optimizer.warmup", "optimizer.warmup_epochs"),  # as others call it
        ("warmup_steps", "optimizer.warmup_epochs"),
        ("optimizer.lr_", "optimizer.learning_rate"),
        ("optimizer.betas", "optimizer.b1 or config.optimizer.b2"),
        ("data.path", "data.data_dir"),
        ("data.root", "data.data_dir"),
        ("arch", "model.size"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, near):
    message = unknown_key(wrong)
    assert message.startswith(f"config.{wrong} is no key of a pretraining config; ")
    assert f"did you mean config.{near}?" in message


@pytest.mark.parametrize("wrong", ["output_dir", "log_dir", "workdir", "checkpoint.save_dir"])
def test_the_folder_of_a_run_is_no_key(wrong):
    assert unknown_key(wrong).endswith("did you mean --workdir=FOLDER?")


@pytest.mark.parametrize("section", ["model", "mesh", "evaluation"])
def test_a_section_lists_its_keys(section):
    keys = [key for key in flatten(pretrain_defaults()) if key.startswith(f"{section}.")]
    expected = f"config.{section} is a section; its keys are {', '.join(keys)}"
    assert unknown_key(section) == expected


def test_a_name_that_several_sections_have_leads_to_all_of_them():
    message = unknown_key("model.batch_size")
    assert message.endswith("did you mean config.batch_size or config.evaluation.batch_size?")


def test_a_key_like_no_other_of_its_section_gets_the_sections_list():
    assert unknown_key("mesh.x").endswith("; known: mesh.data, mesh.fsdp")


def test_the_nearest_key_is_a_whole_one():
    known = set(flatten(pretrain_defaults()))
    for wrong in ("lerning_rate", "rato", "x.warmup_epoch", "beta_inits"):
        found = re.search(r"did you mean config\.(\S+)\?", unknown_key(wrong))
        assert found is None or found[1] in known, unknown_key(wrong)


def test_a_key_like_no_other_gets_the_list():
    assert "known: batch_size, checkpoint.every_epochs, " in unknown_key("zzzzzz")


def test_every_config_file_says_what_it_is_for():
    files = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
    assert len(files) >= 5
    for file in files:
        docstring = file.read_text().split('"""')[1]
        for word in ("Command:", "Hardware:", "Expect:", f"configs/{file.name}"):
            assert word in docstring, (file.name, word)


# ---- what methods ask of a config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "beit", **FULL}, "method='beit' predicts the tokens.*targets.tokenizer"),
        ({"method": "beit2", **FULL}, "method='beit2' predicts the tokens.*targets.tokenizer"),
        ({"method": "vqkd", **FULL}, "method='vqkd' learns from a teacher.*tokenizer.teacher"),
        (
            {"method": "vqkd", "tokenizer.teacher": "a", "model.encoder_input": "visible"},
            "method='vqkd' encodes all patches; set model.encoder_input='full'",
        ),
        (
            {"method": "beit2", "targets.tokenizer": "a", "model.encoder_input": "visible"},
            "method='beit2' encodes all patches",
        ),
        (
            {"method": "beit2", "targets.tokenizer": "a", "model.use_class_token": False, **FULL},
            "set model.use_class_token=True",
        ),
        ({"method": "maskfeat", "targets.hog_cell": 6}, "targets.hog_cell=6 does not divide"),
        ({"decoder.intermediate_blocks": 9}, "decoder.intermediate_blocks=9 are more than"),
        (
            DEEP | {"decoder.intermediate_share": 0.0},
            r"^decoder.intermediate_share=0.0; it is more than 0, at most 1$",
        ),
        (
            DEEP | {"decoder.intermediate_share": 1.5, "decoder.kind": "cross"},
            r"^decoder.intermediate_share=1.5; it is more than 0, at most 1$",
        ),
        (
            DEEP | {"decoder.intermediate_share": 1e-4, "mask.ratio": 0.75},
            r"^decoder.intermediate_share=0.0001 leaves none of the 147 .*0.007 leaves one$",
        ),
        (
            BOTH | {"model.encoder_input": "full", "targets.feature_places": "both"},
            r"^targets.feature_places='both' aligns .*set model.encoder_input='visible'$",
        ),
        (
            BOTH | {"model.encoder_input": "full", "targets.feature_places": "visible"},
            r"^targets.feature_places='visible' aligns .*set model.encoder_input='visible'$",
        ),
        (
            BOTH | {"targets.feature_places": "visible", "targets.pixel_weight": 0.0},
            r"^targets.feature_places='visible', targets.pixel_weight=0: nothing is predicted",
        ),
        (
            BOTH | {"targets.feature_normalization": "batch", "batch_size": 15},
            r"^targets.feature_normalization='batch', batch_size=15: statistics of .*are noise; "
            r"raise batch_size to 16 or more, or set targets.feature_normalization='layer'",
        ),
        (
            BOTH | {"targets.feature_normalization": "position", "batch_size": 8},
            r"^targets.feature_normalization='position', batch_size=8: .*tells little but which",
        ),
        (
            BOTH
            | {
                "targets.feature_normalization": "batch",
                "targets.feature_places": "hidden",
                "targets.normalize_predictions": True,
                "optimizer.micro_batches": 2,
            },
            r"^optimizer.micro_batches=2, targets.feature_normalization='batch', targets.normal"
            r"ize_predictions=True: predictions for a part .*set optimizer.micro_batches=1, .*or "
            r"targets.normalize_predictions=False$",
        ),
        (
            BOTH
            | {
                "targets.feature_normalization": "position",
                "targets.feature_places": "both",
                "targets.normalize_predictions": False,
                "optimizer.micro_batches": 4,
            },
            r"^optimizer.micro_batches=4, .*='position', targets.feature_places='both': .*or "
            r"targets.feature_places='hidden'$",
        ),
        (
            BOTH | {"targets.feature_start": 0.5, "targets.feature_warmup": 0.75},
            r"^targets.feature_start=0.5, targets.feature_warmup=0.75: .*add up to at most 1",
        ),
        (
            BOTH | {"targets.feature_start": 1.0, "targets.feature_warmup": 0.0},
            r"^targets.feature_start=1.0, .*lower one of them",
        ),
        (
            BOTH
            | {
                "targets.pixel_fade": 1.0,
                "targets.feature_start": 0.0,
                "targets.feature_warmup": 0.0,
            },
            r"^targets.pixel_fade=1.0: .*no weight from the start; set targets.feature_warmup",
        ),
        (
            {"teacher.half_life_start_epochs": 3.0, "teacher.half_life_epochs": 2.0},
            r"^teacher.half_life_start_epochs=3.0 must not exceed teacher.half_life_epochs=2.0",
        ),
    ],
    ids=str,
)
def test_what_a_method_asks_of_a_config_is_told(changes, message):
    config = pretrain_defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder.intermediate_share": 0.004},
        {"decoder.intermediate_share": 1e-4, "model.encoder_input": "full"},
        {"decoder.is_shared": False},
        {"decoder.kind": "cross"},
        {"targets.feature_normalization": "batch", "batch_size": 16},
        {"targets.feature_normalization": "instance", "batch_size": 1},
        {"targets.feature_normalization": "batch", "batch_size": 1, "targets.feature_weight": 0.0},
        {"targets.feature_places": "both", "targets.pixel_weight": 0.0},
        {"targets.feature_places": "both", "model.encoder_input": "full", "method": "mae"},
        {"targets.feature_normalization": "batch", "optimizer.micro_batches": 2},
        {
            "targets.feature_normalization": "layer",
            "targets.feature_places": "both",
            "targets.normalize_predictions": True,
            "optimizer.micro_batches": 2,
        },
        {"targets.feature_start": 0.1, "targets.feature_warmup": 0.9},
        {"targets.feature_start": 1.0, "targets.pixel_weight": 0.0},
        {"targets.pixel_fade": 1.0, "targets.feature_warmup": 0.25},
        {"teacher.half_life_start_epochs": 2.0, "teacher.half_life_epochs": 2.0},
    ],
    ids=str,
)
def test_what_is_close_to_refused_but_fits_together_passes(changes):
    config = pretrain_defaults()
    settled = {"targets.feature_places": "hidden", "targets.normalize_predictions": False}
    config.update_from_flattened_dict(BOTH | settled | changes)
    assert check_config(config) is None


# ---- configs that were stored when the defaults were others

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN = {
    version: json.loads((_GOLDEN / f"defaults_{version}.json").read_text())
    for version in range(1, DEFAULTS_VERSION)
}
"""The keys and defaults of each job in earlier versions."""

FIRST = GOLDEN[1]


def first(**changes):
    """A config as it was stored then, with keys changed as :func:`changed` does."""
    flat = FIRST["pretrain"] | {k.replace("__", "."): v for k, v in changes.items()}
    stored = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (stored.setdefault(section, {}) if section else stored)[name] = value
    return stored


@pytest.fixture
def other_defaults(monkeypatch):
    """Those that are not as they were, in a version that changed them."""
    values = {
        "model.encoder_input": "visible",
        "decoder.kind": "cross",
        "decoder.width": 256,
        "decoder.is_shared": False,
        "targets.feature_normalization": "batch",
        "supervision.beta_step": 2.5,
        "teacher.half_life_epochs": 3.0,
    }

    def make():
        config = pretrain_defaults()
        config.update_from_flattened_dict(values)
        return config

    tables = {"pretrain": EARLIER_DEFAULTS[1]["pretrain"] | {"decoder.width": 512}}
    monkeypatch.setattr(config_defaults, "EARLIER_DEFAULTS", {**EARLIER_DEFAULTS, 1: tables})
    monkeypatch.setitem(JOBS, "pretrain", make)
    earlier = flatten(defaults_of("pretrain", 1)) | {"defaults_version": DEFAULTS_VERSION}
    others = {key: value for key, value in flatten(make()).items() if value != earlier[key]}
    assert others.items() >= values.items()
    return others


@pytest.mark.parametrize("version", GOLDEN)
@pytest.mark.parametrize("job", JOBS)
def test_defaults_that_changed_and_keys_that_came_have_what_was_done_before(job, version):
    earlier, known = defaults_by_key(job, version), GOLDEN[version][job]
    for key, value in known.items():
        assert key in earlier or key in RENAMED or key in RETIRED
        wanted = tuple(value) if isinstance(value, list) else value
        assert earlier[key] == wanted, f"{key} had another default: EARLIER_DEFAULTS needs it"
    new = set(earlier) - set(known) - set(RENAMED.values()) - {"defaults_version"}
    since = {k for v in range(version, DEFAULTS_VERSION) for k in EARLIER_DEFAULTS[v].get(job, {})}
    assert not new - since, "EARLIER_DEFAULTS needs what was done before there was a choice"


@pytest.mark.parametrize("version", range(1, DEFAULTS_VERSION))
def test_earlier_defaults_are_values_of_keys(version):
    for job, table in EARLIER_DEFAULTS[version].items():
        for key, value in table.items():
            assert (typed(key, value, job), type(value)) == (value, type(defaults_by_key(job)[key]))
    assert all(check_config(defaults_of(job, version)) is None for job in JOBS)


def test_defaults_of_several_versions_ago_are_those_of_each_since(monkeypatch):
    tables = {
        1: {"pretrain": {"seed": 1, "epochs": 1.0}},
        2: {"pretrain": {"seed": 2, "batch_size": 2}},
    }
    monkeypatch.setattr(config_defaults, "DEFAULTS_VERSION", 3)
    monkeypatch.setattr(config_defaults, "EARLIER_DEFAULTS", tables)
    names = ("defaults_version", "seed", "epochs", "batch_size")
    found = [tuple(defaults_of("pretrain", v)[name] for name in names) for v in (1, 2, 3)]
    assert found == [(1, 1, 1.0, 2), (2, 2, 100.0, 2), (3, 0, 100.0, 256)]
    assert defaults_of("finetune", 1).seed == 0


def test_a_config_of_before_is_read_as_it_was_whatever_the_defaults_are_now(other_defaults):
    config = from_plain(first(epochs=7.0))
    assert config.defaults_version == 1
    assert (config.epochs, config.model.encoder_input, config.decoder.width) == (7.0, "full", 512)
    assert config.decoder.kind == "self"
    assert config.decoder.is_shared is True
    assert config.targets.feature_normalization == "layer"
    assert config.supervision.normalize_intermediate is True
    assert config.teacher.half_life_epochs == 0
    assert check_config(config) is None
    assert ignored_keys(config) == []
    again = from_plain(json.loads(json.dumps(to_plain(config))))
    assert flatten(again) == flatten(config)


def test_a_config_of_today_is_read_by_the_defaults_of_today(other_defaults):
    stored = to_plain(JOBS["pretrain"]())
    assert stored["defaults_version"] == DEFAULTS_VERSION
    del stored["decoder"]
    assert from_plain(stored).decoder.kind == "cross"


def test_a_config_of_before_may_lack_sections_that_were_not_there_yet(other_defaults):
    stored = first()
    del stored["decoder"], stored["supervision"]
    config = from_plain(stored)
    assert (config.decoder.width, config.supervision.beta_step) == (512, 5.0)


@pytest.mark.parametrize("version", [0, -1, DEFAULTS_VERSION + 1, "2", None, 1.5])
def test_a_stored_config_of_no_known_version_is_refused(version):
    stored = to_plain(pretrain_defaults()) | {"defaults_version": version}
    told = rf"^W: config.defaults_version={version!r}(; this .*update it| is of the wrong type)"
    with pytest.raises(ValueError, match=told):
        from_plain(stored, "W")


def test_a_run_of_before_goes_on_with_what_it_stored(other_defaults):
    stored = first(epochs=7.0, mask__ratio=0.5)
    config = JOBS["pretrain"]()  # as a file has it that was not edited
    config.update_from_flattened_dict({"epochs": 7.0, "mask.ratio": 0.5})
    replaced = take_stored(config, stored, ())
    assert replaced == other_defaults
    assert flatten(config) == flatten(from_plain(stored))
    assert contradictions(stored, to_plain(config)) == []
    assert contradictions(to_plain(config), to_plain(config)) == []
    assert take_stored(config, to_plain(config), ()) == {}


def test_what_is_given_for_a_run_of_before_is_checked_as_ever(other_defaults):
    stored = first()
    config = JOBS["pretrain"]()
    config.update_from_flattened_dict({"epochs": 7.0, "mask.ratio": 0.5})
    replaced = take_stored(config, stored, {"epochs", "model.encoder_input", "seed"})
    assert set(replaced) == set(other_defaults) - {"model.encoder_input"} | {"mask.ratio"}
    assert contradictions(stored, to_plain(config)) == [
        "epochs: 100.0 in the workdir, 7.0 given",
        "model.encoder_input: 'full' in the workdir, 'visible' given",
    ]


def test_what_is_free_to_change_is_not_taken_from_a_run_of_before():
    free = {"log.every_steps": 7, "data.data_dir": "/elsewhere", "evaluation.k": 5}
    config = pretrain_defaults()
    config.update_from_flattened_dict(free)
    assert not free.keys() & take_stored(config, first(), ()).keys()
    assert flatten(config).items() >= free.items()
    assert config.defaults_version == 1
    assert is_free("defaults_version")


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        (first(), {"method": "mae", "seed": 3}),  # is not what is meant
        (to_plain(changed(seed=1)), {"seed": 3}),  # the defaults are the same: the file was edited
        ({"job": "finetune", "seed": 1}, {"seed": 3}),
    ],
    ids=["another method", "today", "another job"],
)
def test_nothing_is_taken_from_a_run_that_is_not_that_of_before(stored, changes):
    config = changed(**changes)
    assert take_stored(config, stored, ()) == {}
    assert flatten(config) == flatten(changed(**changes))
    if stored.get("job") != "finetune":
        told = contradictions(stored, to_plain(config))
        assert f"seed: {stored['seed']} in the workdir, 3 given" in told


def test_a_run_of_before_ignores_what_differs_from_its_own_defaults(other_defaults):
    config = from_plain(first())
    assert ignored_keys(config) == []  # decoder.width is not today's, but nobody set it
    config.decoder.width = 64
    assert [line.partition("=")[0] for line in ignored_keys(config)] == ["decoder.width"]


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ("pretrain", {"data.source": "digits"}, "data.channels=12; images are grey"),
        ("finetune", {"data.source": "tfds", "data.name": "a"}, "data.channels=12; images are gre"),
        ("finetune", {"augment.rand_augment": True}, "augment.rand_augment=True changes the col"),
        (
            "segment",
            {"data.source": "tfds", "data.name": "a"},
            "are read from a folder of .npy, .npz or TIFF",
        ),
    ],
)
def test_images_of_other_channels_come_from_arrays_and_have_no_colours(job, changes, message):
    config = JOBS[job]()
    twelve = {"data.channels": 12, "data.mean": (0.5,) * 12, "data.std": (0.5,) * 12}
    config.update_from_flattened_dict(twelve | changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(config)


@pytest.mark.parametrize("job", ["pretrain", "segment"])
def test_a_folder_of_twelve_channels_is_sound(job):
    config = JOBS[job]()
    config.data.source = "folder"
    config.update_from_flattened_dict(
        {"data.channels": 12, "data.mean": (0.5,) * 12, "data.std": (0.5,) * 12}
    )
    check_config(config)

import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from ddae_jax.config import (
    CHOICES,
    check_config,
    contradictions,
    flatten,
    from_plain,
    pretrain_defaults,
    to_plain,
    unknown_key,
)


def changed(**changes):
    """The defaults, with keys changed; ``__`` stands for the dot."""
    config = pretrain_defaults()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


# ---- what a config may hold


def test_the_defaults_pass():
    assert check_config(pretrain_defaults()) is None


def test_keys_cannot_be_added():
    config = pretrain_defaults()
    with pytest.raises(AttributeError, match="model_size"):
        config.model_size = "B"
    with pytest.raises(AttributeError, match="patchsize"):
        config.model.patchsize = 8


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_that_is_none_of_the_known_is_refused_naming_them(key):
    config = pretrain_defaults()
    bad = 2 if isinstance(CHOICES[key][0], int) else CHOICES[key][-1] + "x"
    config.update_from_flattened_dict({key: bad})
    with pytest.raises(ValueError, match=re.escape(f"{key}={bad!r}; known: ")) as caught:
        check_config(config)
    assert all(repr(word) in str(caught.value) for word in CHOICES[key])
    if isinstance(bad, str) and len(bad) > 3:
        assert f"did you mean {CHOICES[key][-1]!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "word"),
    [(key, word) for key, words in CHOICES.items() for word in words if key != "data.channels"],
)
def test_every_known_word_passes(key, word):
    config = pretrain_defaults()
    config.update_from_flattened_dict({key: word})
    if word == "H":
        config.model.patch_size = 14
    assert check_config(config) is None


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("model.drop_path_rate", -0.1, "in [0, 0.99]"),
        ("model.drop_path_rate", 1.0, "in [0, 0.99]"),
        ("teacher.momentum_start", 1.1, "in [0, 1]"),
        ("teacher.momentum_end", -0.1, "in [0, 1]"),
        ("data.max_corrupt_share", 1.5, "in [0, 1]"),
        ("batch_size", 0, "at least 1"),
        ("epochs", -1.0, "more than 0"),
        ("epochs", 0.0, "more than 0"),
        ("checkpoint.every_epochs", 0.0, "more than 0"),
        ("checkpoint.every_epochs", -2.0, "more than 0"),
        ("model.patch_size", 0, "at least 1"),
        ("log.every_steps", 0, "at least 1"),
        ("checkpoint.keep_last", 0, "at least 1"),
        ("checkpoint.keep_every", -1, "at least 0"),
        ("optimizer.learning_rate", -1e-3, "at least 0"),
        ("optimizer.weight_decay", -0.1, "at least 0"),
        ("optimizer.warmup_epochs", -1.0, "at least 0"),
        ("optimizer.clip_norm", -3.0, "at least 0"),
        ("evaluation.k", 0, "at least 1"),
        ("evaluation.temperature", -0.1, "at least 0"),
        ("data.num_workers", -1, "at least 0"),
        ("data.num_threads", -1, "at least 0"),
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
        {"evaluation.max_train_examples": -1},
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
        ("model.image_size", (224,), r"model.image_size=\(224,\); it has 2 values"),
        ("data.crop_scale", (0.2, 0.5, 1.0), r"data.crop_scale=.*; it has 2 values"),
        ("data.crop_ratio", (1.0,), r"data.crop_ratio=.*; it has 2 values"),
        ("supervision.beta_range", (0.0,), r"supervision.beta_range=.*; it has 2 values"),
        ("data.mean", (0.5,), r"data.mean=\(0.5,\); it has 3 values"),
        ("data.std", (0.5, 0.5), r"data.std=\(0.5, 0.5\); it has 3 values"),
        ("data.channels", 1, r"data.mean=.*; it has 1 values"),
        ("model.image_size", (230, 224), r"image_size=\(230, 224\) .*patch_size=16.*\(224, 224\)"),
        ("model.image_size", (8, 8), r"image_size=\(8, 8\), patch_size=16; .*at least one patch"),
        ("mask.ratio", 1.2, r"mask_ratio=1.2; it is the hidden share of patches and lies in"),
        ("mask.ratio", 0.0, r"mask_ratio=0.0; .*lies in \(0, 1\)"),
        ("mask.ratio", 0.999, r"mask_ratio=0.999 leaves no visible patch of the 196"),
        ("supervision.depths", (6, 13), r"supervision.depths=\(6, 13\).*'B' has 12 blocks"),
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


def test_last_supervision_takes_a_single_depth_weight():
    config = changed(supervision__mode="last", supervision__depth_weights=(2.0,))
    assert check_config(config) is None


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
        ("data.in_memory", True),
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
    [("epochs", 7.0), ("data.augment_in", "device"), ("data.name", "x"), ("data.flip", False)],
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
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, near):
    message = unknown_key(wrong)
    assert message.startswith(f"config.{wrong} is no key of a pretraining config; ")
    assert f"did you mean config.{near}?" in message


def test_the_nearest_key_is_a_whole_one():
    known = set(flatten(pretrain_defaults()))
    for wrong in ("lerning_rate", "rato", "x.warmup_epoch", "beta_inits"):
        found = re.search(r"did you mean config\.(\S+)\?", unknown_key(wrong))
        assert found is None or found[1] in known, unknown_key(wrong)


def test_a_key_like_no_other_gets_the_list():
    assert "known: batch_size, checkpoint.every_epochs, " in unknown_key("zzzzzz")


def test_every_config_file_says_what_it_is_for():
    files = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
    assert len(files) >= 5
    for file in files:
        docstring = file.read_text().split('"""')[1]
        for word in ("Command:", "Hardware:", "Expect:", f"configs/{file.name}"):
            assert word in docstring, (file.name, word)

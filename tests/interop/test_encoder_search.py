"""An encoder is found in whatever training code saves."""

import numpy as np
import pytest

from ddae_jax.interop.encoder_search import NoSuchPart, find_encoder, preferred_arrays

ANCHOR = "patch_embed.proj.weight"


def encoder(value=0, prefix="", **more):
    """Returns some arrays of an encoder, marked by a value that tells it from others."""
    arrays = {ANCHOR: np.full((2, 3, 4, 4), value), "blocks.0.norm1.weight": np.ones(2)}
    return {prefix + name: array for name, array in arrays.items()} | more


def value_of(network):
    return network.weights[ANCHOR].flat[0]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "encoder.",
        "visual.trunk.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.backbone.",
        "module.base_encoder.",
        "teacher.backbone.",
        "module._fsdp_wrapped_module.student.",
    ],
)
@pytest.mark.parametrize("key", ["model", "state_dict", "anything", None])
def test_an_encoder_is_found_behind_any_prefix_and_under_any_key(prefix, key):
    head = {"head.weight": np.ones((2, 2))} if prefix not in ("", "_orig_mod.") else {}
    arrays = encoder(1, prefix, **head)
    others = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}}}
    network = find_encoder(arrays if key is None else others | {key: arrays})
    assert network.weights.keys() == encoder().keys()
    assert value_of(network) == 1
    assert network.others == ()


def test_wrappers_of_single_blocks_are_dropped_from_names():
    arrays = encoder(**{"blocks.1._checkpoint_wrapped_module.norm1.weight": np.ones(2)})
    assert "blocks.1.norm1.weight" in find_encoder(arrays).weights
    arrays = encoder(**{"blocks.0._orig_mod.norm1.weight": np.ones(2)})
    with pytest.raises(NoSuchPart, match=r"two arrays that are called blocks\.0\.norm1\.weight"):
        find_encoder(arrays)


def test_chunks_of_blocks_are_dropped_from_names():
    arrays = {ANCHOR: np.ones((2, 3, 4, 4))}
    arrays |= {f"blocks.{n // 2}.{n}.norm1.weight": np.full(2, n) for n in range(4)}
    weights = find_encoder(arrays).weights
    assert [weights[f"blocks.{n}.norm1.weight"][0] for n in range(4)] == [0, 1, 2, 3]


def networks(*places):
    """Returns the content of a file with an encoder at each place, marked by its index."""
    content = {}
    for number, (keys, prefix) in enumerate(places):
        inner = content
        for key in keys:
            inner = inner.setdefault(key, {})
        inner |= encoder(number, prefix)
    return content


DINO = networks((["student"], "module.backbone."), (["teacher"], "backbone."))
DINOV2 = networks((["model"], "student.backbone."), (["model"], "teacher.backbone."))
TIMM = networks((["state_dict_ema"], ""), (["state_dict"], ""))
LIGHTNING = networks((["state_dict"], "momentum_backbone."), (["state_dict"], "backbone."))
JEPA = networks((["encoder"], "module."), (["target_encoder"], "module."))
VQKD = networks((["model"], "decoder."), (["model"], "encoder."))


@pytest.mark.parametrize(
    ("content", "place", "other"),
    [
        (DINO, "teacher.backbone", "student.backbone"),
        (DINOV2, "model.teacher.backbone", "model.student.backbone"),
        (TIMM, "state_dict", "state_dict_ema"),
        (LIGHTNING, "state_dict.backbone", "state_dict.momentum_backbone"),
        (JEPA, "target_encoder", "encoder"),
        (VQKD, "model.encoder", "model.decoder"),
    ],
)
def test_the_preferred_of_two_encoders_is_taken_and_the_other_can_be_chosen(content, place, other):
    preferred = find_encoder(content)
    assert (preferred.place, preferred.others, value_of(preferred)) == (place, (other,), 1)
    chosen = find_encoder(content, other)
    assert (chosen.place, chosen.others, value_of(chosen)) == (other, (place,), 0)


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("teacher", "model.teacher.backbone"),
        ("student", "model.student.backbone"),
        ("student.backbone", "model.student.backbone"),
        ("model.student", "model.student.backbone"),
    ],
)
def test_some_words_of_a_place_are_enough(part, place):
    assert find_encoder(DINOV2, part).place == place


def test_only_whole_words_of_a_place_match():
    assert find_encoder(TIMM, "state_dict").place == "state_dict"
    with pytest.raises(NoSuchPart, match="no network at 'ema'; .* 'state_dict_ema', 'state_dict'"):
        find_encoder(TIMM, "ema")


def test_without_a_preference_the_user_must_choose():
    content = networks((["left"], ""), (["right"], ""))
    with pytest.raises(NoSuchPart, match="'left', 'right'.*not known: --config.init_part=left"):
        find_encoder(content)
    assert value_of(find_encoder(content, "right")) == 1


def test_numbers_beside_arrays_are_left_out_where_there_is_an_encoder():
    assert find_encoder(encoder(epoch=3)).weights.keys() == encoder().keys()


@pytest.mark.parametrize("content", [None, [], {}, {"epoch": 3}, {"a": {"b": np.ones(2)}}])
def test_without_an_encoder_nothing_is_found(content):
    assert find_encoder(content) is None


def test_dicts_that_contain_themselves_or_each_other_are_searched_once():
    content = encoder(1)
    content["self"] = content
    wide = {str(n): content for n in range(1000)}
    wide |= {f"again{n}": wide for n in range(1000)}
    assert value_of(find_encoder(wide)) == 1
    assert preferred_arrays({"a": wide}) is not None


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "embeddings.patch_embedding.weight"])
def test_an_encoder_within_another_s_prefix_is_no_part_of_it(name):
    arrays = {name: np.ones(2), f"decoder.{name}": np.zeros(2), "decoder.norm.weight": np.ones(2)}
    network = find_encoder(arrays)
    assert network.weights.keys() == {name}
    assert network.others == ("decoder",)


def test_clip_is_found_by_its_class_token():
    arrays = {f"visual.{name}": np.ones(2) for name in ("class_embedding", "conv1.weight", "proj")}
    network = find_encoder(arrays | {"token_embedding.weight": np.ones(2)})
    assert network.weights.keys() == {"class_embedding", "conv1.weight", "proj"}

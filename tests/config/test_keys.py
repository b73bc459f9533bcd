"""The table of keys: that it is whole, sound, and in step with what is written elsewhere."""

import re
import typing

import pytest

import tiny
from ddae_jax.config import reference
from ddae_jax.config.keys import ALL_KEYS, KEYS
from ddae_jax.config.schema import ABOVE_0, Key
from ddae_jax.config.shared_checks import check_words
from ddae_jax.data.images import PILLOW_MAX_PIXELS
from ddae_jax.data.view import INTERPOLATIONS
from ddae_jax.methods import METHODS
from ddae_jax.methods.ddae import FeaturePlaces
from ddae_jax.methods.features import FeatureNormalization
from ddae_jax.methods.hog import HogForm
from ddae_jax.methods.supervision import MODES
from ddae_jax.models.attention import AttentionForm
from ddae_jax.models.decoder import DecoderKind
from ddae_jax.models.transformer import Activation, Rematerialization
from ddae_jax.models.vit import SIZES
from ddae_jax.training.schedules import Decay

OF_A_JOB = [(job, name) for job, keys in KEYS.items() for name in keys]


def test_the_table_has_every_key_of_every_job_once():
    assert set(ALL_KEYS) == {name for _, name in OF_A_JOB}
    for job, name in OF_A_JOB:
        assert KEYS[job][name].doc == ALL_KEYS[name].doc  # a key means the same in all jobs


def test_every_key_is_explained_in_a_line_of_its_own():
    for name, key in ALL_KEYS.items():
        assert 10 < len(key.doc) < 140, name
        assert key.doc == " ".join(key.doc.split()), name
        assert key.doc[-1] not in ".;,", name
        assert "|" not in key.doc, name  # it stands in a table
        sections = "|".join({other.partition(".")[0] for other in ALL_KEYS if "." in other})
        named = set(re.findall(rf"\b(?:{sections})\.\w+", key.doc)) - {"model.safetensors"}
        assert named <= set(ALL_KEYS), name
    assert len({key.doc for key in ALL_KEYS.values()}) == len(ALL_KEYS)


@pytest.mark.parametrize("job", KEYS)
def test_every_default_is_a_value_that_the_key_may_have(job):
    for name, key in KEYS[job].items():
        check_words(name, key, key.default)
        if key.kind is tuple:
            count = KEYS[job][key.length].default if isinstance(key.length, str) else key.length
            assert count in (None, len(key.default)), name
            assert all(isinstance(value, key.item) for value in key.default), name
        numbers = key.default if key.kind is tuple else (key.default,)
        if key.kind in (tuple, int, float):
            assert all(map(key.has_in_range, numbers)), name
        if key.ascends:
            assert key.default[0] <= key.default[1], name
        if key.not_above:
            assert key.default <= KEYS[job][key.not_above].default, name


def test_what_a_row_says_fits_the_type_of_its_key():
    for name, key in ALL_KEYS.items():
        assert key.within is None or key.kind in (int, float, tuple), name
        assert not key.words or key.kind is str, name
        assert not (key.ascends or key.length) or key.kind is tuple, name
        assert not key.names_folder or key.kind is str, name
        assert key.example is None or type(key.example) is key.kind, name
        if not key.default and key.kind in (str, tuple):
            assert key.example, f"{name}: its default says little"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("method", METHODS),
        ("model.size", SIZES),
        ("model.activation", typing.get_args(Activation)),
        ("model.attention_form", typing.get_args(AttentionForm)),
        ("model.rematerialization", typing.get_args(Rematerialization)),
        ("decoder.kind", typing.get_args(DecoderKind)),
        ("supervision.mode", MODES),
        ("targets.hog_form", typing.get_args(HogForm)),
        ("targets.feature_normalization", typing.get_args(FeatureNormalization)),
        ("targets.feature_places", typing.get_args(FeaturePlaces)),
        ("evaluation.interpolation", INTERPOLATIONS),
        ("optimizer.decay", typing.get_args(Decay)),
    ],
)
def test_the_words_of_a_key_are_those_that_are_known_where_it_is_used(name, words):
    assert sorted(ALL_KEYS[name].words) == sorted(words)


def test_the_largest_image_is_that_of_pillow():
    assert ALL_KEYS["data.max_pixels"].within == (0, PILLOW_MAX_PIXELS)


def test_the_page_of_all_keys_is_in_step_with_the_table():
    path = tiny.ROOT / "docs" / "config.md"
    assert path.read_text() == reference.page(), (
        "make it again: python -m ddae_jax.config.reference > docs/config.md"
    )


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        (Key(True, "doc"), "True or False"),
        (Key("", "doc"), "text"),
        (Key("a", "doc", choices=("a", "", "b")), "a, empty or b"),
        (Key("a", "doc", choices=lambda: ("a", "b")), "a or b"),
        (Key(1, "doc", within=(0, 2)), "a whole number in [0, 2]"),
        (Key(1.0, "doc", within=(ABOVE_0, 2)), "a number more than 0, at most 2"),
        (Key(1.0, "doc", within=(0, float("inf"))), "a number at least 0"),
        (Key(1, "doc"), "a whole number"),
        (Key((1, 2), "doc", length=2, item=int), "2 whole numbers"),
        (
            Key((0.5, 1.0), "doc", length=2, within=(0, 1), ascends=True),
            "2 numbers, each in [0, 1], ascending",
        ),
        (
            Key((0.5,), "doc", length="data.channels", within=(0, 1)),
            "as many numbers as data.channels, each in [0, 1]",
        ),
        (Key(0.5, "doc", within=(0, 1), not_above="b"), "a number in [0, 1], at most b"),
    ],
)
def test_what_a_key_may_be_is_said_in_words(key, allowed):
    assert reference.allowed_in_words(key) == allowed

"""Tests of all_or_none: how often processes communicate, wherever one of them fails."""

import pytest

from ddae_jax.training import multihost
from ddae_jax.training.multihost import OtherProcessFailed, all_or_none


@pytest.fixture
def asked(monkeypatch):
    """List of the values that this process gives; all other processes give True by default."""
    told, others = [], []

    def all_true(value):
        told.append(value)
        return value and (others.pop(0) if others else True)

    monkeypatch.setattr(multihost, "all_true", all_true)
    return told, others


def nested(fails_in):
    with all_or_none():
        if fails_in == "outer, before":
            raise ValueError("here")
        with all_or_none():
            if fails_in == "inner":
                raise ValueError("here")
        if fails_in == "outer, after":
            raise ValueError("here")


@pytest.mark.parametrize(
    ("fails_in", "told"),
    [
        ("nowhere", [True, True]),
        ("inner", [False]),
        ("outer, before", [False]),
        ("outer, after", [True, False]),
    ],
)
def test_a_failure_is_told_once(asked, fails_in, told):
    if fails_in == "nowhere":
        nested(fails_in)
    else:
        with pytest.raises(ValueError, match="here"):
            nested(fails_in)
    assert asked[0] == told


@pytest.mark.parametrize(("others", "told"), [([False], [True]), ([True, False], [True, True])])
def test_the_failure_of_another_is_met_as_often_as_it_was_told(asked, others, told):
    asked[1].extend(others)
    with pytest.raises(OtherProcessFailed):
        nested("nowhere")
    assert asked[0] == told

import pytest

from ddae_jax.suggestions import did_you_mean


@pytest.mark.parametrize("slip", ["deep-dynamic", "Deep_Dynamic", "deep_dynamc"])
def test_a_slip_leads_to_the_word(slip):
    assert did_you_mean(slip, ["last", "deep", "deep_dynamic"]) == "; did you mean 'deep_dynamic'?"


def test_what_resembles_nothing_gets_no_hint():
    assert did_you_mean("xyz", ["last", "deep"]) == ""


def test_a_number_is_no_slip_of_another_one():
    assert did_you_mean(12, (1, 3)) == ""

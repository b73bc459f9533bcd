"""How a run is watched: a codebook that collapses is told, loudly, and what to do."""

import logging

import pytest

from ddae_jax.monitor import CollapseWatch


def warnings_of(caplog, perplexities, **options):
    watch = CollapseWatch(**{"least": 16.0, "patience": 3} | options)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ddae_jax.monitor"):
        for step, value in enumerate(perplexities, start=1):
            watch(step, {} if value is None else {"codebook/perplexity": value})
    return [record.message for record in caplog.records]


def test_a_codebook_that_stays_below_the_floor_is_told_again_and_again(caplog):
    found = warnings_of(caplog, [100, 5, 4, 3, 3, 3, 2.5])
    assert len(found) == 2
    assert "step 4: the codebook has COLLAPSED: its perplexity is 3.0" in found[0]
    assert "below 16 (its size times tokenizer.min_perplexity_share), for 3 records" in found[0]
    assert "tokenizer.revive_below" in found[0]
    assert "step 7" in found[1]


@pytest.mark.parametrize(
    ("perplexities", "options"),
    [
        ([5, 5, 20, 5, 5, 16], {}),  # it recovers each time
        ([1, 1, 1, 1, 1], {"least": 0.0}),
        ([None] * 9, {}),  # a method without a codebook
    ],
)
def test_what_is_no_collapse_is_left_in_peace(caplog, perplexities, options):
    assert warnings_of(caplog, perplexities, **options) == []

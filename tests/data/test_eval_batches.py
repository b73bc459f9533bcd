"""Batches for evaluation: every example once, in order, whichever process reads it."""

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.view import USUAL_VIEW
from numbered import assert_same, numbered_source


class TestEvalBatches:
    def test_every_example_once_in_order_and_the_rest_is_padding(self):
        source = numbered_source(20)
        batches = list(eval_batches(source, (8, 8), 8))
        assert [batch["image"].shape for batch in batches] == [(8, 8, 8, 3)] * 3
        together = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        np.testing.assert_array_equal(together["index"], [*range(20), *[-1] * 4])
        np.testing.assert_array_equal(together["label"], [*range(20), *[-1] * 4])
        np.testing.assert_array_equal(together["valid"], [True] * 20 + [False] * 4)
        image = Image.fromarray(source[13]["image"])
        expected = USUAL_VIEW.show(image, (8, 8))
        np.testing.assert_array_equal(together["image"][13], expected)

    @pytest.mark.parametrize("count", [1, 20, 24])
    def test_processes_together_see_the_same(self, count):
        source = numbered_source(count)
        parts = [
            list(eval_batches(source, (8, 8), 8, process_index=index, process_count=2))
            for index in range(2)
        ]
        together = [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(together, list(eval_batches(source, (8, 8), 8)))

    def test_limit_spreads_evenly(self):
        (batch,) = eval_batches(numbered_source(20), (8, 8), 8, limit=4)
        assert batch["index"][:4].tolist() == [0, 5, 10, 15]
        assert batch["valid"].sum() == 4
        assert len(list(eval_batches(numbered_source(20), (8, 8), 8, limit=100))) == 3

    def test_corrupt_image_is_invalid_but_has_its_index(self):
        (batch,) = eval_batches(numbered_source(8, corrupt=(5,)), (8, 8), 8)
        assert batch["index"].tolist() == list(range(8))
        assert np.flatnonzero(~batch["valid"]).tolist() == [5]
        assert not batch["image"][5].any()

    def test_index_does_not_overflow_on_a_large_source(self):
        class Large(ArraySource):
            def __len__(self):
                return 1_300_000

            def open(self, indices):
                return super().open([0 for _ in indices])

        numbers = numbered_source(1)
        source = Large(numbers._images, numbers._labels)
        *_, last = eval_batches(source, (8, 8), 500, limit=50_000)
        assert last["index"][-1] == 1_299_974

    @pytest.mark.parametrize(
        ("batch_size", "limit", "message"), [(3, None, "batch_size=3"), (4, 0, "limit=0")]
    )
    def test_arguments_that_contradict_each_other_are_refused(self, batch_size, limit, message):
        with pytest.raises(ValueError, match=message):
            eval_batches(numbered_source(4), (8, 8), batch_size, process_count=2, limit=limit)

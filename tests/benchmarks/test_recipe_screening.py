"""The screening of recipes: an orthogonal design of sound configs, and effects by hand."""

import numpy as np
import pytest

import tiny
from benchmarks import recipe_screening as screening
from ddae_jax.config.checks import check_config
from ddae_jax.config.values import parse_value
from ddae_jax.jobs import cli


def test_every_pair_of_factors_is_balanced():
    np.testing.assert_array_equal(screening.DESIGN.T @ screening.DESIGN, 16 * np.eye(15))
    np.testing.assert_array_equal(screening.DESIGN.sum(axis=0), np.zeros(15))
    assert len(screening.FACTORS) == screening.DESIGN.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", screening.PARTS)
def test_every_run_is_a_sound_config_and_differs_from_the_others(part):
    found = []
    for cell, images, options in screening.PARTS[part]().values():
        config = cli.load_config(f"{tiny.ROOT / 'configs' / 'cifar10.py'}:{cell}")
        changes = screening.COMMON | options
        config.update_from_flattened_dict(
            {key: parse_value(key, str(value)) for key, value in changes.items()}
        )
        check_config(config)
        found.append((images, config.to_json()))
    assert len(set(found)) == len(found)


def test_effects_are_differences_of_means_with_the_error_of_repetition():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (16, 2))
    third = screening.DESIGN[:, 2]
    values = 0.4 + 0.03 * third[:, None] + noise
    runs = {
        f"factorial_{row:02d}_seed_{seed}": dict.fromkeys(screening.MEASURES, values[row, seed])
        for row in range(16)
        for seed in range(2)
    }
    effect, error = screening.effects(runs)[list(screening.FACTORS)[2]]["linear"]
    by_hand = values[third > 0].mean() - values[third < 0].mean()
    np.testing.assert_allclose(effect, by_hand, rtol=1e-6)
    deviation = np.sqrt(np.square(values[:, 0] - values[:, 1]).mean() / 2)
    np.testing.assert_allclose(error, deviation * np.sqrt(1 / 16 + 1 / 16), rtol=1e-6)
    assert "`decoder.kind=self`" in screening.tables(runs)


def test_a_run_is_claimed_once_at_a_time(tmp_path):
    path = tmp_path / "folder" / "run.lock"
    with screening.claimed(path) as first, screening.claimed(path) as second:
        assert (first, second) == (True, False)
    with screening.claimed(path) as again:
        assert again


def test_the_advantage_has_the_standard_error_of_the_difference():
    """Each method at the fine-tuning rate of its best mean, which need not be that of a seed."""
    runs = {}
    for seed in range(3):
        mae = {"knn": 0.4, "linear": 0.5 + 0.01 * seed}
        ddae = {"knn": 0.4 + 0.02 * (seed - 1), "linear": 0.53}
        mae |= {"finetuned_0.1": 0.6, "finetuned_0.2": 0.5 + 0.1 * (seed == 0)}
        ddae |= {"finetuned_0.1": (0.9, 0.1, 0.1)[seed], "finetuned_0.2": 0.65}
        for name, result in (("mae", mae), ("ddae", ddae)):
            watched = {"untrained": 0.25, "by_epoch": [[0.4, 0.27], [0.8, 0.24 + 0.02 * seed]]}
            result |= {"images": 1, "images_per_s": 1.0, "knn_on_the_way": watched}
            runs[f"final_{name}_seed_{seed}"] = result
    found = screening.advantage(runs)
    np.testing.assert_allclose(found["knn"], (0.0, 0.02 / np.sqrt(3)), atol=1e-12)
    np.testing.assert_allclose(found["linear"], (0.02, 0.01 / np.sqrt(3)), atol=1e-12)
    np.testing.assert_allclose(found["finetuned"], (0.05, 0.0), atol=1e-12)
    table = screening.tables(runs)
    assert "DDAE over MAE: knn +0.0 ± 1.2, linear +2.0 ± 0.6" in table
    assert "final_mae_seed_0: k-NN on the way, least over untrained: -1.0 at epoch 0.8" in table
    assert "final_ddae_seed_2: k-NN on the way, least over untrained: +2.0 at epoch 0.4" in table

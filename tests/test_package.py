"""The front door: what ``from ddae_jax import ...`` gives, and what importing the package costs."""

import importlib

import pytest

import ddae_jax
import tiny

HOMES = {
    "DeepDynamicSupervision": "methods.supervision",
    "block_mask": "masking",
    "distance_map": "distance",
    "dynamic_loss": "dynamic_loss",
    "dynamic_weights": "dynamic_loss",
    "random_mask": "masking",
    "supervised_depths": "methods.supervision",
}


def test_every_public_name_is_that_of_its_module():
    assert sorted(ddae_jax.__all__) == sorted(HOMES)
    for name, home in HOMES.items():
        assert getattr(ddae_jax, name) is getattr(importlib.import_module(f"ddae_jax.{home}"), name)
        assert name in dir(ddae_jax)


def test_a_name_that_a_submodule_has_too_is_the_function_whatever_was_imported_before():
    done = tiny.run_program(
        "import ddae_jax.dynamic_loss\n"
        "from ddae_jax import dynamic_loss\n"
        "from ddae_jax.dynamic_loss import dynamic_weights\n"
        "print(dynamic_loss.__name__, ddae_jax.dynamic_loss is dynamic_loss)"
    )
    assert done.stdout == "dynamic_loss True\n", done.stderr


def test_the_modules_of_these_names_need_no_import_of_their_own():
    done = tiny.run_program(
        "import ddae_jax\n"
        "print(ddae_jax.masking.random_mask is ddae_jax.random_mask,\n"
        "      ddae_jax.distance.distance_map is ddae_jax.distance_map,\n"
        "      ddae_jax.methods.supervision.MODES)"
    )
    assert done.stdout == "True True ('last', 'deep', 'deep_dynamic')\n", done.stderr


def test_a_name_that_there_is_not_is_refused():
    with pytest.raises(ImportError, match="cannot import name 'dynamic_los'"):
        exec("from ddae_jax import dynamic_los")
    with pytest.raises(AttributeError, match="dynamic_los"):
        ddae_jax.dynamic_los  # noqa: B018


def test_the_table_of_keys_and_the_reading_of_configs_import_no_jax():
    done = tiny.run_program(
        "import sys\n"
        "from ddae_jax.config import files, from_plain, pretrain_defaults, reference, to_plain\n"
        "from_plain(to_plain(pretrain_defaults()))\n"
        "print(sorted({'jax', 'flax', 'numpy', 'PIL', 'orbax'} & sys.modules.keys()))"
    )
    assert done.stdout == "[]\n", done.stderr

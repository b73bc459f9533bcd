"""Recipes: a config is set to a method as published, and compared with it."""

from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.defaults import defaults_by_key
from ddae_jax.config.schema import flatten
from ddae_jax.methods import METHODS, find_method
from ddae_jax.methods.supervision import check_mode


def recipe_differences(config: ConfigDict) -> list[str]:
    """Returns one line for each key in which a config differs from its method as published.

    Looked at are input, mask, targets, and what else the method's recipe names; where that is
    silent about one of them, it means the default. Ratios may differ by a twentieth, which rounding
    to patches does too. Empty for a method without a recipe, and for a tokenizer.
    """
    spec = METHODS[config.method]
    if not spec.recipe or spec.kind == "tokenizer":
        return []
    flat, defaults = flatten(config), defaults_by_key()
    masked = [other for other in METHODS.values() if other.kind == "masked"]
    lines = []
    for key in dict.fromkeys(key for other in masked for key in other.recipe):
        section, _, name = key.partition(".")
        is_architecture = section == "model" and name != "encoder_input"
        if is_architecture and key not in spec.recipe:
            continue
        if section == "supervision" or (section == "targets" and name not in spec.options):
            continue
        if section == "decoder" and (name != "kind" or key not in spec.recipe):
            continue
        published = spec.recipe.get(key, defaults[key])
        is_near = key == "mask.ratio" and abs(flat[key] - published) <= published / 20
        if flat[key] != published and not is_near:
            lines.append(f"{key}={flat[key]!r}, not {published!r}")
    return lines


def use_recipe(config: ConfigDict, cell: str) -> None:
    """Sets a config to a cell of the grid of methods and supervisions.

    Args:
        config: is changed in place.
        cell: ``METHOD`` or ``METHOD,SUPERVISION``, such as ``mae,deep_dynamic``; without a
            supervision the config keeps its own.

    Raises ``ValueError``, naming the known ones, for another method or supervision.
    """
    method, has_supervision, supervision = cell.partition(",")
    spec = find_method(method.strip())
    config.method = spec.name
    if has_supervision and spec.kind == "tokenizer":
        raise ValueError(f"method={spec.name!r} is supervised at its end: give {spec.name} alone")
    if has_supervision:
        config.supervision.mode = check_mode(supervision.strip())
    config.update_from_flattened_dict(_recipe(config))


def _recipe(config: ConfigDict) -> dict[str, Any]:
    recipe = dict(METHODS[config.method].recipe)
    if config.supervision.mode == "last":
        recipe.pop("decoder.intermediate_share", None)
        recipe.pop("decoder.intermediate_blocks", None)
    return recipe

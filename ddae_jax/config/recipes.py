"""Methods as their papers have them: what a config takes over from a name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.defaults import defaults_by_key
from ddae_jax.config.schema import flatten
from ddae_jax.methods import find_method, options_of
from ddae_jax.methods.supervision import check_mode

_RELATIVE_POSITIONS = {
    "model.positions": "none",
    "model.relative_positions": "shared",
    "model.layer_scale": 0.1,
    "model.has_key_bias": False,
}
# The authors decay all that is learned and has more than one axis in their code, as their tokens
# have; of this, SimMIM's, BEiT's and BEiT v2's leave out class token and positions.
_DECAYED_BY_BEIT = "mask_token,relative_positions"
_BEIT = {
    "model.encoder_input": "full",
    **_RELATIVE_POSITIONS,
    "mask.kind": "block",
    "mask.ratio": 0.4,
    "optimizer.decay_also": _DECAYED_BY_BEIT,
}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ddae": {},
        "mae": {
            "model.encoder_input": "visible",
            "decoder.kind": "self",
            "decoder.depth": 8,
            # Of deep supervision; ours.
            "decoder.intermediate_share": 0.25,
            "decoder.intermediate_blocks": 1,
            "mask.kind": "random",
            "mask.ratio": 0.75,
            "targets.normalize_pixels": True,
            "optimizer.decay_also": "class_token,mask_token",
        },
        "simmim": {
            "model.encoder_input": "full",
            "mask.kind": "random",
            "mask.ratio": 0.6,
            "mask.unit": 2,  # 32 pixels, for patches of 16
            "targets.normalize_pixels": False,
            "optimizer.decay_also": _DECAYED_BY_BEIT,
            **_RELATIVE_POSITIONS,
        },
        "maskfeat": {
            "model.encoder_input": "full",
            "model.positions": "learned",
            "mask.kind": "block",
            "mask.ratio": 0.4,
            "mask.min_block_share": 0.2,
            "targets.hog_form": "sobel",
            "optimizer.decay_also": "class_token,mask_token,positions",
        },
        "beit": _BEIT,
        "beit2": _BEIT,
    }
)
"""What makes each method the published one, by key, beside the config's defaults.

How depths before the last one are decoded is ours.
"""


def departures(config: ConfigDict) -> list[str]:
    """One line for each key in which a config differs from its method as published.

    Looked at are input, mask, targets, and what else its recipe names; where that is silent about
    one of them, it means the default. Ratios may differ by a twentieth, which rounding to patches
    does too. Empty for what has no recipe.
    """
    if not RECIPES.get(config.method):
        return []
    flat, defaults = flatten(config), defaults_by_key()
    known = dict.fromkeys(key for recipe in RECIPES.values() for key in recipe)
    options = options_of(config.method)
    found = []
    for key in known:
        section, _, name = key.partition(".")
        is_architecture = section == "model" and name != "encoder_input"
        if is_architecture and key not in RECIPES[config.method]:
            continue
        if section == "supervision" or (section == "targets" and name not in options):
            continue
        if section == "decoder" and (name != "kind" or key not in RECIPES[config.method]):
            continue
        published = RECIPES[config.method].get(key, defaults[key])
        is_near = key == "mask.ratio" and abs(flat[key] - published) <= published / 20
        if flat[key] != published and not is_near:
            found.append(f"{key}={flat[key]!r}, not {published!r}")
    return found


def use_recipe(config: ConfigDict, cell: str) -> None:
    """Sets a config to a cell of the grid of methods and supervisions.

    Args:
        config: is changed in place.
        cell: ``METHOD`` or ``METHOD,SUPERVISION``, such as ``mae,deep_dynamic``; without a
            supervision the config keeps its own.

    Raises ``ValueError``, naming the known ones, for another method or supervision.
    """
    method, has_supervision, supervision = cell.partition(",")
    find_method(method.strip())
    config.method = method.strip()
    if has_supervision:
        config.supervision.mode = check_mode(supervision.strip())
    config.update_from_flattened_dict(_recipe(config))


def _recipe(config: ConfigDict) -> dict[str, Any]:
    recipe = dict(RECIPES.get(config.method, {}))
    if config.supervision.mode == "last":
        recipe.pop("decoder.intermediate_share", None)
        recipe.pop("decoder.intermediate_blocks", None)
    return recipe

"""Encoders in folders that timm or transformers saved: their config.json tells what arrays do not.

Where it tells a name alone, as timm's does, or leaves out what is the default, as that of
transformers, ``architectures.json`` has the rest; tests/golden/make_architectures.py made it, from
these libraries.
"""

import contextlib
import difflib
import functools
import importlib.resources
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ddae_jax.data.disks import is_file
from ddae_jax.interop.architecture import (
    ACTIVATIONS,
    Backbone,
    WeightHints,
    check_heads,
    describe_encoder,
    other_encoders_note,
)
from ddae_jax.interop.json_files import read_json, settings_at
from ddae_jax.interop.preprocessing import (
    OWN_KEY,
    image_size_from_transformers,
    pool_from_timm,
    pool_from_transformers,
    preprocessing_from_timm,
    preprocessing_from_transformers,
)
from ddae_jax.interop.weight_files import find_weights, read_network, read_weights
from ddae_jax.interop.weights_to_params import (
    Tree,
    UnknownWeights,
    Weights,
    timm_encoder,
    transformers_encoder,
)

_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Those of transformers, and their names here."""

_PREFIXES = {
    "vit": "vit.",
    "vit_mae": "vit.",
    "vit_msn": "vit.",
    "ijepa": "ijepa.",
    "beit": "beit.",
    "dinov2": "dinov2.",
    "clip_vision_model": "vision_model.",
    "siglip_vision_model": "vision_model.",
}
"""By kind of transformers, what is before the names of an encoder that lies below a head."""

_WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models of images and texts, whose ``vision_config`` is that of the former."""

_FOREIGN = {
    "deit": "a distillation token",
    "dinov2_with_registers": "register tokens",
    "dinov3_vit": "rotary positions and register tokens",
    "eva": "rotary positions",
    "siglip2": "images of any shape, and positions for each",
    "data2vec-vision": "a kind of its own, model_type 'data2vec-vision'",
    "swin": "windows of attention",
    "swinv2": "windows of attention",
    "hiera": "windows of attention",
}
"""What kinds of transformers have that an encoder here has not."""

_UNTOLD = ("norm_layer", "mlp_layer", "block_fn", "attn_layer", "embed_layer", "embed_norm_layer")
_UNTOLD += ("qk_norm", "swiglu_mlp", "use_rot_pos_emb", "rope_type", "rope_mixed_mode")
_UNTOLD += ("scale_attn_norm", "scale_mlp_norm", "scale_mlp", "use_post_norm", "dynamic_img_pad")
"""Arguments of timm's networks that change what is computed, and that no array tells of."""


def read_folder(folder: pathlib.Path, told: WeightHints) -> Backbone:
    """The encoder in a folder; for what is raised, see :func:`backbones.read_backbone`."""
    file = folder / "config.json"
    weights_file = find_weights(folder)
    if not is_file(weights_file):
        read_network(weights_file)  # which says what is missing
    config = read_json(file, "it says the architecture")
    if "architecture" in config:
        return _from_timm(folder, config, told)
    kind = config.get("model_type")
    if kind in _WHOLE:
        inner = settings_at("vision_config", config, file)
        config = {**inner, "model_type": _WHOLE[kind]}
    if config.get("model_type") in _PREFIXES:
        return _from_transformers(folder, config, told)
    if kind in _FOREIGN:
        raise UnknownWeights(
            f"{file}: model_type {kind!r} has {_FOREIGN[kind]}, which an encoder here has not"
        )
    known = ", ".join(map(repr, (*_PREFIXES, *_WHOLE)))
    raise ValueError(
        f"{file}: known are timm's (with 'architecture') and transformers' with model_type "
        f"{known}; found model_type {kind or 'none'!r}"
    )


@functools.cache
def architectures() -> Mapping[str, Any]:
    """What names of timm stand for, and what is the default in transformers."""
    file = importlib.resources.files("ddae_jax.interop") / "architectures.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _from_timm(folder: pathlib.Path, config: Mapping[str, Any], told: WeightHints) -> Backbone:
    file = folder / "config.json"
    arguments = settings_at("model_args", config, file)
    # Earlier versions of timm have what is in pretrained_cfg beside the architecture.
    trained_on = settings_at("pretrained_cfg", config, file) or config
    architecture = str(config["architecture"]).partition(".")[0]
    heads, activation, epsilon, notes = _named_by_timm(file, architecture, arguments, told)
    untold = [name for name in _UNTOLD if arguments.get(name)]
    if untold:
        raise UnknownWeights(
            f"{file}: model_args has {untold[0]}={arguments[untold[0]]!r}, which is not known here"
        )
    heads = _whole(arguments.get("num_heads") or heads, file, "model_args.num_heads")
    activation = _activation_of_timm(file, arguments.get("act_layer") or activation)
    told.check(file, heads, activation)
    seen = trained_on.get("input_size")
    seen = seen[-2:] if isinstance(seen, list) else None
    size = _pair(arguments.get("img_size") or seen, file, "pretrained_cfg.input_size")
    network = read_network(find_weights(folder), told.part)
    kernel = network.weights.get("patch_embed.proj.weight")
    num_patches = None if kernel is None else _count(size, kernel.shape)
    with _of(folder):
        params = timm_encoder(network.weights, num_patches)
    options = {
        "num_heads": heads,
        "image_size": size,
        "activation": activation,
        "norm_epsilon": epsilon,
        "layer_scale": arguments.get("init_values"),
    }
    where = f"{file}: pretrained_cfg"
    channels = 3 if kernel is None else kernel.shape[1]
    mean, std = (_statistics(trained_on, key, where, channels) for key in ("mean", "std"))
    notes += _other_size(where, size, seen and tuple(seen))
    if not told.part:
        notes += other_encoders_note(find_weights(folder), network)
    return _finish(options, params, mean, std, file)._replace(
        notes=notes,
        pool=pool_from_timm(config, arguments, network.weights),
        preprocessing=preprocessing_from_timm(trained_on, where),
    )


def _named_by_timm(
    file: pathlib.Path, name: str, arguments: Mapping[str, Any], told: WeightHints
) -> tuple[int, str, float, tuple[str, ...]]:
    """Heads, activation and epsilon of an architecture, and what is taken for granted of them."""
    known = architectures()["timm"]
    entry = known.get(name)
    if isinstance(entry, str):
        raise UnknownWeights(
            f"{file}: architecture {name!r} has {entry}, which an encoder here has not"
        )
    if entry is not None:
        return *entry, ()
    heads = told.heads or arguments.get("num_heads")
    activation = told.activation or arguments.get("act_layer")
    if not heads or not activation:
        near = difflib.get_close_matches(name, known, n=1)
        nearest = f" (near is {near[0]!r})" if near else ""
        raise ValueError(
            f"{file}: architecture {name!r} is none of the {len(known)} vision transformers of "
            f"timm {architectures()['timm_version']}{nearest}. If it is a plain one, "
            'say its heads and activation: as "model_args": {"num_heads": 12, "act_layer": '
            '"gelu"} in that file, or, for init_from, as --config.init_heads=12 '
            "--config.init_activation=gelu"
        )
    note = f"architecture {name!r} is not known: its norms are taken to have an epsilon of 1e-06"
    return heads, activation, 1e-6, (note,)


@contextlib.contextmanager
def _of(folder: pathlib.Path) -> Iterator[None]:
    """Lets an error about arrays say where they are from."""
    try:
        yield
    except UnknownWeights as error:
        raise UnknownWeights(f"{folder}: {error}") from error


def _activation_of_timm(file: pathlib.Path, told: str) -> str:
    if told not in ACTIVATIONS:
        raise ValueError(
            f"{file}: act_layer={told!r}; known activations are {', '.join(map(repr, ACTIVATIONS))}"
        )
    return told


def _from_transformers(
    folder: pathlib.Path, config: Mapping[str, Any], told: WeightHints
) -> Backbone:
    file, kind = folder / "config.json", config["model_type"]
    if told.part:
        raise ValueError(
            f"init_part={told.part!r} is for files with several networks; {folder} is a folder of "
            f"transformers, of the kind {kind!r}, which has one encoder: leave it empty"
        )
    config = architectures()["transformers"][kind] | config
    weights, prefix = read_weights(find_weights(folder)), _PREFIXES[kind]
    if not any(name.startswith(prefix) for name in weights):
        weights = {prefix + name: array for name, array in weights.items()}  # saved without a head
    num_heads, activation = config["num_attention_heads"], config["hidden_act"]
    if not num_heads or not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{file}: num_attention_heads={num_heads!r}, hidden_act={activation!r}; the heads must "
            f"be told, and known activations are {', '.join(map(repr, _ACTIVATIONS))}"
        )
    num_heads = _whole(num_heads, file, "num_attention_heads")
    told.check(file, num_heads, _ACTIVATIONS[activation])
    size = _pair(config["image_size"], file, "image_size")
    kernel = _patch_kernel(weights)
    with _of(folder):
        num_patches = None if kernel is None else _count(size, kernel)
        params = transformers_encoder(weights, prefix, num_patches)
    options = {
        "num_heads": num_heads,
        "activation": _ACTIVATIONS[activation],
        "image_size": size,
        "norm_epsilon": config["layer_norm_eps"],
        "layer_scale": config.get("layer_scale_init_value") or config.get("layerscale_value"),
    }
    seen, where = _processor(folder)
    mean, std = _statistics_of_processor(seen, where, 3 if kernel is None else kernel[1])
    own = settings_at(OWN_KEY, config, file)
    shown = image_size_from_transformers(seen)
    return _finish(options, params, mean, std, file)._replace(
        notes=_other_size(where, size, shown),
        pool=pool_from_transformers(config, own, weights, file),
        preprocessing=preprocessing_from_transformers(seen, own, where),
    )


def _other_size(
    where: object, size: tuple[int, int], shown: tuple[int, int] | None
) -> tuple[str, ...]:
    """A note where an encoder has positions for another size than its images are cut to."""
    if shown is None or shown == size:
        return ()
    height, width = shown
    return (
        f"{where} shows images of {height} x {width} pixels, and the encoder's positions are of "
        f"{size[0]} x {size[1]}, which is taken; --config.model.image_size={height},{width} "
        "resizes them",
    )


def _processor(folder: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """Reads the settings of the image processor, and says which file has them."""
    file = folder / "preprocessor_config.json"
    whole = folder / "processor_config.json"  # of a model of images and texts
    if not is_file(file) and is_file(whole):
        return settings_at("image_processor", read_json(whole, ""), whole), whole
    return read_json(file, "it says which pixel statistics the encoder was trained on"), file


def _statistics_of_processor(
    seen: Mapping[str, Any], file: pathlib.Path, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Tells mean and deviation, of pixel values in [0, 1], by what a processor does to them."""
    factor = seen.get("rescale_factor", 1 / 255) if seen.get("do_rescale", True) else 1
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"{file}: rescale_factor={factor!r}; a number above 0")
    scale = 255 * factor
    if seen.get("do_normalize", True):
        mean, std = (_statistics(seen, f"image_{key}", file, channels) for key in ("mean", "std"))
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
    scale = 1.0 if math.isclose(scale, 1) else scale
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _patch_kernel(weights: Weights) -> tuple[int, ...] | None:
    """The shape of the kernel (width, channels, rows, columns) that embeds each patch."""
    names = ("patch_embeddings.projection.weight", "patch_embedding.weight")
    shapes = (a.shape for name, a in weights.items() if a.ndim == 4 and name.endswith(names))
    return next(shapes, None)


def _count(size: tuple[int, int], kernel: tuple[int, ...]) -> int | None:
    """The patches of an image, by that shape."""
    if len(kernel) != 4 or 0 in kernel:
        return None
    return (size[0] // kernel[2]) * (size[1] // kernel[3])


def _finish(
    options: dict[str, Any],
    params: Tree,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    file: pathlib.Path,
) -> Backbone:
    with _of(file.parent):
        described = describe_encoder(params, len(mean))
    check_heads(file, options["num_heads"], params)
    if described["layer_scale"] is None or not options["layer_scale"]:
        del options["layer_scale"]
    return Backbone(described | options, params, mean, std)


def _statistics(
    config: Mapping[str, Any], key: str, where: object, channels: int
) -> tuple[float, ...]:
    """A value for each channel; one number is that of all."""
    found = config.get(key)
    values = (found,) * channels if isinstance(found, int | float) else found
    are_there = isinstance(values, list | tuple) and len(values) > 0
    if not are_there or not all(isinstance(value, int | float) for value in values):
        told = "no" if found is None else f"{found!r} as"
        raise ValueError(
            f"{where} has {told} {key!r}: the pixel statistics that the encoder was trained on are "
            "not known. Add them, one value a channel, such as [0.5, 0.5, 0.5]"
        )
    return tuple(float(value) for value in values)


def _whole(value: Any, file: pathlib.Path, key: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{file}: {key}={value!r}; a whole number above 0")
    return value


def _pair(size: Any, where: object, key: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and [type(side) for side in size] == [int, int]:
        return tuple(size)
    raise ValueError(f"{where} has no {key!r}: the size of the images is not known")

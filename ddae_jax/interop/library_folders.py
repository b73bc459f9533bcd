"""Reader of encoders in folders that timm or transformers saved.

A folder's ``config.json`` says what the arrays do not show. timm's may name the architecture alone,
and transformers' leaves out default values. Both are looked up in ``architectures.json``, which
``tests/golden/make_architectures.py`` made from the libraries.
"""

import contextlib
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
from ddae_jax.suggestions import did_you_mean

_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations by transformers' names, and their names here."""

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
"""Prefix of the encoder's names in a model that also has a head, by ``model_type``."""

_IMAGE_ENCODERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""``model_type`` of the image encoder within a model of images and texts."""

_UNSUPPORTED_TYPES = {
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
"""Features that an encoder here cannot have, by ``model_type``."""

_UNSUPPORTED_ARGUMENTS = ("norm_layer", "mlp_layer", "block_fn", "attn_layer", "embed_layer")
_UNSUPPORTED_ARGUMENTS += ("embed_norm_layer", "qk_norm", "swiglu_mlp", "use_rot_pos_emb")
_UNSUPPORTED_ARGUMENTS += ("rope_type", "rope_mixed_mode", "scale_attn_norm", "scale_mlp_norm")
_UNSUPPORTED_ARGUMENTS += ("scale_mlp", "use_post_norm", "dynamic_img_pad")
"""Arguments of timm's networks that change the computation without a trace in the arrays."""


def read_folder(folder: pathlib.Path, hints: WeightHints) -> Backbone:
    """Reads the encoder in a folder of timm or transformers.

    Args:
        folder: the folder.
        hints: facts that the user gives. They must not contradict the config.

    Raises:
        FileNotFoundError: as :func:`ddae_jax.interop.backbones.read_backbone` does.
        ReadFailed: as that function does.
        ValueError: as that function does.
    """
    file = folder / "config.json"
    weights_file = find_weights(folder)
    if not is_file(weights_file):
        read_network(weights_file)  # raises the error that says what is missing
    config = read_json(file, "it says the architecture")
    if "architecture" in config:
        return _from_timm(folder, config, hints)
    kind = config.get("model_type")
    if kind in _IMAGE_ENCODERS:
        inner = settings_at("vision_config", config, file)
        config = {**inner, "model_type": _IMAGE_ENCODERS[kind]}
    if config.get("model_type") in _PREFIXES:
        return _from_transformers(folder, config, hints)
    if kind in _UNSUPPORTED_TYPES:
        feature = _UNSUPPORTED_TYPES[kind]
        raise UnknownWeights(
            f"{file}: model_type {kind!r} has {feature}, which an encoder here has not"
        )
    known = ", ".join(map(repr, (*_PREFIXES, *_IMAGE_ENCODERS)))
    raise ValueError(
        f"{file}: known are timm's (with 'architecture') and transformers' with model_type "
        f"{known}; found model_type {kind or 'none'!r}"
    )


@functools.cache
def architectures() -> Mapping[str, Any]:
    """Returns the content of ``architectures.json``.

    Returns:
        ``timm``: by architecture, a list of heads, activation and epsilon, or the feature that an
        encoder here cannot have. ``timm_version``: the version that these are from.
        ``transformers``: by ``model_type``, the default values of its config.
    """
    file = importlib.resources.files("ddae_jax.interop") / "architectures.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _from_timm(folder: pathlib.Path, config: Mapping[str, Any], hints: WeightHints) -> Backbone:
    """Reads the encoder in a folder of timm with this ``config.json``."""
    file = folder / "config.json"
    arguments = settings_at("model_args", config, file)
    # Earlier versions of timm put the keys of pretrained_cfg beside the architecture.
    trained_on = settings_at("pretrained_cfg", config, file) or config
    architecture = str(config["architecture"]).partition(".")[0]
    heads, activation, epsilon, notes = _look_up_timm(file, architecture, arguments, hints)
    unsupported = [name for name in _UNSUPPORTED_ARGUMENTS if arguments.get(name)]
    if unsupported:
        name = unsupported[0]
        raise UnknownWeights(
            f"{file}: model_args has {name}={arguments[name]!r}, which is not known here"
        )
    heads = _positive_int(arguments.get("num_heads") or heads, file, "model_args.num_heads")
    activation = arguments.get("act_layer") or activation
    _check_activation(file, activation)
    hints.check(file, heads, activation)
    input_size = trained_on.get("input_size")
    input_size = input_size[-2:] if isinstance(input_size, list) else None
    size = _pair(arguments.get("img_size") or input_size, file, "pretrained_cfg.input_size")
    network = read_network(find_weights(folder), hints.part)
    kernel = network.weights.get("patch_embed.proj.weight")
    num_patches = None if kernel is None else _num_patches(size, kernel.shape)
    with _name_in_errors(folder):
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
    notes += _size_note(where, size, input_size and tuple(input_size))
    if not hints.part:
        notes += other_encoders_note(find_weights(folder), network)
    return _finish(options, params, mean, std, file)._replace(
        notes=notes,
        pool=pool_from_timm(config, arguments, network.weights),
        preprocessing=preprocessing_from_timm(trained_on, where),
    )


def _look_up_timm(
    file: pathlib.Path, name: str, arguments: Mapping[str, Any], hints: WeightHints
) -> tuple[int, str, float, tuple[str, ...]]:
    """Looks up an architecture of timm.

    Args:
        file: the ``config.json``, for messages.
        name: the architecture, without the tag of its pretraining.
        arguments: ``model_args``, for an architecture that is not known.
        hints: for an architecture that is not known.

    Returns:
        Number of heads, activation, epsilon, and notes on what is assumed.

    Raises:
        ValueError: if an encoder here cannot have the architecture, or it is not known and neither
            ``arguments`` nor hints have heads and activation.
    """
    known = architectures()["timm"]
    entry = known.get(name)
    if isinstance(entry, str):
        raise UnknownWeights(
            f"{file}: architecture {name!r} has {entry}, which an encoder here has not"
        )
    if entry is not None:
        return *entry, ()
    heads = hints.heads or arguments.get("num_heads")
    activation = hints.activation or arguments.get("act_layer")
    if not heads or not activation:
        suggestion = did_you_mean(name, known) or "."
        raise ValueError(
            f"{file}: architecture {name!r} is none of the {len(known)} vision transformers of "
            f"timm {architectures()['timm_version']}{suggestion} If it is a plain one, "
            'say its heads and activation: as "model_args": {"num_heads": 12, "act_layer": '
            '"gelu"} in that file, or, for init_from, as --config.init_heads=12 '
            "--config.init_activation=gelu"
        )
    note = f"architecture {name!r} is not known: its norms are taken to have an epsilon of 1e-06"
    return heads, activation, 1e-6, (note,)


@contextlib.contextmanager
def _name_in_errors(folder: pathlib.Path) -> Iterator[None]:
    """Puts the folder's name before the message of an :class:`UnknownWeights`."""
    try:
        yield
    except UnknownWeights as error:
        raise UnknownWeights(f"{folder}: {error}") from error


def _check_activation(file: pathlib.Path, activation: str) -> None:
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{file}: act_layer={activation!r}; known activations are {known}")


def _from_transformers(
    folder: pathlib.Path, config: Mapping[str, Any], hints: WeightHints
) -> Backbone:
    """Reads the encoder in a folder of transformers with this ``config.json``."""
    file, kind = folder / "config.json", config["model_type"]
    if hints.part:
        raise ValueError(
            f"init_part={hints.part!r} is for files with several networks; {folder} is a folder of "
            f"transformers, of the kind {kind!r}, which has one encoder: leave it empty"
        )
    config = architectures()["transformers"][kind] | config
    weights, prefix = read_weights(find_weights(folder)), _PREFIXES[kind]
    if not any(name.startswith(prefix) for name in weights):
        # The encoder was saved alone, without a head.
        weights = {prefix + name: array for name, array in weights.items()}
    num_heads, activation = config["num_attention_heads"], config["hidden_act"]
    if not num_heads or not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{file}: num_attention_heads={num_heads!r}, hidden_act={activation!r}; the heads must "
            f"be given, and known activations are {', '.join(map(repr, _ACTIVATIONS))}"
        )
    num_heads = _positive_int(num_heads, file, "num_attention_heads")
    hints.check(file, num_heads, _ACTIVATIONS[activation])
    size = _pair(config["image_size"], file, "image_size")
    kernel_shape = _patch_kernel_shape(weights)
    with _name_in_errors(folder):
        num_patches = None if kernel_shape is None else _num_patches(size, kernel_shape)
        params = transformers_encoder(weights, prefix, num_patches)
    options = {
        "num_heads": num_heads,
        "activation": _ACTIVATIONS[activation],
        "image_size": size,
        "norm_epsilon": config["layer_norm_eps"],
        "layer_scale": config.get("layer_scale_init_value") or config.get("layerscale_value"),
    }
    processor, where = _read_processor(folder)
    channels = 3 if kernel_shape is None else kernel_shape[1]
    mean, std = _statistics_of_processor(processor, where, channels)
    own = settings_at(OWN_KEY, config, file)
    return _finish(options, params, mean, std, file)._replace(
        notes=_size_note(where, size, image_size_from_transformers(processor)),
        pool=pool_from_transformers(config, own, weights, file),
        preprocessing=preprocessing_from_transformers(processor, own, where),
    )


def _size_note(
    where: object, size: tuple[int, int], input_size: tuple[int, int] | None
) -> tuple[str, ...]:
    """Returns a note if the positions are for another size than the preprocessing gives.

    Args:
        where: what the preprocessing is from, for the note.
        size: (height, width) that the positions are for, pixels.
        input_size: (height, width) of the preprocessed images; None if unknown.
    """
    if input_size is None or input_size == size:
        return ()
    height, width = input_size
    return (
        f"{where} shows images of {height} x {width} pixels, and the encoder's positions are of "
        f"{size[0]} x {size[1]}, which is taken; --config.model.image_size={height},{width} "
        "resizes them",
    )


def _read_processor(folder: pathlib.Path) -> tuple[Mapping[str, Any], pathlib.Path]:
    """Reads the settings of the image processor, and returns the file that has them."""
    file = folder / "preprocessor_config.json"
    combined = folder / "processor_config.json"  # of a model of images and texts
    if not is_file(file) and is_file(combined):
        return settings_at("image_processor", read_json(combined, ""), combined), combined
    return read_json(file, "it says which pixel statistics the encoder was trained on"), file


def _statistics_of_processor(
    processor: Mapping[str, Any], file: pathlib.Path, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Derives mean and deviation, for pixel values in [0, 1], from a processor's settings.

    The processor multiplies values from 0 to 255 by a factor, then subtracts a mean and divides by
    a deviation. Raises ``ValueError`` for a factor that is no positive number.
    """
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"{file}: rescale_factor={factor!r}; a number above 0")
    scale = 255 * factor
    if processor.get("do_normalize", True):
        mean = _statistics(processor, "image_mean", file, channels)
        std = _statistics(processor, "image_std", file, channels)
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
    scale = 1.0 if math.isclose(scale, 1) else scale
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _patch_kernel_shape(weights: Weights) -> tuple[int, ...] | None:
    """Returns the shape of the patch embedding's kernel: (width, channels, rows, columns)."""
    names = ("patch_embeddings.projection.weight", "patch_embedding.weight")
    shapes = (a.shape for name, a in weights.items() if a.ndim == 4 and name.endswith(names))
    return next(shapes, None)


def _num_patches(size: tuple[int, int], kernel_shape: tuple[int, ...]) -> int | None:
    """Returns the number of patches of an image; None for a kernel of an impossible shape.

    Args:
        size: (height, width) of the image, pixels.
        kernel_shape: as in :func:`_patch_kernel_shape`.
    """
    if len(kernel_shape) != 4 or 0 in kernel_shape:
        return None
    return (size[0] // kernel_shape[2]) * (size[1] // kernel_shape[3])


def _finish(
    options: dict[str, Any],
    params: Tree,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    file: pathlib.Path,
) -> Backbone:
    """Builds the backbone from the options of the config and those that the parameters show."""
    with _name_in_errors(file.parent):
        derived = describe_encoder(params, len(mean))
    check_heads(file, options["num_heads"], params)
    if derived["layer_scale"] is None or not options["layer_scale"]:
        del options["layer_scale"]
    return Backbone(derived | options, params, mean, std)


def _statistics(
    config: Mapping[str, Any], key: str, where: object, channels: int
) -> tuple[float, ...]:
    """Returns a value for each channel; a single number counts for all.

    Raises ``ValueError`` if there are no numbers.
    """
    setting = config.get(key)
    values = (setting,) * channels if isinstance(setting, int | float) else setting
    is_list = isinstance(values, list | tuple) and len(values) > 0
    if not is_list or not all(isinstance(value, int | float) for value in values):
        given = "no" if setting is None else f"{setting!r} as"
        raise ValueError(
            f"{where} has {given} {key!r}: the pixel statistics that the encoder was trained on "
            "are not known. Add them, one value a channel, such as [0.5, 0.5, 0.5]"
        )
    return tuple(float(value) for value in values)


def _positive_int(value: Any, file: pathlib.Path, key: str) -> int:
    """Returns the value. Raises ``ValueError`` unless it is an integer above 0."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{file}: {key}={value!r}; a whole number above 0")
    return value


def _pair(size: Any, where: object, key: str) -> tuple[int, int]:
    """Returns (height, width); a single number counts for both. Raises ``ValueError`` otherwise."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and [type(side) for side in size] == [int, int]:
        return tuple(size)
    raise ValueError(f"{where} has no {key!r}: the size of the images is not known")

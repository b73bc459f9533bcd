"""Preprocessing of images and pooling of features, as timm and transformers store them.

Both are read from these libraries' settings and written to them.
"""

import logging
import math
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

POOLS = ("mean", "class_token", "normed_mean")
"""Ways of pooling features: the values of ``evaluation.pool``."""

OWN_KEY = "ddae_jax"
"""Key in ``config.json`` of the settings that the libraries' own keys cannot express."""

_TIMM_DEFAULTS = MappingProxyType(
    {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
)
"""timm's defaults, for keys that its settings leave out."""

_PILLOW_NUMBERS = MappingProxyType(
    {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
)
"""Pillow's numbers, which transformers stores, of the kernels by timm's names."""

_TRANSFORMERS_DEFAULTS = MappingProxyType(
    {
        "ViT": {"size": 224, "do_center_crop": False, "resample": 2},
        "Beit": {"size": 224, "do_center_crop": False, "resample": 3},
        "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
        "Bit": {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3},
        "CLIP": {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3},
    }
)
"""Defaults of transformers' image processors, by the beginning of their names."""

_BY_SHORTER_SIDE = ("Bit", "CLIP")
"""Processors for which a single number is the shorter side; for the others, it is both sides."""


class Preprocessing(NamedTuple):
    """Resizing and cropping of images to the size that an encoder takes.

    Attributes:
        crop_share: side of the central crop over that of the resized image, in (0, 1].
        crop_mode: ``center`` resizes in proportion, ``squash`` stretches to the crop's aspect.
        interpolation: kernel of the resizing, by timm's name.
    """

    crop_share: float
    crop_mode: str
    interpolation: str

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the height and width that a resized image at least has, before it is cropped."""
        height, width = (math.floor(side / self.crop_share) for side in image_size)
        return height, width

    def to_timm(self) -> dict[str, Any]:
        """Returns keys and values of timm's ``pretrained_cfg``."""
        settings = {"crop_pct": self.crop_share, "crop_mode": self.crop_mode}
        return settings | {"interpolation": self.interpolation}

    def to_transformers(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Returns keys and values of transformers' ``preprocessor_config.json``.

        No processor of transformers resizes in proportion to a crop that is not square. For that,
        the settings neither resize nor crop, and images must be cropped beforehand.

        Args:
            image_size: (height, width) of the crop, pixels.
        """
        height, width = image_size
        shape = {"height": height, "width": width}
        resample = {"resample": _PILLOW_NUMBERS[self.interpolation]}
        is_squashed = self.crop_mode == "squash"
        least_height, least_width = self.resized(image_size)
        if is_squashed and (least_height, least_width) == (height, width):
            processor = {"image_processor_type": "ViTImageProcessor"}
            return processor | {"do_resize": True, "size": shape} | resample
        processor = {"image_processor_type": "BitImageProcessor", "crop_size": shape}
        if not is_squashed and height != width:
            return processor | {"do_resize": False, "do_center_crop": False}
        resized = {"height": least_height, "width": least_width}
        size = resized if is_squashed else {"shortest_edge": least_height}
        return processor | {"do_resize": True, "size": size, "do_center_crop": True} | resample


def preprocessing_from_timm(settings: Mapping[str, Any], where: object) -> Preprocessing:
    """Reads timm's preprocessing. For a value that is not known here, warns and takes the default.

    Args:
        settings: the ``pretrained_cfg``.
        where: what the settings are from, for warnings.
    """
    values = {key: settings.get(key) or default for key, default in _TIMM_DEFAULTS.items()}
    known = {"crop_mode": ("center", "squash"), "interpolation": (*_PILLOW_NUMBERS,)}
    for key, words in known.items():
        if values[key] not in words:
            values[key] = _warn_default(key, values[key], _TIMM_DEFAULTS[key], words, where)
    share = values["crop_pct"]
    if not isinstance(share, int | float) or not 0.01 <= share <= 1:
        share = _warn_default("crop_pct", share, 1.0, "0.01 to 1", where)
    return Preprocessing(float(share), values["crop_mode"], values["interpolation"])


def preprocessing_from_transformers(
    settings: Mapping[str, Any], own: Mapping[str, Any], where: object
) -> Preprocessing | None:
    """Reads the preprocessing of an image processor of transformers.

    Args:
        settings: the ``preprocessor_config.json``.
        own: the settings under :data:`OWN_KEY` in the ``config.json`` beside it, which count if the
            processor does not resize.
        where: what the settings are from, for warnings.

    Returns:
        The preprocessing, or None, with a warning, if the settings do not say.
    """
    if settings.get("do_resize") is False:
        keys = Preprocessing._fields
        return Preprocessing(*(own[key] for key in keys)) if own.keys() >= {*keys} else None
    settings, resized, cropped = _processor_sizes(settings)
    kernels = {number: name for name, number in _PILLOW_NUMBERS.items()}
    kernel = kernels.get(settings.get("resample"))
    if resized is None or cropped is None or kernel is None:
        _log.warning("%s does not tell how images are resized and cropped", where)
        return None
    share = min(_share(*sides) for sides in zip(cropped[1], resized[1], strict=True))
    if share > 1:
        share = _warn_default("crop_size", settings["crop_size"], 1.0, "up to its size", where)
    return Preprocessing(share, "center" if resized[0] else "squash", kernel)


def image_size_from_transformers(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the (height, width), pixels, that a processor of transformers gives every image.

    None if the sizes vary or the settings do not say.

    Args:
        settings: the ``preprocessor_config.json``.
    """
    if settings.get("do_resize") is False:
        return None
    _, _, cropped = _processor_sizes(settings)
    return None if cropped is None or cropped[0] else cropped[1]


_Sides = tuple[bool, tuple[int, int]]
"""Whether a size is that of the shorter side alone, and its (height, width), pixels."""


def _processor_sizes(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], _Sides | None, _Sides | None]:
    """Returns a processor's settings with defaults, and the sizes after resizing and cropping."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    defaults = next((v for k, v in _TRANSFORMERS_DEFAULTS.items() if name.startswith(k)), {})
    given = {key: value for key, value in settings.items() if value is not None}
    settings = {**defaults, **given}
    resized = _sides(settings.get("size"), may_be_shorter_side=name.startswith(_BY_SHORTER_SIDE))
    cropped = resized
    if settings.get("do_center_crop"):
        cropped = _sides(settings.get("crop_size"), may_be_shorter_side=False)
    return settings, resized, cropped


def _share(cropped: int, resized: int) -> float:
    """Returns cropped over resized pixels, to 6 digits, so that ``cropped // share == resized``."""
    share = math.floor(1e6 * cropped / resized) / 1e6
    return share if math.floor(cropped / share) >= resized else round(share - 1e-6, 6)


def _sides(size: Any, may_be_shorter_side: bool) -> _Sides | None:
    """Parses a size of transformers; a single number may be the shorter side. None if invalid."""
    if isinstance(size, int) and size > 0:
        return may_be_shorter_side, (size, size)
    if not isinstance(size, Mapping):
        return None
    if size.get("shortest_edge"):
        return True, (size["shortest_edge"],) * 2
    if size.get("height") and size.get("width"):
        return False, (size["height"], size["width"])
    return None


def _warn_default(key: str, value: Any, default: Any, known: Container | str, where: object) -> Any:
    """Warns that a value is unknown, and returns the default that is taken instead."""
    listed = known if isinstance(known, str) else ", ".join(known)
    _log.warning(
        "%s: %s=%r is not known here (known: %s); %r is taken", where, key, value, listed, default
    )
    return default


def pool_from_timm(
    config: Mapping[str, Any], arguments: Mapping[str, Any], names: Container[str]
) -> str | None:
    """Reads how timm's network pools its features.

    Args:
        config: the ``config.json``.
        arguments: its ``model_args``.
        names: names of the weights, which show whether the mean is normed.

    Returns:
        One of :data:`POOLS`; None, with a warning, for a way that is not among them.
    """
    if arguments.get("pool_include_prefix"):
        _log.warning(
            "pool_include_prefix=True, a mean that takes in the class token, is not known here; "
            "evaluation.pool says how features are pooled"
        )
        return None
    if "fc_norm.weight" in names:
        return "normed_mean"
    default = "avg" if config.get("architecture", "").startswith("beit") else "token"
    pool = arguments.get("global_pool") or config.get("global_pool") or default
    if pool not in ("avg", "token"):
        _log.warning(
            "global_pool=%r is not known here; evaluation.pool says how features are pooled", pool
        )
    return {"avg": "mean", "token": "class_token"}.get(pool)


def pool_from_transformers(
    config: Mapping[str, Any], own: Mapping[str, Any], names: Container[str], where: object
) -> str | None:
    """Reads how the classifier of a model of transformers pools its features.

    Args:
        config: the ``config.json``.
        own: the settings under its :data:`OWN_KEY`, which count more.
        names: names of the weights, which show whether the mean is normed.
        where: what the config is from, for the error.

    Returns:
        One of :data:`POOLS`; None if the kind of model does not prescribe one.

    Raises:
        ValueError: if the pool in ``own`` is unknown.
    """
    if "pool" in own:
        if own["pool"] not in POOLS:
            raise ValueError(
                f"{where}: {OWN_KEY}.pool={own['pool']!r}; known are {', '.join(POOLS)}"
            )
        return own["pool"]
    if config.get("model_type") == "vit":
        return "class_token"
    if config.get("model_type") != "beit":
        return None
    if {"pooler.layernorm.weight", "beit.pooler.layernorm.weight"} & {*names}:
        return "normed_mean"
    return None if config.get("use_mean_pooling", True) else "class_token"

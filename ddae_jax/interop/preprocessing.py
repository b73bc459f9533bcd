"""How an encoder is shown images, and how what it sees is pooled: what other libraries store of it.

Both are read from the settings of timm and transformers, and written to them.
"""

import logging
import math
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

POOLS = ("mean", "class_token", "normed_mean")
"""Ways of pooling features, as ``evaluation.pool`` has them."""

OWN_KEY = "ddae_jax"
"""Of ``config.json``, under which lies what the libraries' own settings cannot tell."""

_USUAL_OF_TIMM = MappingProxyType(
    {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
)
"""What timm takes where its settings are silent."""

_NUMBER_OF_PILLOW = MappingProxyType(
    {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
)
_USUAL_OF_TRANSFORMERS = MappingProxyType(
    {
        "ViT": {"size": 224, "do_center_crop": False, "resample": 2},
        "Beit": {"size": 224, "do_center_crop": False, "resample": 3},
        "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
        "Bit": {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3},
        "CLIP": {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3},
    }
)
"""What its processors take where their settings are silent, by how their names begin."""
_BY_SHORTER_SIDE = ("Bit", "CLIP")
"""Those for which a single number is the shorter side; for the others, both sides."""


class Preprocessing(NamedTuple):
    """How images are cut to the size that an encoder sees.

    Attributes:
        crop_share: of the sides of the resized image, the part in the middle that is shown.
        crop_mode: ``center``, resized in proportion; or ``squash``, stretched to the aspect.
        interpolation: the kernel, by timm's name.
    """

    crop_share: float
    crop_mode: str
    interpolation: str

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Gives the height and width that an image at least has before it is cropped."""
        height, width = (math.floor(side / self.crop_share) for side in image_size)
        return height, width

    def to_timm(self) -> dict[str, Any]:
        """Lists timm's settings."""
        told = {"crop_pct": self.crop_share, "crop_mode": self.crop_mode}
        return told | {"interpolation": self.interpolation}

    def to_transformers(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Lists the settings of a processor of transformers.

        None resizes in proportion for what is not square: images have to be cut before.
        """
        height, width = image_size
        shape = {"height": height, "width": width}
        resample = {"resample": _NUMBER_OF_PILLOW[self.interpolation]}
        is_squashed = self.crop_mode == "squash"
        least_height, least_width = self.resized(image_size)
        if is_squashed and (least_height, least_width) == (height, width):
            told = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": shape}
            return told | resample
        told = {"image_processor_type": "BitImageProcessor", "crop_size": shape}
        if not is_squashed and height != width:
            return told | {"do_resize": False, "do_center_crop": False}
        resized = {"height": least_height, "width": least_width}
        size = resized if is_squashed else {"shortest_edge": least_height}
        return told | {"do_resize": True, "size": size, "do_center_crop": True} | resample


def preprocessing_from_timm(settings: Mapping[str, Any], where: object) -> Preprocessing:
    """Reads how timm shows images, of its ``pretrained_cfg``.

    What is not known here is said in a warning, and the usual is taken.

    Args:
        settings: the ``pretrained_cfg``.
        where: it is from, for warnings.
    """
    found = {key: settings.get(key) or usual for key, usual in _USUAL_OF_TIMM.items()}
    known = {"crop_mode": ("center", "squash"), "interpolation": (*_NUMBER_OF_PILLOW,)}
    for key, values in known.items():
        if found[key] not in values:
            found[key] = _usual(key, found[key], _USUAL_OF_TIMM[key], values, where)
    share = found["crop_pct"]
    if not isinstance(share, int | float) or not 0.01 <= share <= 1:
        share = _usual("crop_pct", share, 1.0, "0.01 to 1", where)
    return Preprocessing(float(share), found["crop_mode"], found["interpolation"])


def preprocessing_from_transformers(
    settings: Mapping[str, Any], own: Mapping[str, Any], where: object
) -> Preprocessing | None:
    """Reads how transformers shows images, of its ``preprocessor_config.json``.

    Args:
        settings: of the processor.
        own: what lies under :data:`OWN_KEY` in the ``config.json`` beside it.
        where: the settings are from, for warnings.

    Returns:
        None if they do not tell.
    """
    if settings.get("do_resize") is False:
        keys = Preprocessing._fields
        return Preprocessing(*(own[key] for key in keys)) if own.keys() >= {*keys} else None
    told, size, shown = _of_processor(settings)
    kernels = {number: name for name, number in _NUMBER_OF_PILLOW.items()}
    kernel = kernels.get(told.get("resample"))
    if size is None or shown is None or kernel is None:
        _log.warning("%s does not tell how images are resized and cropped", where)
        return None
    share = min(_share(*sides) for sides in zip(shown[1], size[1], strict=True))
    if share > 1:
        share = _usual("crop_size", told["crop_size"], 1.0, "up to its size", where)
    return Preprocessing(share, "center" if size[0] else "squash", kernel)


def image_size_from_transformers(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Reads the (height, width) that a processor makes of every image; None if it does not tell.

    Args:
        settings: of the processor.
    """
    if settings.get("do_resize") is False:
        return None
    _, _, shown = _of_processor(settings)
    return None if shown is None or shown[0] else shown[1]


_Sides = tuple[bool, tuple[int, int]]
"""Whether a size is of the shorter side alone, and its height and width, pixels."""


def _of_processor(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], _Sides | None, _Sides | None]:
    """Settings with what is usual, the size that images are resized to, and that of the crop."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    usual = next((v for k, v in _USUAL_OF_TRANSFORMERS.items() if name.startswith(k)), {})
    told = {**usual, **{key: value for key, value in settings.items() if value is not None}}
    size = _sides(told.get("size"), may_be_shorter_side=name.startswith(_BY_SHORTER_SIDE))
    shown = size
    if told.get("do_center_crop"):
        shown = _sides(told.get("crop_size"), may_be_shorter_side=False)
    return told, size, shown


def _share(shown: int, resized: int) -> float:
    """Divides pixels, rounded down so that ``shown // share`` is the whole number again."""
    share = math.floor(1e6 * shown / resized) / 1e6
    return share if math.floor(shown / share) >= resized else round(share - 1e-6, 6)


def _sides(size: Any, may_be_shorter_side: bool) -> _Sides | None:
    if isinstance(size, int) and size > 0:
        return may_be_shorter_side, (size, size)
    if not isinstance(size, Mapping):
        return None
    if size.get("shortest_edge"):
        return True, (size["shortest_edge"],) * 2
    if size.get("height") and size.get("width"):
        return False, (size["height"], size["width"])
    return None


def _usual(key: str, found: Any, usual: Any, known: Container | str, where: object) -> Any:
    shown = known if isinstance(known, str) else ", ".join(known)
    _log.warning(
        "%s: %s=%r is not known here (known: %s); it is %r", where, key, found, shown, usual
    )
    return usual


def pool_from_timm(
    config: Mapping[str, Any], arguments: Mapping[str, Any], names: Container[str]
) -> str | None:
    """Reads what timm's network returns: a word of ``evaluation.pool``; None if it has none.

    Args:
        config: the ``config.json``.
        arguments: its ``model_args``.
        names: of the weights, which tell whether the norm is that of the mean.
    """
    if arguments.get("pool_include_prefix"):
        _log.warning(
            "pool_include_prefix=True, a mean that takes in the class token, is not known here; "
            "evaluation.pool says how features are pooled"
        )
        return None
    if "fc_norm.weight" in names:
        return "normed_mean"
    usual = "avg" if config.get("architecture", "").startswith("beit") else "token"
    told = arguments.get("global_pool") or config.get("global_pool") or usual
    if told not in ("avg", "token"):
        _log.warning("global_pool=%r is not known here; evaluation.pool says how it is", told)
    return {"avg": "mean", "token": "class_token"}.get(told)


def pool_from_transformers(
    config: Mapping[str, Any], own: Mapping[str, Any], names: Container[str], where: object
) -> str | None:
    """Reads how transformers' classifier pools; None if it has no way of its own.

    Args:
        config: the ``config.json``.
        own: what lies under its :data:`OWN_KEY`.
        names: of the weights, which tell whether the norm is that of the mean.
        where: the config is from.

    Raises ``ValueError`` for a way that is not known here.
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

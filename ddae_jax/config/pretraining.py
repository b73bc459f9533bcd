"""What goes together in a pretraining config, and what has no effect."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.downstream import OF_INIT_FROM
from ddae_jax.config.schema import flatten
from ddae_jax.config.shared_checks import (
    Ignored,
    ignored_of_data,
    ignored_of_weight_decay,
    named_by_key,
)
from ddae_jax.masking import num_masked_patches
from ddae_jax.methods import METHODS
from ddae_jax.methods.ddae import check_feature_places
from ddae_jax.methods.make_method import num_sampled_patches
from ddae_jax.methods.supervision import supervised_depths
from ddae_jax.models.sizes import SIZES
from ddae_jax.patches import patch_grid

_OF_FEATURES = tuple(
    f"targets.{name}"
    for name in (
        "pixel_fade",
        "feature_start",
        "feature_warmup",
        "feature_normalization",
        "feature_places",
        "normalize_predictions",
    )
)
"""What has no effect where features are left out."""

_OF_GROWTH = ("teacher.hold", "teacher.min_half_lives", "teacher.warmup")
"""What has no effect where the teacher's half-life does not grow."""

_MIN_IMAGES = 16
_MIN_PLACES = 8
"""Of a batch, for statistics of its features: fewer say more about the images than about them."""


def check_pretraining(config: ConfigDict) -> None:
    """Raises ``ValueError`` for keys that contradict each other."""
    _check_model(config)
    _check_decoder(config)
    _check_method(config)
    _check_features(config)
    _check_teacher(config)
    _check_supervision(config)
    _check_evaluation(config)


def ignored_in_pretraining(config: ConfigDict) -> list[Ignored]:
    """Returns the keys that have no effect, each under its condition and with the reason."""
    flat = flatten(config)
    mode, method = flat["supervision.mode"], flat["method"]
    spec = METHODS[method]
    return [
        (not flat["init_from"], (*OF_INIT_FROM, "init_decoder"), "init_from is empty"),
        *_ignored_of_supervision(config),
        (
            flat["model.encoder_input"] == "full",
            ("decoder.",),
            "model.encoder_input='full' has no decoder",
        ),
        (
            flat["model.encoder_input"] == "visible" and mode == "last",
            ("decoder.intermediate_", "decoder.is_shared"),
            "supervision.mode='last' decodes no intermediate depth",
        ),
        (spec.kind != "tokenizer", ("tokenizer.",), f"method={method!r} trains no tokenizer"),
        (
            spec.kind == "tokenizer",
            ("mask.", "supervision."),
            f"method={method!r} hides nothing, and is supervised at its end",
        ),
        (
            True,
            tuple(f"targets.{name}" for name in config.targets if name not in _options(config)),
            f"method={method!r} has no such option",
        ),
        (
            not has_momentum_encoder(config),
            ("teacher.",),
            "targets.feature_weight=0 leaves out the teacher"
            if "feature_weight" in _options(config)
            else f"method={method!r} has no teacher",
        ),
        (
            "pixel_weight" in _options(config) and not predicts_pixels(config),
            ("targets.normalize_pixels", "targets.pixel_fade"),
            "targets.pixel_weight=0 leaves out the pixels",
        ),
        *_ignored_of_features(config),
        *_ignored_of_teacher(config),
        *_ignored_of_mask(config),
        (
            not spec.trained_network_key,
            ("model.frozen_dtype",),
            f"method={method!r} is given no trained network",
        ),
        *ignored_of_weight_decay(config),
        *ignored_of_data(config),
        (
            flat["evaluation.knn_every_epochs"] == 0,
            ("evaluation.max_examples",),
            "evaluation.knn_every_epochs=0 leaves out k-NN during training",
        ),
    ]


def _ignored_of_mask(config: ConfigDict) -> list[Ignored]:
    kind = config.mask.kind
    return [
        (kind == "block", ("mask.unit",), "mask.kind='block' hides blocks of patches"),
        (kind == "random", ("mask.min_block_share",), "mask.kind='random' hides no blocks"),
    ]


def _ignored_of_supervision(config: ConfigDict) -> list[Ignored]:
    mode, weighting = config.supervision.mode, config.supervision.weighting
    return [
        (
            mode == "last",
            (
                "supervision.depths",
                "supervision.depth_weights",
                "supervision.normalize_intermediate",
            ),
            "supervision.mode='last' reads out the last block alone",
        ),
        (
            mode in ("last", "deep"),
            ("supervision.weighting", "supervision.beta_"),
            f"supervision.mode={mode!r} weighs all hidden patches alike",
        ),
        (
            mode == "deep_dynamic" and weighting == "neighbourhood",
            ("supervision.beta_",),
            "supervision.weighting='neighbourhood' has no beta",
        ),
    ]


def _ignored_of_features(config: ConfigDict) -> list[Ignored]:
    if "feature_weight" not in _options(config):
        return []  # nor has it the other options
    learns_features = has_momentum_encoder(config)
    return [
        (not learns_features, _OF_FEATURES, "targets.feature_weight=0 leaves out the features"),
        (
            learns_features and not predicts_pixels(config),
            ("targets.feature_start", "targets.feature_warmup"),
            "targets.pixel_weight=0 leaves features alone, which have their weight throughout",
        ),
        (
            learns_features and config.targets.feature_places == "visible",
            ("targets.normalize_predictions",),
            "targets.feature_places='visible' predicts no features",
        ),
    ]


def _ignored_of_teacher(config: ConfigDict) -> list[Ignored]:
    if not has_momentum_encoder(config):
        return []  # all of them are ignored
    copy_every, half_life = config.teacher.copy_every_epochs, config.teacher.half_life_epochs
    start = config.teacher.half_life_start_epochs
    return [
        (
            copy_every > 0,
            ("teacher.momentum_", "teacher.half_life_", *_OF_GROWTH),
            f"teacher.copy_every_epochs={copy_every:g} makes copies of the student instead",
        ),
        (
            half_life > 0 and not copy_every,
            ("teacher.momentum_",),
            f"teacher.half_life_epochs={half_life:g} sets the momentum",
        ),
        (
            not copy_every and not half_life,
            (*(["teacher.half_life_start_epochs"] if start else []), *_OF_GROWTH),
            "teacher.half_life_epochs=0 leaves the momentum to teacher.momentum_start",
        ),
        (
            not copy_every and half_life > 0 and not start,
            _OF_GROWTH,
            "teacher.half_life_start_epochs=0 keeps one half-life throughout",
        ),
    ]


def mask_unit(config: ConfigDict) -> int:
    """The side of what a mask hides as a whole, patches; blocks are made of single patches."""
    return config.mask.unit if config.mask.kind == "random" else 1


def has_momentum_encoder(config: ConfigDict) -> bool:
    """Whether the run keeps one."""
    return "feature_weight" in _options(config) and config.targets.feature_weight > 0


def _options(config: ConfigDict) -> frozenset[str]:
    """Returns the names of the method's own options."""
    return METHODS[config.method].options


def predicts_pixels(config: ConfigDict) -> bool:
    """Whether pixels are among what the run predicts."""
    options = _options(config)
    if "pixel_weight" in options:
        return config.targets.pixel_weight > 0
    return "normalize_pixels" in options


def _check_model(config: ConfigDict) -> None:
    model, decoder = config.model, config.decoder
    with named_by_key(
        image_size="model.image_size",
        patch_size="model.patch_size",
        mask_ratio="mask.ratio",
        mask_unit="mask.unit",
    ):
        grid = patch_grid(model.image_size, model.patch_size)
        num_masked = num_masked_patches(grid, config.mask.ratio, mask_unit(config))
    if model.encoder_input == "visible" and config.supervision.mode != "last":
        with named_by_key(intermediate_share="decoder.intermediate_share"):
            num_sampled_patches(num_masked, decoder.intermediate_share)
    if decoder.intermediate_blocks > decoder.depth:
        raise ValueError(
            f"decoder.intermediate_blocks={decoder.intermediate_blocks} are more than "
            f"decoder.depth={decoder.depth}"
        )
    if model.encoder_input == "visible" and model.relative_positions != "none":
        raise ValueError(
            f"model.relative_positions={model.relative_positions!r} are those of all patches, but "
            "model.encoder_input='visible' encodes some; set one of them to 'none' or 'full'"
        )
    is_one_value = model.patch_size**2 * config.data.channels == 1
    if is_one_value and config.targets.normalize_pixels and predicts_pixels(config):
        raise ValueError(
            "model.patch_size=1, data.channels=1: a patch of one value cannot be normalised; "
            "raise one of them, or set targets.normalize_pixels=False"
        )
    if decoder.width % decoder.num_heads or decoder.width % 4:
        raise ValueError(
            f"decoder.width={decoder.width}, decoder.num_heads={decoder.num_heads}; the width is a "
            "multiple of the heads, and of 4"
        )


def _check_decoder(config: ConfigDict) -> None:
    """Raises ``ValueError`` if a decoder that is to be taken over has no place in the run."""
    if not (config.init_from and config.init_decoder):
        return
    is_shared = config.decoder.is_shared or config.supervision.mode == "last"
    asked = {
        "model.encoder_input": (config.model.encoder_input, "visible"),
        "decoder.kind": (config.decoder.kind, "self"),
        "decoder.is_shared": (is_shared, True),
    }
    for key, (value, wanted) in asked.items():
        if value != wanted:
            raise ValueError(
                f"init_decoder=True, {key}={value!r}: the decoder of an MAE is for {key}={wanted!r}"
            )


def _check_method(config: ConfigDict) -> None:
    """Raises ``ValueError`` for what does not go with the method, or leaves nothing to learn."""
    spec = METHODS[config.method]
    own = {name: f"targets.{name}" for name in spec.options if name in config.targets}
    with named_by_key(patch_size="model.patch_size", **own):
        spec.check_needs(flatten(config))
    weights = {"pixel_weight", "feature_weight"} & spec.options
    if weights and not any(config.targets[name] for name in weights):
        raise ValueError(
            "targets.pixel_weight and targets.feature_weight are both 0; nothing is left to learn"
        )


def _check_features(config: ConfigDict) -> None:
    if not has_momentum_encoder(config):
        return
    targets = config.targets
    with named_by_key(feature_places="targets.feature_places", pixel_weight="targets.pixel_weight"):
        check_feature_places(
            targets.feature_places, targets.pixel_weight, config.model.encoder_input == "visible"
        )
    if predicts_pixels(config):
        _check_rise(targets)
    if targets.feature_normalization in ("batch", "position"):
        _check_statistics(config)
    if targets.feature_normalization == "instance":
        _check_places(config)


def check_images_of_statistics(config: ConfigDict, num_images: int) -> None:
    """Raises ``ValueError`` if features are normalised by statistics of too few different images.

    A batch that is larger than the set of images repeats them.
    """
    normalization = config.targets.feature_normalization
    if not has_momentum_encoder(config) or normalization not in ("batch", "position"):
        return
    if num_images < _MIN_IMAGES:
        raise ValueError(
            f"targets.feature_normalization={normalization!r} takes statistics over a batch, and "
            f"there are but {num_images} images to train on; it needs {_MIN_IMAGES} or more. Set "
            "targets.feature_normalization='layer', which looks at each patch by itself"
        )


def _check_places(config: ConfigDict) -> None:
    """Raises ``ValueError`` if predictions are normalised over too few patches of an image."""
    targets = config.targets
    h, w = patch_grid(tuple(config.model.image_size), config.model.patch_size)
    num_masked = num_masked_patches((h, w), config.mask.ratio, mask_unit(config))
    counts = {}
    if targets.normalize_predictions and targets.feature_places != "visible":
        share = config.decoder.intermediate_share
        is_decoded = config.model.encoder_input == "visible" and config.supervision.mode != "last"
        counts["hidden"] = round(share * num_masked) if is_decoded else num_masked
    if targets.feature_places != "hidden":
        counts["visible"] = h * w - num_masked
    for what, count in counts.items():
        if count < _MIN_PLACES:
            raise ValueError(
                "targets.feature_normalization='instance' takes statistics over the "
                f"{what} patches of an image, of which {count} are read: of fewer than "
                f"{_MIN_PLACES}, what is left is noise, and of a single one nothing; set "
                "targets.feature_normalization='layer', which looks at each patch by itself"
            )


def _check_statistics(config: ConfigDict) -> None:
    """Raises ``ValueError`` if features are normalised by statistics of too few images."""
    targets, normalization = config.targets, config.targets.feature_normalization
    if config.batch_size < _MIN_IMAGES:
        why = {
            "batch": f"statistics of features of fewer than {_MIN_IMAGES} images are noise",
            "position": f"of fewer than {_MIN_IMAGES} images, what is left of the features at a "
            "position tells little but which of them it is",
        }
        raise ValueError(
            f"targets.feature_normalization={normalization!r}, batch_size={config.batch_size}: "
            f"{why[normalization]}; raise batch_size to {_MIN_IMAGES} or more, or set "
            "targets.feature_normalization='layer', which looks at each patch by itself"
        )
    harmless = {"normalize_predictions": False, "feature_places": "hidden"}
    asked = [name for name, value in harmless.items() if targets[name] != value]
    if asked and config.optimizer.micro_batches > 1:
        raise ValueError(
            f"optimizer.micro_batches={config.optimizer.micro_batches}, "
            f"targets.feature_normalization={normalization!r}, "
            f"{_set_to(asked, targets)}: predictions for a part of the batch do not have the whole "
            "batch's statistics, which the targets have; set optimizer.micro_batches=1, with "
            "model.rematerialization='full' to save memory, or "
            f"{_set_to(asked, harmless)}"
        )


def _set_to(names: Iterable[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"targets.{name}={values[name]!r}" for name in names)


def _check_rise(targets: ConfigDict) -> None:
    """Raises ``ValueError`` if one of the two weights would never be what it is said to be."""
    start, warmup = targets.feature_start, targets.feature_warmup
    if start == 1 or start + warmup > 1 + 1e-9:
        raise ValueError(
            f"targets.feature_start={start}, targets.feature_warmup={warmup}: the run would end "
            "before features have their weight; these are shares of it, which add up to at most "
            "1, the first being less: lower one of them"
        )
    if targets.pixel_fade == 1 and not (start or warmup):
        raise ValueError(
            "targets.pixel_fade=1.0: with targets.feature_start=0 and targets.feature_warmup=0, "
            "pixels have no weight from the start; set targets.feature_warmup, or leave them out "
            "by targets.pixel_weight=0"
        )


def _check_teacher(config: ConfigDict) -> None:
    if not has_momentum_encoder(config):
        return  # none of it has an effect
    hold, warmup = config.teacher.hold, config.teacher.warmup
    if hold + warmup > 1 + 1e-9:
        raise ValueError(
            f"teacher.hold={hold}, teacher.warmup={warmup}: these are shares of the run, which add "
            "up to at most 1: lower one of them"
        )
    start, end = config.teacher.half_life_start_epochs, config.teacher.half_life_epochs
    if start > end > 0:
        raise ValueError(
            f"teacher.half_life_start_epochs={start} must not exceed teacher.half_life_epochs="
            f"{end}: it grows over the run; raise teacher.half_life_epochs, or set "
            "teacher.half_life_start_epochs=0"
        )


def _check_supervision(config: ConfigDict) -> None:
    size, supervision = SIZES[config.model.size], config.supervision
    with named_by_key(depths="supervision.depths"):
        depths = supervised_depths(supervision.mode, size.depth, supervision.depths)
    if depths[-1] != size.depth:
        raise ValueError(
            f"supervision.depths={depths}; the last one must be {size.depth}, the depth of "
            f"model.size={config.model.size!r}, or the blocks after it are never trained"
        )
    weights = supervision.depth_weights if supervision.mode != "last" else ()
    if weights and len(weights) != len(depths):
        raise ValueError(
            f"supervision.depth_weights={weights}; one for each of the supervised depths {depths}, "
            f"or () for 1 each"
        )
    if weights and not weights[-1]:
        raise ValueError(
            f"supervision.depth_weights={weights}; the last one, of depth {depths[-1]}, must be "
            "more than 0, or the blocks before it are never trained"
        )
    low, high = supervision.beta_range
    if not low <= supervision.beta_init <= high:
        raise ValueError(
            f"supervision.beta_init={supervision.beta_init} lies outside "
            f"supervision.beta_range={supervision.beta_range}"
        )


def _check_evaluation(config: ConfigDict) -> None:
    depth, evaluation = SIZES[config.model.size].depth, config.evaluation
    if not 0 <= evaluation.depth <= depth:
        raise ValueError(
            f"evaluation.depth={evaluation.depth}; it lies in [1, {depth}], or is 0 for the last"
        )
    if 0 < evaluation.temperature < 0.001:
        raise ValueError(
            f"evaluation.temperature={evaluation.temperature}; it is at least 0.001, or 0 for "
            "votes that count alike"
        )
    if evaluation.encoder == "teacher" and not has_momentum_encoder(config):
        raise ValueError(
            "evaluation.encoder='teacher' needs a teacher: method='ddae' with "
            "targets.feature_weight > 0; 'student' is always there"
        )
    if evaluation.pool == "class_token" and not config.model.use_class_token:
        raise ValueError("evaluation.pool='class_token' needs model.use_class_token=True")

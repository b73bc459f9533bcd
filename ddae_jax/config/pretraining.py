"""What goes together in a pretraining config, and what has no effect."""

from ml_collections import ConfigDict

from ddae_jax.config.keys import flatten
from ddae_jax.config.ranges import Ignored, ignored_of_data, named_by_key
from ddae_jax.masking import num_masked_patches
from ddae_jax.methods import METHODS, options_of
from ddae_jax.methods.supervision import supervised_depths
from ddae_jax.methods.targets import check_cells
from ddae_jax.models.vit import SIZES
from ddae_jax.patches import patch_grid


def check_pretraining(config: ConfigDict) -> None:
    """Raises ``ValueError`` for keys that contradict each other."""
    _check_model(config)
    _check_method(config)
    _check_supervision(config)
    _check_evaluation(config)


def ignored_in_pretraining(config: ConfigDict) -> list[Ignored]:
    """Which keys have no effect under which condition, and why."""
    flat = flatten(config)
    mode, method = flat["supervision.mode"], flat["method"]
    return [
        (
            mode == "last",
            ("supervision.depths", "supervision.depth_weights"),
            "supervision.mode='last' reads out the last block alone",
        ),
        (
            mode in ("last", "deep"),
            ("supervision.weighting", "supervision.beta_"),
            f"supervision.mode={mode!r} weighs all hidden patches alike",
        ),
        (
            flat["model.encoder_input"] == "full",
            ("decoder.",),
            "model.encoder_input='full' has no decoder",
        ),
        (
            flat["model.encoder_input"] == "visible" and mode == "last",
            ("decoder.intermediate_blocks",),
            "supervision.mode='last' decodes no intermediate depth",
        ),
        (method != "vqkd", ("tokenizer.",), f"method={method!r} trains no tokenizer"),
        (
            method == "vqkd",
            ("mask.", "supervision."),
            "method='vqkd' hides nothing, and is supervised at its end",
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
            ("targets.normalize_pixels",),
            "targets.pixel_weight=0 leaves out the pixels",
        ),
        (flat["mask.kind"] == "block", ("mask.unit",), "mask.kind='block' hides blocks of patches"),
        *ignored_of_data(config),
        (
            flat["evaluation.knn_every_epochs"] == 0,
            ("evaluation.max_examples",),
            "evaluation.knn_every_epochs=0 leaves out k-NN during training",
        ),
    ]


def mask_unit(config: ConfigDict) -> int:
    """The side of what a mask hides as a whole, patches; blocks are made of single patches."""
    return config.mask.unit if config.mask.kind == "random" else 1


def has_momentum_encoder(config: ConfigDict) -> bool:
    """Whether the run keeps one."""
    return "feature_weight" in _options(config) and config.targets.feature_weight > 0


def _options(config: ConfigDict) -> frozenset[str]:
    """The method's own ones; a tokenizer, which hides nothing, has none."""
    return options_of(config.method) if config.method in METHODS else frozenset()


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
        num_masked_patches(grid, config.mask.ratio, mask_unit(config))
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


def _check_method(config: ConfigDict) -> None:
    model, targets = config.model, config.targets
    if model.encoder_input == "visible" and config.method in ("beit2", "vqkd"):
        raise ValueError(
            f"method={config.method!r} encodes all patches; set model.encoder_input='full'"
        )
    if config.method == "beit2" and not model.use_class_token:
        raise ValueError(
            "method='beit2' aggregates in the class token: set model.use_class_token=True"
        )
    if "tokenizer" in _options(config) and not targets.tokenizer:
        raise ValueError(
            f"method={config.method!r} predicts the tokens of a trained tokenizer: give the "
            "workdir of a run with method='vqkd', or a folder with the model.safetensors of one, "
            "as targets.tokenizer"
        )
    if config.method == "vqkd" and not config.tokenizer.teacher:
        raise ValueError(
            "method='vqkd' learns from a teacher: give the workdir of an earlier run, or a folder "
            "with model.safetensors, as tokenizer.teacher"
        )
    if config.method == "vqkd" and config.optimizer.micro_batches > 1:
        raise ValueError(
            f"optimizer.micro_batches={config.optimizer.micro_batches}: method='vqkd' moves its "
            "codes by whole batches; set it to 1, and use model.rematerialization='full' to save "
            "memory"
        )
    if "hog_cell" in _options(config):
        with named_by_key(hog_cell="targets.hog_cell", patch_size="model.patch_size"):
            check_cells(model.patch_size, targets.hog_cell)
    weights = {"pixel_weight", "feature_weight"} & _options(config)
    if weights and not any(targets[name] for name in weights):
        raise ValueError(
            "targets.pixel_weight and targets.feature_weight are both 0; nothing is left to learn"
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

"""Loaders of frozen networks that a method learns from: a tokenizer, or a tokenizer's teacher."""

import logging
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_encoder, build_tokenizer, renormalize
from ddae_jax.builders.pretrained import log_notes, only_encoder
from ddae_jax.builders.restore import encoder_of, encoder_part, read_run, restore_part
from ddae_jax.interop.backbones import is_library_folder, read_backbone
from ddae_jax.interop.tokenizers import read_tokenizer
from ddae_jax.interop.weight_files import find_weights
from ddae_jax.methods import METHODS
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer
from ddae_jax.models.tokenizer import Tokenizer, make_tokenizer
from ddae_jax.models.vit import ViT

_log = logging.getLogger(__name__)


def load_teacher(
    path: str, config: ConfigDict, *, stand_in_missing: bool = False
) -> DistilledTeacher:
    """Loads the encoder in a folder, from a run's latest checkpoint or published weights.

    Args:
        path: a workdir, whose ``evaluation.encoder`` selects student or teacher; or a folder with
            ``model.safetensors`` (see :mod:`ddae_jax.interop.backbones`).
        config: of the run that learns from it. Images normalised by this config's statistics are
            renormalised by the teacher's.
        stand_in_missing: see :func:`ddae_jax.builders.methods.build_method`.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if the weights are of an unknown kind, or take other channels than the config's.
    """
    if stand_in_missing and _is_missing("tokenizer.teacher", path):
        module = build_encoder(_as_frozen(config, config)).clone(drop_path_rate=0.0)
        return DistilledTeacher(module, _shapes_of(module, config))
    if pathlib.Path(path).expanduser().is_file():
        raise ValueError(
            f"tokenizer.teacher={path!r} is a file, which does not tell the pixel statistics that "
            "the encoder was trained on; give a folder that holds the weights as "
            "model.safetensors or pytorch_model.bin, and the statistics in timm's config.json "
            "(pretrained_cfg: mean, std), or in transformers' preprocessor_config.json "
            "(image_mean, image_std) beside its config.json"
        )
    folder = _folder(path, "tokenizer.teacher", "a workdir, or a folder with model.safetensors")
    if is_library_folder(folder):
        backbone = read_backbone(folder)
        log_notes(backbone)
        module = ViT(**backbone.options, dtype=jnp.dtype(_as_frozen(config, config).model.dtype))
        mean, std = backbone.mean, backbone.std
        params = only_encoder(backbone.params, module, len(mean), folder)
    else:
        workdir, theirs = read_run(folder, "tokenizer.teacher")
        if METHODS[theirs.method].kind == "tokenizer":
            _log.warning("tokenizer.teacher=%r is a tokenizer itself", path)
        module = build_encoder(_as_frozen(theirs, config)).clone(drop_path_rate=0.0)
        params = encoder_of(restore_part(workdir, encoder_part(theirs))[0])
        mean, std = theirs.data.mean, theirs.data.std
    _check_channels("tokenizer.teacher", path, mean, config)
    adapt = renormalize(config.data.mean, config.data.std, mean, std)
    return DistilledTeacher(module, params, adapt)


def load_tokenizer(
    path: str, config: ConfigDict, *, stand_in_missing: bool = False
) -> TrainedTokenizer:
    """Loads a tokenizer, trained by a run or published by the authors of BEiT v2.

    Args:
        path: a workdir; or a file, or a folder with ``model.safetensors`` (see
            :mod:`ddae_jax.interop.tokenizers`).
        config: of the run that predicts its tokens. Images normalised by this config's statistics
            are renormalised by the tokenizer's.
        stand_in_missing: see :func:`ddae_jax.builders.methods.build_method`.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it is no tokenizer, or takes other channels than the config's.
    """
    if stand_in_missing and _is_missing("targets.tokenizer", path):
        return TrainedTokenizer(*_untrained_tokenizer(_as_frozen(config, config)))
    what = (
        "the workdir of a run with method='vqkd', as configs/cifar10_tokenizer.py has it, or the "
        ".pth of one that was published, or a folder with its model.safetensors"
    )
    folder = pathlib.Path(path).expanduser()
    if not (path and folder.is_file()):
        folder = _folder(path, "targets.tokenizer", what)
    if folder.is_file() or find_weights(folder).is_file():
        stored = read_tokenizer(folder)
        encoder = ViT(**stored.options, dtype=jnp.dtype(_as_frozen(config, config).model.dtype))
        params = dict(stored.params)
        params["encoder"] = only_encoder(params["encoder"], encoder, len(stored.mean), folder)
        module = make_tokenizer(encoder, config.tokenizer.decoder_depth, stored.codes.shape[1])
        frozen = {"params": params, "codes": stored.codes}
        mean, std = stored.mean, stored.std
    else:
        module, frozen, theirs = _restore_tokenizer(folder, path, config)
        mean, std = theirs.data.mean, theirs.data.std
    _check_channels("targets.tokenizer", path, mean, config)
    return TrainedTokenizer(
        module, frozen, renormalize(config.data.mean, config.data.std, mean, std)
    )


def _is_missing(key: str, path: str) -> bool:
    """Returns whether nothing is at a path, with a warning that a stand-in replaces it."""
    if path and pathlib.Path(path).expanduser().exists():
        return False
    _log.warning("%s=%r is not there: one as large as the encoder stands in for it", key, path)
    return True


def _as_frozen(theirs: ConfigDict, config: ConfigDict) -> ConfigDict:
    """Returns the config of a tokenizer or teacher with this run's ``model.frozen_dtype``.

    Its dtype is independent of the student's: rounding to bfloat16 would change the targets.
    """
    dtype = config.model.frozen_dtype
    if dtype in ("as_trained", theirs.model.dtype):
        return theirs
    theirs = theirs.copy_and_resolve_references()
    theirs.model.dtype = dtype
    if theirs.model.attention_form == "cudnn" and dtype == "float32":
        theirs.model.attention_form = "auto"  # cuDNN's attention needs 16 bits
    return theirs


def _shapes_of(module: ViT | Tokenizer, config: ConfigDict) -> PyTree:
    """Returns shapes and dtypes of a network's parameters, for the config's images."""
    size = module.image_size if isinstance(module, ViT) else module.encoder.image_size
    images = jnp.zeros((1, *size, config.data.channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def _restore_tokenizer(
    folder: pathlib.Path, path: str, config: ConfigDict
) -> tuple[Tokenizer, PyTree, ConfigDict]:
    """Restores the tokenizer of a run: the network, its parameters and codes, and the config."""
    workdir, theirs = read_run(folder, "targets.tokenizer")
    if METHODS[theirs.method].kind != "tokenizer":
        raise ValueError(
            f"targets.tokenizer={path!r} is a run of method={theirs.method!r}; a tokenizer is "
            "trained by method='vqkd', as in configs/cifar10_tokenizer.py"
        )
    module, shapes = _untrained_tokenizer(_as_frozen(theirs, config))
    restored, _ = restore_part(
        workdir,
        {"params": shapes["params"], "teacher": {"codebook": {"codes": shapes["codes"]}}},
    )
    codes = restored["teacher"]["codebook"]["codes"]
    return module, {"params": restored["params"], "codes": codes}, theirs


def _untrained_tokenizer(config: ConfigDict) -> tuple[Tokenizer, PyTree]:
    """Builds the config's tokenizer, and the shapes of the parameters and codes for its tokens."""
    module = build_tokenizer(config, teacher_width=1)  # any width: only tokens are computed
    shapes = _shapes_of(module, config)
    codes = (config.tokenizer.num_codes, config.tokenizer.code_width)
    return module, {
        "params": {name: shapes[name] for name in ("encoder", "code_hidden", "code_projection")},
        "codes": jax.ShapeDtypeStruct(codes, jnp.float32),
    }


def _check_channels(key: str, path: str, mean: Sequence[float], config: ConfigDict) -> None:
    """Raises ``ValueError`` unless ``mean`` has one value for each of the config's channels."""
    if len(mean) != config.data.channels:
        raise ValueError(
            f"{key}={path!r} is for images of {len(mean)} channels, but "
            f"data.channels={config.data.channels}"
        )


def _folder(path: str, key: str, what: str) -> pathlib.Path:
    """Returns the path of an existing folder.

    Args:
        path: as the config gives it.
        key: the config key that names it, for messages.
        what: the folder has to be, for messages.

    Raises:
        ValueError: if ``path`` is empty.
        FileNotFoundError: if it is no folder.
    """
    if not path:
        raise ValueError(f"{key} is empty; this method needs {what}")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}={path!r} is no folder; --config.{key}=PATH gives {what}")
    return folder

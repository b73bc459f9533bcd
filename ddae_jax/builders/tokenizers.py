"""Trained networks that a method is given: the tokenizer whose tokens it predicts, or a teacher."""

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
    """The encoder in a folder: a run's latest, or somebody else's weights.

    Args:
        path: a workdir, of whose run ``evaluation.encoder`` names student or teacher; or a folder
            with ``model.safetensors`` (see :mod:`ddae_jax.interop.backbones`).
        config: of the run that learns from it, for its pixel statistics.
        stand_in_missing: see :func:`ddae_jax.builders.methods.build_method`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is not known here, or for images of other channels.
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
        found = read_backbone(folder)
        log_notes(found)
        module = ViT(**found.options, dtype=jnp.dtype(_as_frozen(config, config).model.dtype))
        params, mean, std = (
            only_encoder(found.params, module, len(found.mean), folder),
            found.mean,
            found.std,
        )
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
    """The tokenizer in a folder: what a run has trained, or the authors of BEiT v2.

    Args:
        path: a workdir; or a file, or a folder with ``model.safetensors`` (see
            :mod:`ddae_jax.interop.tokenizers`).
        config: of the run that predicts its tokens, for its pixel statistics.
        stand_in_missing: see :func:`ddae_jax.builders.methods.build_method`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no tokenizer, or for images of other channels.
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
        found = read_tokenizer(folder)
        encoder = ViT(**found.options, dtype=jnp.dtype(_as_frozen(config, config).model.dtype))
        params = dict(found.params)
        params["encoder"] = only_encoder(params["encoder"], encoder, len(found.mean), folder)
        module = make_tokenizer(encoder, config.tokenizer.decoder_depth, found.codes.shape[1])
        frozen = {"params": params, "codes": found.codes}
        mean, std = found.mean, found.std
    else:
        module, frozen, theirs = _restore_tokenizer(folder, path, config)
        mean, std = theirs.data.mean, theirs.data.std
    _check_channels("targets.tokenizer", path, mean, config)
    return TrainedTokenizer(
        module, frozen, renormalize(config.data.mean, config.data.std, mean, std)
    )


def _is_missing(key: str, path: str) -> bool:
    if path and pathlib.Path(path).expanduser().exists():
        return False
    _log.warning("%s=%r is not there: one as large as the encoder stands in for it", key, path)
    return True


def _as_frozen(theirs: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config of a tokenizer or teacher, with the dtype in which this run lets it compute.

    Where the student computes in bfloat16, rounding would change what it is to predict.
    """
    dtype = config.model.frozen_dtype
    if dtype in ("as_trained", theirs.model.dtype):
        return theirs
    theirs = theirs.copy_and_resolve_references()
    theirs.model.dtype = dtype
    if theirs.model.attention_form == "cudnn" and dtype == "float32":
        theirs.model.attention_form = "auto"  # cuDNN's computes in 16 bits
    return theirs


def _shapes_of(module: ViT | Tokenizer, config: ConfigDict) -> PyTree:
    """Of the parameters of a network for the config's images."""
    size = module.image_size if isinstance(module, ViT) else module.encoder.image_size
    images = jnp.zeros((1, *size, config.data.channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def _restore_tokenizer(
    folder: pathlib.Path, path: str, config: ConfigDict
) -> tuple[Tokenizer, PyTree, ConfigDict]:
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
    """The config's tokenizer, and the shapes of what its tokens are made with."""
    module = build_tokenizer(config, teacher_width=1)  # of which nothing but tokens is asked
    shapes = _shapes_of(module, config)
    codes = (config.tokenizer.num_codes, config.tokenizer.code_width)
    return module, {
        "params": {name: shapes[name] for name in ("encoder", "code_hidden", "code_projection")},
        "codes": jax.ShapeDtypeStruct(codes, jnp.float32),
    }


def _check_channels(key: str, path: str, mean: Sequence[float], config: ConfigDict) -> None:
    if len(mean) != config.data.channels:
        raise ValueError(
            f"{key}={path!r} is for images of {len(mean)} channels, but "
            f"data.channels={config.data.channels}"
        )


def _folder(path: str, key: str, what: str) -> pathlib.Path:
    if not path:
        raise ValueError(f"{key} is empty; this method needs {what}")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}={path!r} is no folder; --config.{key}=PATH gives {what}")
    return folder

"""What earlier runs, or other people, have trained: encoders and tokenizers to learn from."""

import contextlib
import contextvars
import functools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import (
    build_encoder,
    build_tokenizer,
    renormalize,
    tokenizer_around,
    untrained_encoder_params,
)
from ddae_jax.config import from_plain
from ddae_jax.config.checks import check_config
from ddae_jax.config.downstream import ARCHITECTURE
from ddae_jax.config.pretraining import has_momentum_encoder
from ddae_jax.interop.backbones import is_of_others, read_backbone
from ddae_jax.interop.decoders import read_mae_decoder
from ddae_jax.interop.described import Backbone, Told
from ddae_jax.interop.preprocessing import Preprocessing
from ddae_jax.interop.tokenizers import read_tokenizer
from ddae_jax.interop.weights import files_beside, find_weights
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer
from ddae_jax.models.tokenizer import Tokenizer
from ddae_jax.models.vit import SIZES, ViT
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.checkpoint_contents import differences
from ddae_jax.training.sharding import abstract, make_mesh, replicated, state_sharding
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)

_are_shapes_enough: contextvars.ContextVar[bool] = contextvars.ContextVar("shapes", default=False)


@contextlib.contextmanager
def shapes_of_missing() -> Iterator[None]:
    """In the body, shapes stand in for a tokenizer or teacher that is not there.

    :func:`load_tokenizer` and :func:`load_teacher` then give one that is as large as the config's
    own encoder, whose parameters are ``ShapeDtypeStruct`` s: enough to compile with.
    """
    token = _are_shapes_enough.set(True)
    try:
        yield
    finally:
        _are_shapes_enough.reset(token)


def restore_encoder(
    workdir: Workdir, config: ConfigDict, mesh: Mesh, step: int | None = None
) -> tuple[PyTree, int, int]:
    """Parameters of the encoder that ``config.evaluation`` names, their step, and when saved.

    The time, nanoseconds, tells a run from another one that was made in the same folder.

    Raises ``ValueError`` for the teacher of a run that has none.
    """
    if config.evaluation.encoder == "teacher" and not has_momentum_encoder(config):
        raise ValueError("--encoder=teacher: this run has no teacher (targets.feature_weight=0)")
    wanted = _encoder_part(config)
    sharding = state_sharding(mesh, wanted)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(wanted, sharding), step)
        saved_at = checkpoints.saved_at(step)
    return _encoder_of(restored), step, saved_at


def is_imported(workdir: Workdir, config: ConfigDict) -> bool:
    """Whether a folder holds somebody's weights as they were: they have no records of training."""
    return bool(config.init_from) and not workdir.metrics.exists()


def restore_params(workdir: Workdir, shapes: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Those of a student's parameters that are asked for, whole in this process, and their step.

    Args:
        workdir: of the run.
        shapes: of these parameters, a part of all.
        step: of the checkpoint; the latest by default.

    Raises as :meth:`ddae_jax.training.checkpoint.Checkpoints.restore_part` does.
    """
    restored, step = _restore_part(workdir, {"params": shapes}, step)
    return restored["params"], step


class Pretrained(NamedTuple):
    """An encoder to go on with.

    Attributes:
        model: its architecture, as keys of ``config.model``.
        module: the encoder; its computation is not settled.
        params: its parameters.
        mean, std: of the pixels that it was trained on, a value a channel; None if not known.
        evaluation: how it is shown images and read, as keys of ``config.evaluation``; those that
            are not known are left out.
    """

    model: dict[str, Any]
    module: ViT
    params: PyTree
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    evaluation: Mapping[str, Any]


@functools.lru_cache(maxsize=1)
def load_pretrained(path: str, encoder: str = "student", told: Told | None = None) -> Pretrained:
    """The encoder in a workdir, or in somebody else's weights.

    Args:
        path: a workdir, or what :func:`ddae_jax.interop.backbones.read_backbone` reads.
        encoder: ``student`` or ``teacher``, of a workdir.
        told: what somebody says of somebody else's weights.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is not known here, or no config can describe it.
    """
    if encoder not in ("student", "teacher"):
        raise ValueError(f"encoder={encoder!r}; it is 'student' or 'teacher'")
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"init_from={path!r} is not there; it is the workdir of a run, or a file or folder "
            "with somebody's weights"
        )
    if place.is_file() or is_of_others(place):
        if encoder == "teacher":
            raise ValueError(
                f"init_encoder='teacher' is for runs, and {path} holds somebody's weights; of a "
                "file with several networks, --config.init_part=teacher takes that one"
            )
        found = read_backbone(place, told)
        _say_notes(found)
        module = ViT(**found.options)
        channels = found.params["patch_embedding"]["kernel"].shape[0] // module.patch_size**2
        params = _only(found.params, module, channels, place)
        shown = found.preprocessing._asdict() if found.preprocessing else {}
        pool = {"pool": found.pool} if found.pool else {}
        described = _describe(module, place)
        return Pretrained(described, module, params, found.mean, found.std, shown | pool)
    if told and told != Told():
        raise ValueError(
            f"init_heads, init_activation and init_part are for somebody's weights; {path} is a "
            "run, which tells all of it: leave them as they are by default"
        )
    workdir, theirs = _read_run(place, "init_from")
    theirs.evaluation.encoder = encoder
    if encoder == "teacher" and not has_momentum_encoder(theirs):
        raise ValueError(f"init_encoder='teacher': the run in {path} has no teacher")
    params = _encoder_of(_restore_part(workdir, _encoder_part(theirs))[0])
    model = {name: theirs.model[name] for name in ARCHITECTURE}
    shown = {name: theirs.evaluation[name] for name in ("pool", *Preprocessing._fields)}
    return Pretrained(
        model,
        build_encoder(theirs),
        params,
        tuple(theirs.data.mean),
        tuple(theirs.data.std),
        shown,
    )


def load_decoder(path: str, told: Told) -> tuple[PyTree, int | None]:
    """The decoder and head of somebody's MAE, and the decoder's heads if they are known.

    Args:
        path: of a file of MAE's authors, or of a folder of transformers.
        told: what somebody says of it.

    Raises ``ValueError`` for a run, and for weights without a decoder.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir() and not is_of_others(place):
        raise ValueError(
            f"init_decoder=True is for an MAE that was published, and {path} is a run: to go on "
            "with all of it, give its own folder as --workdir"
        )
    return read_mae_decoder(place, told.part)


def load_teacher(path: str, config: ConfigDict) -> DistilledTeacher:
    """The encoder in a folder: a run's latest, or somebody else's weights.

    Args:
        path: a workdir, of whose run ``evaluation.encoder`` names student or teacher; or a folder
            with ``model.safetensors`` (see :mod:`ddae_jax.interop.backbones`).
        config: of the run that learns from it, for its pixel statistics.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is not known here, or for images of other channels.
    """
    if _takes_shapes("tokenizer.teacher", path):
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
    if is_of_others(folder):
        found = read_backbone(folder)
        _say_notes(found)
        module = ViT(**found.options, dtype=jnp.dtype(_as_frozen(config, config).model.dtype))
        params, mean, std = (
            _only(found.params, module, len(found.mean), folder),
            found.mean,
            found.std,
        )
    else:
        workdir, theirs = _read_run(folder, "tokenizer.teacher")
        if theirs.method == "vqkd":
            _log.warning("tokenizer.teacher=%r is a tokenizer itself", path)
        module = build_encoder(_as_frozen(theirs, config)).clone(drop_path_rate=0.0)
        params = _encoder_of(_restore_part(workdir, _encoder_part(theirs))[0])
        mean, std = theirs.data.mean, theirs.data.std
    _check_channels("tokenizer.teacher", path, mean, config)
    adapt = renormalize(config.data.mean, config.data.std, mean, std)
    return DistilledTeacher(module, params, adapt)


def load_tokenizer(path: str, config: ConfigDict) -> TrainedTokenizer:
    """The tokenizer in a folder: what a run has trained, or the authors of BEiT v2.

    Args:
        path: a workdir; or a file, or a folder with ``model.safetensors`` (see
            :mod:`ddae_jax.interop.tokenizers`).
        config: of the run that predicts its tokens, for its pixel statistics.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no tokenizer, or for images of other channels.
    """
    if _takes_shapes("targets.tokenizer", path):
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
        params["encoder"] = _only(params["encoder"], encoder, len(found.mean), folder)
        module = tokenizer_around(encoder, config.tokenizer.decoder_depth, found.codes.shape[1])
        frozen = {"params": params, "codes": found.codes}
        mean, std = found.mean, found.std
    else:
        module, frozen, theirs = _restore_tokenizer(folder, path, config)
        mean, std = theirs.data.mean, theirs.data.std
    _check_channels("targets.tokenizer", path, mean, config)
    return TrainedTokenizer(
        module, frozen, renormalize(config.data.mean, config.data.std, mean, std)
    )


def _takes_shapes(key: str, path: str) -> bool:
    if not _are_shapes_enough.get() or (path and pathlib.Path(path).expanduser().exists()):
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
    workdir, theirs = _read_run(folder, "targets.tokenizer")
    if theirs.method != "vqkd":
        raise ValueError(
            f"targets.tokenizer={path!r} is a run of method={theirs.method!r}; a tokenizer is "
            "trained by method='vqkd', as in configs/cifar10_tokenizer.py"
        )
    module, shapes = _untrained_tokenizer(_as_frozen(theirs, config))
    restored, _ = _restore_part(
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


def _describe(module: ViT, place: pathlib.Path) -> dict[str, Any]:
    """An encoder as keys of ``config.model``. Raises ``ValueError`` if there is no such size."""
    size = (module.width, module.depth, module.num_heads)
    names = [name for name, known in SIZES.items() if tuple(known) == size]
    if not names or module.mlp_ratio != 4:
        raise ValueError(
            f"the encoder in {place} has width {module.width}, {module.depth} blocks, "
            f"{module.num_heads} heads and MLPs of {module.mlp_ratio:g} times the width; known "
            f"sizes, with MLPs of 4 times: {', '.join(f'{n} {tuple(s)}' for n, s in SIZES.items())}"
        )
    told = {name: getattr(module, name) for name in ARCHITECTURE if name != "size"}
    return told | {"size": names[0], "layer_scale": module.layer_scale or 0.0}


def _say_notes(found: Backbone) -> None:
    for note in found.notes:
        _log.warning("%s", note)


def _check_channels(key: str, path: str, mean: Sequence[float], config: ConfigDict) -> None:
    if len(mean) != config.data.channels:
        raise ValueError(
            f"{key}={path!r} is for images of {len(mean)} channels, but "
            f"data.channels={config.data.channels}"
        )


def check_fits(params: PyTree, module: ViT, channels: int, where: object) -> None:
    """Raises ``ValueError``, naming the first arrays that an encoder and its parameters differ in.

    Args:
        params: of it, or of another one.
        module: the encoder.
        channels: of the images.
        where: the parameters are from, for the message.
    """
    told = differences(params, _wanted(module, channels), "there")
    if told:
        raise ValueError(f"the weights in {where} do not fit the encoder; {told}")


def _only(params: PyTree, module: ViT, channels: int, folder: pathlib.Path) -> PyTree:
    """The parameters that the encoder has. Raises ``ValueError`` if some are not as it has them."""
    wanted = _wanted(module, channels)
    params = {name: value for name, value in params.items() if name in wanted}
    check_fits(params, module, channels, folder)
    return params


def _wanted(module: ViT, channels: int) -> PyTree:
    images = jnp.zeros((1, *module.image_size, channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def _encoder_part(config: ConfigDict) -> PyTree:
    """The part of a state that has the encoder which ``config.evaluation`` names."""
    shapes = jax.eval_shape(lambda: untrained_encoder_params(config))
    is_teacher = config.evaluation.encoder == "teacher"
    return {"teacher": shapes} if is_teacher else {"params": {"encoder": shapes}}


def _encoder_of(part: PyTree) -> PyTree:
    return part["teacher"] if "teacher" in part else part["params"]["encoder"]


def _restore_part(workdir: Workdir, wanted: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Arrays of a run's checkpoint, whole in this process's memory, and its step."""
    sharding = jax.tree.map(lambda _: replicated(make_mesh()), wanted)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(wanted, sharding), step)
    return jax.tree.map(np.asarray, restored), step


def _folder(path: str, key: str, what: str) -> pathlib.Path:
    if not path:
        raise ValueError(f"{key} is empty; this method needs {what}")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}={path!r} is no folder; --config.{key}=PATH gives {what}")
    return folder


def _read_run(folder: pathlib.Path, key: str) -> tuple[Workdir, ConfigDict]:
    workdir = Workdir(folder)
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"{key}={str(folder)!r} holds neither a run nor weights: there is no "
            f"{workdir.config.name} and no model.safetensors in it{files_beside(folder)}"
        )
    config = from_plain(stored, workdir.config)
    if config.job != "pretrain":
        raise ValueError(
            f"{key}={str(folder)!r} is a run of ddae_jax.{config.job}; give one of "
            "ddae_jax.pretrain"
        )
    check_config(config)
    return workdir, config

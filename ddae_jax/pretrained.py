"""What earlier runs, or other people, have trained: encoders and tokenizers to learn from."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.config import from_plain
from ddae_jax.config_checks import check_config, has_momentum_encoder
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer
from ddae_jax.models.vit import ViT
from ddae_jax.networks import (
    build_encoder,
    build_tokenizer,
    renormalize,
    untrained_encoder_params,
)
from ddae_jax.training.checkpoint import Checkpoints, abstract
from ddae_jax.training.sharding import make_mesh, replicated, state_sharding
from ddae_jax.training.workdir import Workdir


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
        step = checkpoints.existing_step(step)
        saved_at = checkpoints.saved_at(step)
        restored = checkpoints.restore_part(abstract(wanted, sharding), step)
    return _encoder_of(restored), step, saved_at


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
    folder = _folder(path, "tokenizer.teacher", "a workdir, or a folder with model.safetensors")
    if (folder / "model.safetensors").is_file():
        found = read_backbone(folder)
        module = ViT(**found.options, dtype=jnp.dtype(config.model.dtype))
        params, mean, std = (
            _only(found.params, module, len(found.mean), folder),
            found.mean,
            found.std,
        )
    else:
        workdir, theirs = _read_run(folder, "tokenizer.teacher")
        module = build_encoder(theirs).clone(drop_path_rate=0.0)
        params = _encoder_of(_restore_part(workdir, _encoder_part(theirs)))
        mean, std = theirs.data.mean, theirs.data.std
    if len(mean) != config.data.channels:
        raise ValueError(
            f"tokenizer.teacher={path!r} is for images of {len(mean)} channels, but data.channels="
            f"{config.data.channels}"
        )
    adapt = renormalize(config.data.mean, config.data.std, mean, std)
    return DistilledTeacher(module, params, adapt)


def load_tokenizer(path: str, config: ConfigDict) -> TrainedTokenizer:
    """The tokenizer that a run has trained.

    Args:
        path: of its workdir.
        config: of the run that predicts its tokens, for its pixel statistics.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if that run trained no tokenizer, or for images of other channels.
    """
    folder = _folder(path, "targets.tokenizer", "the workdir of a run with method='vqkd'")
    workdir, theirs = _read_run(folder, "targets.tokenizer")
    if theirs.method != "vqkd":
        raise ValueError(
            f"targets.tokenizer={path!r} is a run of method={theirs.method!r}; a tokenizer is "
            "trained by method='vqkd', as in configs/cifar10_tokenizer.py"
        )
    if theirs.data.channels != config.data.channels:
        raise ValueError(
            f"targets.tokenizer={path!r} is for images of {theirs.data.channels} channels, but "
            f"data.channels={config.data.channels}"
        )
    module = build_tokenizer(theirs, teacher_width=1)  # of which nothing but tokens is asked
    images = jnp.zeros((1, *module.encoder.image_size, theirs.data.channels))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    codes = (theirs.tokenizer.num_codes, theirs.tokenizer.code_width)
    restored = _restore_part(
        workdir,
        {
            "params": {k: shapes[k] for k in ("encoder", "code_hidden", "code_projection")},
            "teacher": {"codebook": {"codes": jax.ShapeDtypeStruct(codes, jnp.float32)}},
        },
    )
    frozen = {"params": restored["params"], "codes": restored["teacher"]["codebook"]["codes"]}
    statistics = theirs.data.mean, theirs.data.std
    return TrainedTokenizer(
        module, frozen, renormalize(config.data.mean, config.data.std, *statistics)
    )


def _only(params: PyTree, module: ViT, channels: int, folder: pathlib.Path) -> PyTree:
    """The parameters that the encoder has. Raises ``ValueError`` if it has others or lacks some."""
    images = jnp.zeros((1, *module.image_size, channels))
    wanted = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    params = {name: value for name, value in params.items() if name in wanted}
    ours, theirs = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in leaves
        }
        for leaves in map(jax.tree_util.tree_leaves_with_path, (wanted, params))
    )
    differing = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if differing:
        raise ValueError(
            f"the weights in {folder} do not make a whole encoder; they lack, or have otherwise, "
            f"what is here called {', '.join(differing[:5])}"
        )
    return params


def _encoder_part(config: ConfigDict) -> PyTree:
    """The part of a state that has the encoder which ``config.evaluation`` names."""
    shapes = jax.eval_shape(lambda: untrained_encoder_params(config))
    is_teacher = config.evaluation.encoder == "teacher"
    return {"teacher": shapes} if is_teacher else {"params": {"encoder": shapes}}


def _encoder_of(part: PyTree) -> PyTree:
    return part["teacher"] if "teacher" in part else part["params"]["encoder"]


def _restore_part(workdir: Workdir, wanted: PyTree) -> PyTree:
    """Arrays of a run's latest checkpoint, whole in this process's memory."""
    sharding = jax.tree.map(lambda _: replicated(make_mesh()), wanted)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore_part(abstract(wanted, sharding)))


def _folder(path: str, key: str, what: str) -> pathlib.Path:
    if not path:
        raise ValueError(f"{key} is empty; this method needs {what}")
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}={path!r} is no folder; it is {what}")
    return folder


def _read_run(folder: pathlib.Path, key: str) -> tuple[Workdir, ConfigDict]:
    workdir = Workdir(folder)
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"{key}={str(folder)!r} holds no run: there is no {workdir.config.name} in it"
        )
    config = from_plain(stored, workdir.config)
    check_config(config)
    return workdir, config

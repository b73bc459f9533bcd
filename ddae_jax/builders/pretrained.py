"""Pretrained encoders: loaded from a run of this package, or from published weights."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.restore import encoder_of, encoder_part, read_run, restore_part
from ddae_jax.config.downstream import ARCHITECTURE
from ddae_jax.config.pretraining import has_momentum_encoder
from ddae_jax.interop.architecture import Backbone, WeightHints
from ddae_jax.interop.backbones import is_library_folder, read_backbone
from ddae_jax.interop.decoders import read_mae_decoder
from ddae_jax.interop.preprocessing import Preprocessing
from ddae_jax.models.vit import SIZES, ViT
from ddae_jax.training.checkpoint_contents import differences

_log = logging.getLogger(__name__)


class Pretrained(NamedTuple):
    """A pretrained encoder, with its pixel statistics and preprocessing.

    Attributes:
        model: its architecture, as keys of ``config.model``.
        module: the encoder; its dtype and form of attention need not be the config's.
        params: its parameters.
        mean, std: of the pixels that it was trained on, one value per channel; None if unknown.
        evaluation: its preprocessing and pooling, as keys of ``config.evaluation``; unknown ones
            are left out.
    """

    model: dict[str, Any]
    module: ViT
    params: PyTree
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    evaluation: Mapping[str, Any]


def load_pretrained(
    path: str, encoder: str = "student", hints: WeightHints | None = None
) -> Pretrained:
    """Loads the encoder in a workdir, or in published weights.

    Args:
        path: a workdir, or what :func:`ddae_jax.interop.backbones.read_backbone` reads.
        encoder: which one of a workdir: ``student`` or ``teacher``.
        hints: facts about published weights that their file does not contain.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if the weights are of an unknown kind, or no config can describe the encoder.
    """
    if encoder not in ("student", "teacher"):
        raise ValueError(f"encoder={encoder!r}; it is 'student' or 'teacher'")
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"init_from={path!r} is not there; it is the workdir of a run, or a file or folder "
            "with somebody's weights"
        )
    if place.is_file() or is_library_folder(place):
        if encoder == "teacher":
            raise ValueError(
                f"init_encoder='teacher' is for runs, and {path} holds somebody's weights; of a "
                "file with several networks, --config.init_part=teacher takes that one"
            )
        backbone = read_backbone(place, hints)
        log_notes(backbone)
        module = ViT(**backbone.options)
        channels = backbone.params["patch_embedding"]["kernel"].shape[0] // module.patch_size**2
        params = only_encoder(backbone.params, module, channels, place)
        evaluation = backbone.preprocessing._asdict() if backbone.preprocessing else {}
        if backbone.pool:
            evaluation["pool"] = backbone.pool
        model = _describe(module, place)
        return Pretrained(model, module, params, backbone.mean, backbone.std, evaluation)
    if hints and hints != WeightHints():
        raise ValueError(
            f"init_heads, init_activation and init_part are for somebody's weights; {path} is a "
            "run, which tells all of it: leave them as they are by default"
        )
    workdir, theirs = read_run(place, "init_from")
    theirs.evaluation.encoder = encoder
    if encoder == "teacher" and not has_momentum_encoder(theirs):
        raise ValueError(f"init_encoder='teacher': the run in {path} has no teacher")
    params = encoder_of(restore_part(workdir, encoder_part(theirs))[0])
    model = {name: theirs.model[name] for name in ARCHITECTURE}
    evaluation = {name: theirs.evaluation[name] for name in ("pool", *Preprocessing._fields)}
    return Pretrained(
        model,
        build_encoder(theirs),
        params,
        tuple(theirs.data.mean),
        tuple(theirs.data.std),
        evaluation,
    )


def load_decoder(path: str, hints: WeightHints) -> tuple[PyTree, int | None]:
    """Loads the decoder and head of a published MAE.

    Args:
        path: of a file of MAE's authors, or of a folder of transformers.
        hints: facts about the weights that their file does not contain.

    Returns:
        Parameters of decoder and head; and the decoder's number of attention heads, None if it is
        unknown.

    Raises ``ValueError`` for a run, and for weights without a decoder.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir() and not is_library_folder(place):
        raise ValueError(
            f"init_decoder=True is for an MAE that was published, and {path} is a run: to go on "
            "with all of it, give its own folder as --workdir"
        )
    return read_mae_decoder(place, hints.part)


def check_fits(params: PyTree, module: ViT, channels: int, where: object) -> None:
    """Raises ``ValueError``, naming the first differences, if parameters do not fit an encoder.

    Args:
        params: to be checked.
        module: the encoder.
        channels: number of channels of the images.
        where: origin of the parameters, for the message.
    """
    message = differences(params, _param_shapes(module, channels), "there")
    if message:
        raise ValueError(f"the weights in {where} do not fit the encoder; {message}")


def _describe(module: ViT, place: pathlib.Path) -> dict[str, Any]:
    """Returns an encoder as keys of ``config.model``; raises ``ValueError`` for an unknown size."""
    size = (module.width, module.depth, module.num_heads)
    names = [name for name, known in SIZES.items() if tuple(known) == size]
    if not names or module.mlp_ratio != 4:
        raise ValueError(
            f"the encoder in {place} has width {module.width}, {module.depth} blocks, "
            f"{module.num_heads} heads and MLPs of {module.mlp_ratio:g} times the width; known "
            f"sizes, with MLPs of 4 times: {', '.join(f'{n} {tuple(s)}' for n, s in SIZES.items())}"
        )
    model = {name: getattr(module, name) for name in ARCHITECTURE if name != "size"}
    return model | {"size": names[0], "layer_scale": module.layer_scale or 0.0}


def log_notes(backbone: Backbone) -> None:
    """Logs, as warnings, the assumptions made when the weights were read."""
    for note in backbone.notes:
        _log.warning("%s", note)


def only_encoder(params: PyTree, module: ViT, channels: int, folder: pathlib.Path) -> PyTree:
    """Returns the parameters that the encoder has; raises ``ValueError`` if they do not fit it."""
    shapes = _param_shapes(module, channels)
    params = {name: value for name, value in params.items() if name in shapes}
    check_fits(params, module, channels, folder)
    return params


def _param_shapes(module: ViT, channels: int) -> PyTree:
    """Returns shapes and dtypes of an encoder's parameters."""
    images = jnp.zeros((1, *module.image_size, channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]

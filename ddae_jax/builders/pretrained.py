"""Pretrained encoders: a run's, or published weights, to go on with."""

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


def load_pretrained(
    path: str, encoder: str = "student", told: WeightHints | None = None
) -> Pretrained:
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
    if place.is_file() or is_library_folder(place):
        if encoder == "teacher":
            raise ValueError(
                f"init_encoder='teacher' is for runs, and {path} holds somebody's weights; of a "
                "file with several networks, --config.init_part=teacher takes that one"
            )
        found = read_backbone(place, told)
        log_notes(found)
        module = ViT(**found.options)
        channels = found.params["patch_embedding"]["kernel"].shape[0] // module.patch_size**2
        params = only_encoder(found.params, module, channels, place)
        shown = found.preprocessing._asdict() if found.preprocessing else {}
        pool = {"pool": found.pool} if found.pool else {}
        described = _describe(module, place)
        return Pretrained(described, module, params, found.mean, found.std, shown | pool)
    if told and told != WeightHints():
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
    shown = {name: theirs.evaluation[name] for name in ("pool", *Preprocessing._fields)}
    return Pretrained(
        model,
        build_encoder(theirs),
        params,
        tuple(theirs.data.mean),
        tuple(theirs.data.std),
        shown,
    )


def load_decoder(path: str, told: WeightHints) -> tuple[PyTree, int | None]:
    """The decoder and head of somebody's MAE, and the decoder's heads if they are known.

    Args:
        path: of a file of MAE's authors, or of a folder of transformers.
        told: what somebody says of it.

    Raises ``ValueError`` for a run, and for weights without a decoder.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir() and not is_library_folder(place):
        raise ValueError(
            f"init_decoder=True is for an MAE that was published, and {path} is a run: to go on "
            "with all of it, give its own folder as --workdir"
        )
    return read_mae_decoder(place, told.part)


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


def log_notes(found: Backbone) -> None:
    """Warns of what was assumed about weights as they were read."""
    for note in found.notes:
        _log.warning("%s", note)


def only_encoder(params: PyTree, module: ViT, channels: int, folder: pathlib.Path) -> PyTree:
    """The parameters that the encoder has. Raises ``ValueError`` if some are not as it has them."""
    wanted = _wanted(module, channels)
    params = {name: value for name, value in params.items() if name in wanted}
    check_fits(params, module, channels, folder)
    return params


def _wanted(module: ViT, channels: int) -> PyTree:
    images = jnp.zeros((1, *module.image_size, channels))
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]

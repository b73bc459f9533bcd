"""Exports a run's encoder to timm or transformers.

    python -m ddae_jax.export --workdir=runs/digits --format=timm --out=exported
    python -m ddae_jax.export --workdir=runs/mae --format=transformers --out=exported

The folder holds weights, architecture, pixel statistics, and a card that says how it was trained
and how it is loaded. An encoder that the library cannot compute is refused. --decoder exports runs
that encode visible patches and predict pixels to transformers with their decoder. The last line
printed is one JSON object.
"""

from ddae_jax.jobs.commands import answer_help, define_export, usage

if __name__ == "__main__":
    answer_help("export", __doc__)  # before the imports below, which take seconds

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags as absl_flags
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.restore import is_imported, restore_encoder, restore_params
from ddae_jax.config import from_plain
from ddae_jax.config.checks import check_config
from ddae_jax.config.pretraining import has_momentum_encoder, predicts_pixels
from ddae_jax.data.view import USUAL_SHARE
from ddae_jax.interop.backbones import Backbone
from ddae_jax.interop.library_export import (
    ExportedFolder,
    MaeDecoder,
    export_timm,
    export_transformers,
    export_transformers_mae,
    write_exported,
)
from ddae_jax.interop.preprocessing import Preprocessing
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.jobs.card_code import Subject, how_to_load
from ddae_jax.jobs.model_card import model_card
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import ViT
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with exits.explain_bad_input():
        flags = cli.parse_flags(argv, usage("export", __doc__), define_export)
        devices.start_devices(is_distributed=False)
        out = _free_folder(flags.out)
        workdir, config = _read_run(flags)
        if flags.decoder:
            _check_has_decoder(config, flags.format, is_imported(workdir, config))
            exported, step = _export_mae(workdir, config, flags.step)
        else:
            exported, step = _export_encoder(workdir, config, flags.format, flags.step)
        subject = Subject(
            library=flags.format,
            network=exported.network,
            folder=out.name,
            encoder=config.evaluation.encoder,
            step=step,
            use_class_token=config.model.use_class_token,
            is_imported=is_imported(workdir, config),
            trained_size=workdir.read_trained_size(),
        )
        with _whole_or_not_at_all(out) as folder:
            digest = hashlib.sha256(write_exported(exported, folder).read_bytes()).hexdigest()
            subject = dataclasses.replace(subject, sha256=digest)
            (folder / "README.md").write_text(model_card(subject, config), encoding="utf-8")
    result = _result(exported, subject, out)
    print(f"{out}: {subject.network} of {result['parameters']:,} parameters, step {step}")
    print(f"load it: {how_to_load(subject, str(out))}")
    print(json.dumps(result))
    return 0


def backbone_of(encoder: ViT, params: PyTree, config: ConfigDict) -> Backbone:
    """An encoder as it is exported: positions that are fixed become arrays."""
    params = jax.tree.map(np.asarray, params)
    options = {
        "num_heads": encoder.num_heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "width": encoder.width,
        "depth": encoder.depth,
        "mlp_ratio": encoder.mlp_ratio,
        "positions": encoder.positions,
        "relative_positions": encoder.relative_positions,
        "has_key_bias": encoder.has_key_bias,
        "layer_scale": encoder.layer_scale,
        "activation": encoder.activation,
        "norm_epsilon": encoder.norm_epsilon,
        "norms_embedding": encoder.norms_embedding,
        "use_class_token": encoder.use_class_token,
    }
    if encoder.positions == "sincos":
        options["positions"] = "learned"
        params = params | {"positions": sincos_positions(encoder.grid, encoder.width)}
    shown = config.evaluation
    return Backbone(
        options,
        params,
        tuple(config.data.mean),
        tuple(config.data.std),
        pool=shown.pool,
        preprocessing=Preprocessing(
            shown.crop_share or USUAL_SHARE, shown.crop_mode, shown.interpolation
        ),
    )


def _check_has_decoder(config: ConfigDict, library: str, imported: bool) -> None:
    """Raises ``ValueError`` if a run has no decoder that ``ViTMAEForPreTraining`` can have."""
    model, decoder = config.model, config.decoder
    fades_out = has_momentum_encoder(config) and config.targets.pixel_fade == 1
    reasons = (
        (library != "transformers", f"--format={library} has no network with one"),
        (imported, "weights that were imported come without one"),
        (
            model.encoder_input != "visible",
            f"the run has none (model.encoder_input={model.encoder_input!r})",
        ),
        (
            decoder.kind != "self",
            f"the run's is of a kind that transformers lacks (decoder.kind={decoder.kind!r})",
        ),
        (not predicts_pixels(config), "the run's predicts no pixels"),
        (fades_out, "the run's went on without predicting pixels (targets.pixel_fade=1)"),
        (config.evaluation.encoder != "student", "it is the student's, not the teacher's"),
    )
    for holds, reason in reasons:
        if holds:
            raise ValueError(
                f"--decoder asks for MAE's decoder, but {reason}; without --decoder, the encoder "
                "is exported alone"
            )


def _export_encoder(
    workdir: Workdir, config: ConfigDict, library: str, step: int | None
) -> tuple[ExportedFolder, int]:
    params, step, _ = restore_encoder(workdir, config, make_mesh(**config.mesh), step)
    backbone = backbone_of(build_encoder(config), params, config)
    return (export_timm if library == "timm" else export_transformers)(backbone), step


def _export_mae(
    workdir: Workdir, config: ConfigDict, step: int | None
) -> tuple[ExportedFolder, int]:
    method = build_method(config)
    shapes = jax.eval_shape(lambda key: method.init(key, config.data.channels), jax.random.key(0))
    wanted = {name: shapes[name] for name in ("encoder", "decoder", "head")}
    params, step = restore_params(workdir, wanted, step)
    encoder, decoder = method.encoder, method.student.decoder
    num_values = method.objectives["pixels"].width  # the first ones that the head predicts
    h, w = encoder.grid
    of_decoder = MaeDecoder(
        {
            "decoder": params["decoder"]
            | {"positions": sincos_positions(encoder.grid, decoder.width)},
            "head": jax.tree.map(lambda array: array[..., :num_values], params["head"]),
        },
        decoder.num_heads,
        method.num_masked / (h * w),
        config.targets.normalize_pixels,
    )
    return export_transformers_mae(
        backbone_of(encoder, params["encoder"], config), of_decoder
    ), step


def _read_run(flags: absl_flags.FlagValues) -> tuple[Workdir, ConfigDict]:
    workdir = Workdir(flags.workdir)
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"--workdir={workdir.path} holds no run: there is no {workdir.config.name} in it"
        )
    config = from_plain(stored, workdir.config)
    if config.job != "pretrain":
        raise ValueError(
            f"--workdir={workdir.path} is a run of ddae_jax.{config.job}; what is exported is the "
            "encoder of one of ddae_jax.pretrain"
        )
    for name in ("encoder", "pool"):
        if flags[name].value is not None:
            config.evaluation[name] = flags[name].value
    config.mesh.data, config.mesh.fsdp = -1, 1
    check_config(config)
    return workdir, config


def _free_folder(path: str) -> pathlib.Path:
    """Raises ``FileExistsError`` for what is there already, but for an empty folder."""
    out = pathlib.Path(path).expanduser().absolute()
    if out.is_dir() and not any(out.iterdir()):
        return out
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"--out={path} is there already; give a new or an empty folder")
    return out


@contextlib.contextmanager
def _whole_or_not_at_all(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, beside ``out``, which it becomes if the body ends well."""
    half_written = out.with_name(f".{out.name}.{os.getpid()}")
    half_written.mkdir(parents=True)
    try:
        yield half_written
        os.replace(half_written, out)
    finally:
        shutil.rmtree(half_written, ignore_errors=True)


def _result(exported: ExportedFolder, subject: Subject, out: pathlib.Path) -> dict:
    return {
        "format": subject.library,
        "network": subject.network,
        "encoder": subject.encoder,
        "step": subject.step,
        "parameters": sum(array.size for array in exported.weights.values()),
        "out": str(out),
    }


if __name__ == "__main__":
    exits.run(main)

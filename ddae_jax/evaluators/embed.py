"""The task embed: features of any images, to a file."""

import logging
import pathlib
import time
from collections.abc import Iterator

import jax
from absl import flags as absl_flags

from ddae_jax.builders import build
from ddae_jax.builders.pretrained import restore_encoder
from ddae_jax.data.source_base import Source
from ddae_jax.data.sources import make_source
from ddae_jax.evaluation.embeddings import Embedded, write_embeddings, writes_to
from ddae_jax.evaluation.features import encoded_batches
from ddae_jax.evaluators.run_folder import Run, open_run, where_the_data_is
from ddae_jax.models.vit import SIZES
from ddae_jax.training.display import duration
from ddae_jax.training.multihost import all_or_none

_log = logging.getLogger(__name__)

_TELL_EVERY_S = 10.0


def embed(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Writes the features of each image, its name and its label to ``--out``.

    The images are those in the folder ``--images``, or of a split of the run's data.
    """
    with all_or_none():
        if not flags.out:
            raise ValueError("--out=FILE.npz or --out=FILE.parquet is missing: where features go")
        path = pathlib.Path(flags.out).expanduser().resolve()
        writes_to(path)
        run = open_run(flags.workdir, "workdir", flags)
        source = _source(run, flags)
    config = run.config
    params, step, _ = restore_encoder(run.workdir, config, run.mesh, flags.step)
    depth = config.evaluation.depth or SIZES[config.model.size].depth
    encode = build.build_encode(config, run.mesh, depth=depth, pool=config.evaluation.pool)
    batches = build.build_eval_batches(config, source, run.mesh, flags.limit or None)
    found = encoded_batches(lambda images: encode(params, images), batches, run.mesh)
    count = min(len(source), flags.limit or len(source))
    told = _with_progress(
        (
            Embedded(
                batch["features"], batch["label"], [source.name(int(i)) for i in batch["index"]]
            )
            for batch in found
        ),
        count,
    )
    if jax.process_index() == 0:
        num_images, width = write_embeddings(path, told)
    else:
        num_images, width = sum(len(batch.names) for batch in told), 0
    result = {
        "task": "embed",
        "encoder": config.evaluation.encoder,
        "step": step,
        "depth": depth,
        "pool": config.evaluation.pool,
        "num_images": num_images,
        "num_unreadable": count - num_images,
        "width": width,
        "out": str(path),
    }
    return f"{num_images:,} images, {width} values each: {path}", result


def _source(run: Run, flags: absl_flags.FlagValues) -> Source:
    if flags.images:
        for name in ("split", "data_dir"):
            if flags[name].present:
                raise ValueError(
                    f"--{name} is of the run's data, and --images={flags.images} is another "
                    "folder, all of which is read: give one of the two"
                )
        options = build.decoding(run.config)
        return make_source("folder", data_dir=flags.images, split="", **options)
    split = flags.split or run.config.data.test_split
    return where_the_data_is(build.build_source, run.config, split)


def _with_progress(batches: Iterator[Embedded], count: int) -> Iterator[Embedded]:
    """The batches; how far they are is told now and then, and at the end.

    Images that cannot be read are in no batch: how many these are is known at the end alone.
    """
    began = told = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.names)
        now = time.monotonic()
        if now > told + _TELL_EVERY_S and done:
            told = now
            rate = done / max(now - began, 1e-9)
            left = duration((count - done) / rate)
            _log.info("%s of %s images, %.0f img/s, %s left", f"{done:,}", f"{count:,}", rate, left)
    rate = done / max(time.monotonic() - began, 1e-9)
    end = f"{done:,} of {count:,} images, {count - done:,} unreadable"
    _log.info("%s, %.0f img/s", end, rate)

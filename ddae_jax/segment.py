"""Fine-tunes an encoder to classify every pixel of an image: semantic segmentation.

    python -m ddae_jax.segment --config=configs/camvid_upernet.py --workdir=runs/segmented \\
        --config.init_from=runs/pretrained --config.data.data_dir=FOLDER

``init_from`` is the workdir of a pretraining run, or somebody else's weights. The same command
continues a run that was stopped or killed. docs/segmentation.md has the recipes and what they
reach.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.initialization import begin, start_params
from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.data.joint_augment import Distortion, JointAugmentation
from ddae_jax.data.pair_checks import check_pairs
from ddae_jax.data.segmentation import PairSource, make_pair_source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.finetune import complete, labelled_program, starting_point
from ddae_jax.hooks.segmentation import SegmentationWatch
from ddae_jax.jobs import cli, runner
from ddae_jax.methods.supervised import LabelledTask, segmentation_error
from ddae_jax.models.upernet import Segmenter
from ddae_jax.training.program import Program
from ddae_jax.training.step import Prepare
from ddae_jax.training.workdir import Workdir

NUM_DECODED = 1000
"""Training pairs that are decoded before a run begins, spread evenly; of test pairs, all are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(JOB, argv)


def build_parts(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> runner.Parts:
    """What a segmentation run is made of."""
    train, test = (
        build_pairs(config, split) for split in (config.data.train_split, config.data.test_split)
    )
    build.warn_if_trained_on(config, config.data.test_split, within="images")
    what = f"the {config.data.train_split!r} split"
    check_pairs(train, num_decoded=NUM_DECODED, what=what, must_differ=True)
    check_pairs(test, what=f"the {config.data.test_split!r} split")
    schedule = build.build_schedule(config, len(train))
    program = build_program(config, schedule, runner.Data())
    params = None if workdir.has_checkpoint() else start_params(config)
    return runner.Parts(
        program=program,
        source=train,
        loader=build_loader(config, train),
        schedule=schedule,
        watch=SegmentationWatch(config, workdir, program.method, test, schedule),
        description=describe(config),
        begin=functools.partial(begin, method=program.method, params=params),
    )


def build_program(config: ConfigDict, schedule: build.Schedule, data: runner.Data) -> Program:
    """The step of a segmentation run."""
    return labelled_program(config, schedule, build_task(config), build_prepare(config))


def batch_shapes(config: ConfigDict, data: runner.Data) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch."""
    size = tuple(config.model.image_size)
    annotation = jax.ShapeDtypeStruct((config.batch_size, *size), jnp.uint8)
    return {"image": runner.image_batch(config, size)["image"], "annotation": annotation}


def build_pairs(config: ConfigDict, split: str) -> PairSource:
    """The images of a split, and their annotations."""
    data = config.data
    return make_pair_source(
        data.source,
        num_classes=data.num_classes,
        ignore_label=None if data.ignore_label < 0 else data.ignore_label,
        reduce_zero_label=data.reduce_zero_label,
        name=data.name,
        data_dir=data.data_dir,
        split=split,
        **build.decoding(config),
    )


def build_task(config: ConfigDict) -> LabelledTask:
    """The network that the config describes, and its error."""
    encoder, head = build_encoder(config), config.head
    network = Segmenter(
        encoder,
        num_classes=config.data.num_classes,
        head=head.kind,
        depths=tuple(head.depths) or default_depths(encoder.depth),
        head_width=head.width,
    )
    error = functools.partial(segmentation_error, auxiliary_weight=head.auxiliary_weight)
    return LabelledTask(network, error, keeps_average=config.average.decay > 0)


def default_depths(depth: int) -> tuple[int, ...]:
    """Four depths, a third to all of the blocks: 4, 6, 8, 12 for ViT-B, as in BEiT and MAE.

    Raises ``ValueError`` for an encoder with so few blocks that two of them would be the same.
    """
    depths = tuple(max(1, round(depth * k / 6)) for k in (2, 3, 4, 6))
    if len(set(depths)) < 4:
        raise ValueError(
            f"an encoder of {depth} blocks has no four depths to read out; set head.kind='linear'"
        )
    return depths


def build_loader(config: ConfigDict, source: PairSource) -> TrainLoader:
    """This process's share of the training batches."""
    augment = config.augment
    return TrainLoader(
        source,
        JointAugmentation(
            crop_size=tuple(config.model.image_size),
            base_size=tuple(augment.base_size),
            scale_range=tuple(augment.scale_range),
            max_class_share=augment.max_class_share,
            flip=config.data.flip,
            distortion=Distortion() if augment.distorts_colours else None,
            pad_colour=tuple(round(255 * mean) for mean in config.data.mean),
        ),
        **build.reading_options(config),
    )


def build_prepare(config: ConfigDict) -> Prepare:
    """What the step does to a batch first: normalisation."""
    normalize = build_normalize(config)

    def prepare(key: PRNGKeyArray, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        return normalize(batch["image"]), batch["annotation"].astype(jnp.int32)

    return prepare


def describe(config: ConfigDict) -> str:
    """One line on what is trained."""
    model = config.model
    return (
        f"segmentation into {config.data.num_classes} classes, {config.head.kind} head on a ViT-"
        f"{model.size}/{model.patch_size}, {starting_point(config)}"
    )


JOB = runner.Job("segment", __doc__, build_parts, build_program, batch_shapes, complete)


if __name__ == "__main__":
    cli.run(main)

"""Fine-tunes an encoder to classify every pixel of an image: semantic segmentation.

    python -m ddae_jax.segment --config=configs/camvid_upernet.py \\
        --workdir=runs/segmented --config.init_from=runs/pretrained \\
        --config.data.data_dir=FOLDER

``init_from`` is the workdir of a pretraining run, or somebody else's weights. The same command
continues a run that was stopped or killed. docs/segmentation.md has the recipes and what they
reach.
"""

from ddae_jax.jobs.commands import answer_help

if __name__ == "__main__":
    answer_help("segment", __doc__)  # before the imports below, which take seconds

from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.classification import build_labelled_program
from ddae_jax.builders.data import class_names, warn_if_trained_on
from ddae_jax.builders.initialization import (
    inherit_to_finetune,
    initial_params,
    starting_point,
)
from ddae_jax.builders.pretrained import Pretrained
from ddae_jax.builders.segmentation import (
    build_pair_loader,
    build_pairs,
    build_segment,
    build_segmentation_preprocess,
    build_segmentation_task,
)
from ddae_jax.data.pair_checks import check_pairs
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.hooks.segmentation import SegmentationReport, SegmentationScores
from ddae_jax.jobs import exits, runner
from ddae_jax.jobs.job import DataSpec, Job, Sources, image_batch
from ddae_jax.training.hooks import Hook
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.schedules import Schedule

NUM_DECODED = 1000
"""Training pairs that are decoded before a run begins, spread evenly; of test pairs, all are."""


_USAGE = __doc__


class SegmentJob(Job):
    """The job that fine-tunes a segmenter."""

    name = "segment"
    usage = _USAGE

    @classmethod
    def resolve_config(
        cls, config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str]
    ) -> Pretrained | None:
        """Copies the architecture of the encoder in ``init_from``."""
        return inherit_to_finetune(config, stored, given)

    def sources(self) -> Sources:
        """Opens the pairs of images and annotations to train and to test on."""
        data = self.config.data
        train, test = (
            build_pairs(self.config, split) for split in (data.train_split, data.test_split)
        )
        warn_if_trained_on(self.config, data.test_split, within="images")
        what = f"the {data.train_split!r} split"
        check_pairs(train, num_decoded=NUM_DECODED, what=what, must_differ=True)
        check_pairs(test, what=f"the {data.test_split!r} split")
        return Sources(train, test)

    def program(
        self, schedule: Schedule, data: DataSpec, *, stand_in_missing: bool = False
    ) -> TrainProgram:
        """Builds the step that trains encoder and segmentation head."""
        return build_labelled_program(
            self.config,
            schedule,
            build_segmentation_task(self.config),
            build_segmentation_preprocess(self.config),
        )

    def batch_spec(self, data: DataSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns images and annotations."""
        size = tuple(self.config.model.image_size)
        annotation = jax.ShapeDtypeStruct((self.config.batch_size, *size), jnp.uint8)
        return {"image": image_batch(self.config, size)["image"], "annotation": annotation}

    def loader(self, sources: Sources) -> TrainLoader:
        """Opens the augmented crops of images, with their annotations."""
        return build_pair_loader(self.config, sources.train)

    def hooks(
        self, program: TrainProgram, sources: Sources, schedule: Schedule, mesh: Mesh
    ) -> list[Hook]:
        """Builds mean IoU on the test split, and the report."""
        config, test = self.config, sources.test
        names = class_names(test, config.data.num_classes)
        segment = build_segment(config, program.task)
        every_epochs = config.evaluation.every_epochs
        scores = SegmentationScores(
            schedule.steps(every_epochs) if every_epochs else None, config, segment, test, names
        )
        report = SegmentationReport(
            config,
            self.workdir,
            schedule.total_steps,
            scores,
            segment=segment,
            test=test,
            names=names,
        )
        return [scores, report]

    def initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns the encoder in ``init_from``, unless it is to be learned from scratch."""
        return None if self.config.from_scratch else initial_params(self.config, self.initial)

    def description(self, program: TrainProgram, data: DataSpec) -> str:
        """Returns what is trained, to how many classes, from where."""
        config = self.config
        return (
            f"segmentation into {config.data.num_classes} classes, {config.head.kind} head on a "
            f"ViT-{config.model.size}/{config.model.patch_size}, {starting_point(config)}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(SegmentJob, argv)


if __name__ == "__main__":
    exits.run(main)

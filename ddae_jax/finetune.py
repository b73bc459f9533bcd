"""Fine-tunes an encoder, or a linear probe on it, to classify labelled_subset images.

    python -m ddae_jax.finetune --config=configs/cifar10_finetune.py \\
        --workdir=runs/finetuned --config.init_from=runs/pretrained

``init_from`` is the workdir of a pretraining run, or somebody else's weights. The same command
continues a run that was stopped or killed. docs/finetuning.md has the recipes and what they reach.
"""

from ddae_jax.jobs.commands import answer_help

if __name__ == "__main__":
    answer_help("finetune", __doc__)  # before the imports below, which take seconds

from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.classification import (
    build_classification_preprocess,
    build_classification_task,
    build_count,
    build_crop_transform,
    build_labelled_program,
)
from ddae_jax.builders.data import (
    build_loader,
    build_source,
    checked_test,
    class_names,
    settle_crop_share,
    warn_if_trained_on,
)
from ddae_jax.builders.initialization import (
    inherit_to_finetune,
    initial_params,
    starting_point,
)
from ddae_jax.builders.pretrained import Pretrained
from ddae_jax.data.labels import labelled_subset, with_classes
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.hooks.classification import ClassificationReport, ClassificationScores
from ddae_jax.jobs import exits, runner
from ddae_jax.jobs.job import DataSpec, Job, Sources, image_batch
from ddae_jax.patches import patch_grid
from ddae_jax.training.hooks import Hook
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.schedules import Schedule

_USAGE = __doc__


class FinetuneJob(Job):
    """The job that fine-tunes a classifier."""

    name = "finetune"
    usage = _USAGE

    @classmethod
    def resolve_config(
        cls, config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str]
    ) -> Pretrained | None:
        """Copies the architecture of the encoder in ``init_from``."""
        return inherit_to_finetune(config, stored, given)

    def sources(self) -> Sources:
        """Opens the images to train and to test on, whose classes have the same numbers."""
        config = self.config
        train, test = (
            build_source(config, split)
            for split in (config.data.train_split, config.data.test_split)
        )
        warn_if_trained_on(config, config.data.test_split)
        settle_crop_share(config, train)
        names = self.workdir.read_classes() if self.workdir.has_checkpoint() else None
        if names:
            what = f"the {config.data.train_split!r} split"
            train = with_classes(train, names, len(names), what=what, of="the run so far")
        test = checked_test(train, test, config)
        return Sources(labelled_subset(train, config.data.labelled_share, config.seed), test)

    def program(
        self, schedule: Schedule, data: DataSpec, *, stand_in_missing: bool = False
    ) -> TrainProgram:
        """Builds the step that trains encoder and classifier."""
        return build_labelled_program(
            self.config,
            schedule,
            build_classification_task(self.config, data.num_classes),
            build_classification_preprocess(self.config, data.num_classes),
        )

    def batch_spec(self, data: DataSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns images and labels."""
        return image_batch(self.config, tuple(self.config.model.image_size))

    def loader(self, sources: Sources) -> TrainLoader:
        """Opens the augmented crops of images, with labels."""
        return build_loader(self.config, sources.train, transform=build_crop_transform(self.config))

    def hooks(
        self, program: TrainProgram, sources: Sources, schedule: Schedule, mesh: Mesh
    ) -> list[Hook]:
        """Builds accuracy on the test split, and the report."""
        config, test = self.config, sources.test
        names = class_names(test, test.num_classes)
        every_epochs = config.evaluation.every_epochs
        scores = ClassificationScores(
            schedule.steps(every_epochs) if every_epochs else None,
            config,
            build_count(config, program.task, test.num_classes, mesh),
            test,
            names,
            mesh,
        )
        report = ClassificationReport(
            config, self.workdir, schedule.total_steps, scores, names=names
        )
        return [scores, report]

    def initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns the encoder in ``init_from``, unless it is to be learned from scratch."""
        return None if self.config.from_scratch else initial_params(self.config, self.initial)

    def description(self, program: TrainProgram, data: DataSpec) -> str:
        """Returns what is trained, to how many classes, at which size, from where."""
        config = self.config
        what = "a linear probe on" if config.model.is_frozen else "fine-tuning of"
        size, patch_size = config.model.size, config.model.patch_size
        height, width = config.model.image_size
        h, w = patch_grid((height, width), patch_size)
        return (
            f"{what} a ViT-{size}/{patch_size} to {data.num_classes} classes, at {height} x "
            f"{width} pixels ({h} x {w} patches), {starting_point(config)}"
        )

    def class_names(self, sources: Sources) -> tuple[str, ...] | None:
        """Returns the names of the training images' classes."""
        return sources.train.class_names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(FinetuneJob, argv)


if __name__ == "__main__":
    exits.run(main)

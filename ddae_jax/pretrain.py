"""Pretrains an encoder without labels.

    python -m ddae_jax.pretrain --config=configs/digits.py --workdir=runs/digits

The same command continues a run that was stopped or killed. ``--config.KEY=VALUE`` changes a key of
the config; with ``--config.init_from`` the encoder goes on from another run, or from published
weights. docs/method.md says what is learned; the README, what lies in the workdir afterwards.
"""

from ddae_jax.jobs.commands import answer_help

if __name__ == "__main__":
    answer_help("pretrain", __doc__)  # before the imports below, which take seconds

from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.data import (
    build_loader,
    build_preprocess,
    build_source,
    settle_crop_share,
)
from ddae_jax.builders.initialization import (
    inherit_architecture,
    initial_decoder,
    initial_params,
)
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.optimization import build_learning_rate, build_momentum, build_optimizer
from ddae_jax.builders.pretrained import Pretrained
from ddae_jax.config.pretraining import check_images_of_statistics
from ddae_jax.config.recipes import recipe_differences
from ddae_jax.config.schema import flatten
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.hooks.codebook import CodebookWarning
from ddae_jax.hooks.collapse import FeatureCollapseWarning, FeatureStatistics
from ddae_jax.hooks.knn import KnnHook
from ddae_jax.hooks.pretraining import PretrainingReport
from ddae_jax.jobs import exits, runner
from ddae_jax.jobs.job import DataSpec, Job, Sources, image_batch
from ddae_jax.methods import METHODS
from ddae_jax.methods.method import Method
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.hooks import Hook
from ddae_jax.training.program import TrainProgram, TrainState
from ddae_jax.training.schedules import Schedule

_USAGE = __doc__


class PretrainJob(Job):
    """The job that pretrains an encoder, or a tokenizer for others."""

    name = "pretrain"
    usage = _USAGE

    @classmethod
    def resolve_config(
        cls, config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str]
    ) -> Pretrained | None:
        """Copies the architecture of the encoder in ``init_from``."""
        return inherit_architecture(config, stored, given)

    def sources(self) -> Sources:
        """Opens the images to train on."""
        config = self.config
        train = build_source(config, config.data.train_split)  # may take long
        check_images_of_statistics(config, len(train))
        settle_crop_share(config, train)
        return Sources(train)

    def program(
        self, schedule: Schedule, data: DataSpec, *, stand_in_missing: bool = False
    ) -> TrainProgram:
        """Builds the step that trains the method."""
        config = self.config
        learning_rate = build_learning_rate(config, schedule)
        return TrainProgram(
            task=build_method(config, stand_in_missing=stand_in_missing),
            preprocess=build_preprocess(config),
            optimizer=build_optimizer(config, learning_rate, schedule),
            learning_rate=learning_rate,
            momentum=build_momentum(config, schedule),
            channels=config.data.channels,
            seed=config.seed,
            micro_batches=config.optimizer.micro_batches,
            max_skipped=config.optimizer.skip_nonfinite,
            total_steps=schedule.total_steps,
        )

    def batch_spec(self, data: DataSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns images, and labels, which are not looked at."""
        is_on_device = self.config.data.augment_in == "device"
        size = data.image_size if is_on_device else self.config.model.image_size
        return image_batch(self.config, tuple(size))

    def loader(self, sources: Sources) -> TrainLoader:
        """Opens the augmented crops of images."""
        return build_loader(self.config, sources.train)

    def hooks(
        self, program: TrainProgram, sources: Sources, schedule: Schedule, mesh: Mesh
    ) -> list[Hook]:
        """Builds statistics of features, k-NN, the report, and warnings of collapse."""
        config, method, workdir = self.config, program.task, self.workdir
        hooks: list[Hook] = []
        warnings: list[Hook] = [
            CodebookWarning(config.tokenizer.min_perplexity_share * config.tokenizer.num_codes)
        ]
        if config.evaluation.knn_every_epochs:
            steps = schedule.steps(config.evaluation.knn_every_epochs)
            hooks.append(KnnHook(config, workdir, steps, mesh))
        figures_every = config.log.figures_every_epochs
        report = PretrainingReport(
            config,
            workdir,
            schedule.total_steps,
            schedule.steps(figures_every) if figures_every else None,
            method=method,
            source=sources.train,
            mesh=mesh,
        )
        if isinstance(method, Method):  # of a tokenizer, it is the codebook that may collapse
            statistics = FeatureStatistics(config, method, sources.train, mesh)
            hooks.insert(0, statistics)
            if jax.process_index() == 0:  # which has the records
                warnings.append(_collapse_warning(config, workdir, method, statistics))
        return [*hooks, report, *warnings]

    def initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns the encoder in ``init_from``, with its decoder if that is asked for."""
        encoder = initial_params(self.config, self.initial)
        if encoder is None:
            return None
        return encoder | initial_decoder(self.config, program.task)

    def description(self, program: TrainProgram, data: DataSpec) -> str:
        """Returns the method, its teacher if it has one, and what it learns."""
        is_masked = METHODS[self.config.method].kind == "masked"
        of_teacher = "" if is_masked else f" of {self.config.tokenizer.teacher}"
        return f"{self.config.method}: {program.task.description}{of_teacher}"

    def warnings(self, program: TrainProgram) -> list[str]:
        """Warns of a method that is not the published one, and of more codes than patches."""
        config = self.config
        lines = []
        differences = recipe_differences(config)
        if differences:
            lines.append(
                f"this is not {config.method} as published: {'; '.join(differences)}. "
                f"--config=configs/folder.py:{config.method}, or another of configs/ with such an "
                "ending, sets them"
            )
        h, w = program.task.encoder.grid
        num_patches = config.batch_size * h * w
        is_tokenizer = METHODS[config.method].kind == "tokenizer"
        if is_tokenizer and config.tokenizer.num_codes > num_patches:
            lines.append(
                f"tokenizer.num_codes={config.tokenizer.num_codes} are more than the "
                f"{num_patches:,} patches of a batch: most codes will have none; lower it, or "
                "raise batch_size"
            )
        return lines

    def check_continues(self, program: TrainProgram, state: TrainState) -> None:
        """Raises ``CheckpointError`` if tokenizer or teacher is not that of the run so far."""

        @jax.jit
        def is_same(ours: PyTree, given: PyTree) -> Array:
            equal = jax.tree.map(lambda a, b: (a == b).all(), ours, given)
            return jnp.all(jnp.asarray(jax.tree.leaves(equal)))

        ours = program.task.frozen_part(state.teacher)
        if jax.tree.leaves(ours) and not is_same(ours, program.task.frozen):
            key = METHODS[self.config.method].trained_network_key
            raise CheckpointError(
                f"{key}={flatten(self.config)[key]!r} is not what this run started with; give "
                "that, or another --workdir"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(PretrainJob, argv)


def _collapse_warning(config, workdir, method, statistics) -> FeatureCollapseWarning:
    targets = config.targets
    return FeatureCollapseWarning(
        workdir.metrics,
        most_rank=min(method.encoder.width, statistics.num_images - 1),
        learned_from=targets.feature_start if targets.pixel_weight else 0.0,
        normalization=targets.feature_normalization,
    )


if __name__ == "__main__":
    exits.run(main)

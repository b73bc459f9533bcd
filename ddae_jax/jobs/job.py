"""The base class of jobs: the parts of a training command, built from its config."""

import abc
import logging
from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.data.batches import batches_per_epoch
from ddae_jax.data.sources import Source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.training.hooks import Hook
from ddae_jax.training.program import TrainProgram, TrainState
from ddae_jax.training.schedules import MAX_STEPS, Schedule, steps_of
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)


class Sources(NamedTuple):
    """The images of a run: to train on, and to test on if the run needs them."""

    train: Source
    test: Source | None = None


class DataSpec(NamedTuple):
    """The facts about the data that a program is built from, without the data itself.

    Attributes:
        num_classes: number of classes; None if there are no labels.
        image_size: ``(height, width)`` of the stored images, which a program needs that augments
            them on the device; else None is enough.
    """

    num_classes: int | None = None
    image_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, sources: Sources) -> "DataSpec":
        """Returns the spec of the training source."""
        return cls(sources.train.num_classes, sources.train.image_size)


class Job(abc.ABC):
    """Base class of the training commands; each object is one run.

    What all training commands have in common is in :mod:`ddae_jax.jobs.runner`.

    Args:
        config: of the run, resolved by :meth:`resolve_config`.
        workdir: of the run; None if the step is only compiled.
        initial: the pretrained network that :meth:`resolve_config` returned, or None.
    """

    name: ClassVar[str]
    """Name of the command, ``python -m ddae_jax.NAME``, and the ``job`` of its configs."""

    usage: ClassVar[str]
    """Description of the command, for ``--help``."""

    def __init__(self, config: ConfigDict, workdir: Workdir | None = None, initial: Any = None):
        self.config = config
        self.workdir = workdir
        self.initial = initial

    @classmethod
    @abc.abstractmethod
    def resolve_config(
        cls, config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str]
    ) -> Any:
        """Fills in keys whose values come from another run, such as a pretrained encoder's.

        Args:
            config: of the run; is changed in place.
            stored: the stored config of a continued run; None for a new one.
            given: keys that the command line sets.

        Returns:
            The pretrained network to begin with, if one was loaded; else None.
        """

    @abc.abstractmethod
    def sources(self) -> Sources:
        """Opens the images; raises ``ValueError`` or ``OSError`` if they cannot be used."""

    @abc.abstractmethod
    def program(
        self, schedule: Schedule, data: DataSpec, *, stand_in_missing: bool = False
    ) -> TrainProgram:
        """Builds the training step and its state, without reading any data.

        Args:
            schedule: of the run.
            data: facts about the images.
            stand_in_missing: whether a missing trained network may be replaced by its shapes, which
                are enough to compile.
        """

    @abc.abstractmethod
    def batch_spec(self, data: DataSpec) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global batch, of all processes together."""

    @abc.abstractmethod
    def loader(self, sources: Sources) -> TrainLoader:
        """Opens the loader of this process's share of the batches."""

    @abc.abstractmethod
    def hooks(
        self, program: TrainProgram, sources: Sources, schedule: Schedule, mesh: Mesh
    ) -> Sequence[Hook]:
        """Builds the hooks, in the order in which they are called."""

    @abc.abstractmethod
    def initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns pretrained parameters that a new run begins with; None to train from scratch.

        Raises ``ValueError`` if they do not fit.
        """

    def take_initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns :meth:`initial_params`, and frees the pretrained network."""
        params, self.initial = self.initial_params(program), None
        return params

    def schedule(self, num_images: int) -> Schedule:
        """Returns the schedule of a run on ``num_images``; see :func:`make_schedule`."""
        return make_schedule(self.config, num_images)

    @abc.abstractmethod
    def description(self, program: TrainProgram, data: DataSpec) -> str:
        """Returns one line that describes what is trained, for the log."""

    def warnings(self, program: TrainProgram) -> Sequence[str]:
        """Returns warnings of settings that may be unintended, one line each."""
        return ()

    def check_continues(self, program: TrainProgram, state: TrainState) -> None:
        """Raises ``CheckpointError`` if the state of a checkpoint cannot be continued."""
        return None

    def class_names(self, sources: Sources) -> tuple[str, ...] | None:
        """Returns the names of the learned classes; None if there are none."""
        return None


def image_batch(config: ConfigDict, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a batch of labelled images of ``(height, width)`` pixels."""
    shape = (config.batch_size, *size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }


def make_schedule(config: ConfigDict, num_images: int) -> Schedule:
    """Makes the schedule of a run on ``num_images``; warns if a batch has more images than that.

    Raises ``ValueError`` for more than :data:`ddae_jax.training.schedules.MAX_STEPS` steps.
    """
    steps_per_epoch = batches_per_epoch(num_images, config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise ValueError(
            f"epochs={config.epochs:g} of {steps_per_epoch} steps are {total_steps:g} steps; a run "
            f"has at most {MAX_STEPS}, here epochs={MAX_STEPS // steps_per_epoch}"
        )
    if config.batch_size > num_images:
        _log.warning(
            "batch_size=%d is more than the %d images to train on: a batch repeats them, and "
            "counts as an epoch",
            config.batch_size,
            num_images,
        )
    return Schedule(
        steps_per_epoch,
        max(1, round(total_steps)),
        batch_size=config.batch_size,
        log_every_steps=config.log.every_steps,
        save_every_steps=steps_of(config.checkpoint.every_epochs, steps_per_epoch),
    )

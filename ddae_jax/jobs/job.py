"""The job: what a command that trains is made of, from its config."""

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
    """The images of a run: those to train on, and those to test on, if it needs them."""

    train: Source
    test: Source | None = None


class DataSpec(NamedTuple):
    """What a program has to know of the data, which need not be there.

    Attributes:
        num_classes: classes of the labels, where they are learned.
        image_size: ``(height, width)`` of the images as they are stored, where they are augmented
            on the device.
    """

    num_classes: int | None = None
    image_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, sources: Sources) -> "DataSpec":
        """Returns what the sources tell."""
        return cls(sources.train.num_classes, sources.train.image_size)


class Job(abc.ABC):
    """A base class of the commands that train; one object is one run.

    Everything that is the same for all of them stands in :mod:`ddae_jax.jobs.runner`.

    Args:
        config: of the run, resolved by :meth:`resolve_config`.
        workdir: of the run; None where there is none, as the step is compiled alone.
        initial: what :meth:`resolve_config` loaded.
    """

    name: ClassVar[str]
    """``python -m ddae_jax.NAME``, and the ``job`` of its configs."""

    usage: ClassVar[str]
    """What the command does, for ``--help``."""

    def __init__(self, config: ConfigDict, workdir: Workdir | None = None, initial: Any = None):
        self.config = config
        self.workdir = workdir
        self.initial = initial

    @classmethod
    @abc.abstractmethod
    def resolve_config(
        cls, config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str]
    ) -> Any:
        """Fills in what a config leaves to what it names, such as a pretrained encoder.

        Args:
            config: of the run; is changed in place.
            stored: the config of a run that is continued, else None.
            given: keys that the command line sets.

        Returns:
            The pretrained network, if one was loaded, to begin with.
        """

    @abc.abstractmethod
    def sources(self) -> Sources:
        """Opens the images. Raises ``ValueError`` or ``OSError`` for those that do not do."""

    @abc.abstractmethod
    def program(
        self, schedule: Schedule, data: DataSpec, *, stand_in_missing: bool = False
    ) -> TrainProgram:
        """Builds the step, alone.

        Args:
            schedule: of the run.
            data: what the step has to know of the images.
            stand_in_missing: whether the shapes of a trained network that is not there are enough,
                as they are to compile with.
        """

    @abc.abstractmethod
    def batch_spec(self, data: DataSpec) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of a batch, of all processes together."""

    @abc.abstractmethod
    def loader(self, sources: Sources) -> TrainLoader:
        """Opens this process's share of the batches."""

    @abc.abstractmethod
    def hooks(
        self, program: TrainProgram, sources: Sources, schedule: Schedule, mesh: Mesh
    ) -> Sequence[Hook]:
        """Builds what happens beside training, in this order."""

    @abc.abstractmethod
    def initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns the parameters that a new run begins with; None for fresh ones.

        Raises ``ValueError`` if they do not fit.
        """

    def take_initial_params(self, program: TrainProgram) -> PyTree | None:
        """Returns :meth:`initial_params`, and lets go of what was loaded."""
        params, self.initial = self.initial_params(program), None
        return params

    def schedule(self, num_images: int) -> Schedule:
        """Returns the schedule of a run on so many images; ``ValueError`` if it is too long."""
        return make_schedule(self.config, num_images)

    @abc.abstractmethod
    def description(self, program: TrainProgram, data: DataSpec) -> str:
        """Returns one line on what is trained."""

    def warnings(self, program: TrainProgram) -> Sequence[str]:
        """Returns a line each on what may not be meant."""
        return ()

    def check_continues(self, program: TrainProgram, state: TrainState) -> None:
        """Raises ``CheckpointError`` if the state of a checkpoint cannot be continued."""
        return None

    def class_names(self, sources: Sources) -> tuple[str, ...] | None:
        """Returns the names of the classes that are learned; None if they have none."""
        return None


def image_batch(config: ConfigDict, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the arrays of a batch of labelled images of a size, pixels."""
    shape = (config.batch_size, *size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }


def make_schedule(config: ConfigDict, num_images: int) -> Schedule:
    """Makes the schedule of a run on so many images; warns if a batch is larger.

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

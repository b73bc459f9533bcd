"""The interface of everything that a training run can train."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, PyTree

from ddae_jax.models.vit import ViT

Images = Float[ArrayLike, "batch height width channels"]
Mask = Bool[ArrayLike, "batch patches"]
Predictions = Mapping[str, Num[Array, "_ batch _ ..."]]
"""Arrays by objective, ``(depths, batch, patches, *values)``; targets may have a single depth."""


class TrainTask(Protocol):
    """Interface between a training run and what it trains, such as a method or a tokenizer.

    A task's "teacher" is the state that is not updated by gradients: a momentum encoder, a frozen
    network, a codebook, running statistics.

    Attributes:
        encoder: the encoder that is trained; its parameters are ``params["encoder"]``.
        frozen: the part of the teacher that no step changes; targets are computed with it.
        has_momentum_encoder: whether the teacher is a momentum encoder, that is, has the parameters
            of ``encoder``.
        description: a one-line description of what is trained.
        objectives: names of what is predicted at each of ``depths``; empty if nothing is.
        depths: supervised depths; empty if there are none.
    """

    frozen: PyTree
    objectives: Collection[str]

    @property
    def depths(self) -> tuple[int, ...]: ...

    @property
    def encoder(self) -> ViT: ...

    @property
    def has_momentum_encoder(self) -> bool: ...

    @property
    def description(self) -> str: ...

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Returns newly initialised float32 parameters."""

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """Returns the teacher at the start of a run, for a student with these parameters.

        ``frozen`` replaces the attribute of that name. Pass it as an argument of a jitted function,
        so that the frozen parameters are not compiled into the program as constants.
        """

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """Returns the part of a teacher that no step changes, with the structure of ``frozen``."""

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        images: Images,
        key: PRNGKeyArray,
        is_training: bool = True,
        progress: Float[Array, ""] | float | None = None,
    ) -> tuple[Float[Array, ""], Any]:
        """Returns the loss of a batch of normalised images, and an output.

        The output is what :meth:`descent`, :meth:`update_teacher` and :meth:`metrics` are given.
        ``progress`` is the share of the run that is done, for losses that change over a run. What
        :meth:`sample_masks` and :meth:`statistics` return can be passed as keyword arguments.
        """

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> Mapping[str, Array]:
        """Samples the masks of a whole batch, as :meth:`loss` does with this key.

        Passed to ``loss``, they replace its own: micro-batching thus keeps each image's mask. The
        first axis of each array is the batch. Stochastic depth is not included.
        """

    def statistics(self, teacher: PyTree, inputs: PyTree) -> Mapping[str, Array]:
        """Returns statistics of a batch on which the loss of each image depends; {} for none.

        With micro-batching, they are computed for each equal part of the batch, and :meth:`loss` of
        one part is given those of all parts, along a new first axis.
        """

    def descent(self, gradient: PyTree, output: Any) -> PyTree:
        """Returns the gradient for the optimizer, from the loss's gradient and a step's output."""

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: Any, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """Returns the teacher after a step, given the student's new parameters."""

    def metrics(self, output: Any) -> dict[str, Float[Array, ""]]:
        """Returns the components of a step's output under readable names."""

    def visualize(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns the arrays that figures show, by name."""

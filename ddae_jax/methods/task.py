"""What a run needs of whatever it trains."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, PyTree

from ddae_jax.models.vit import ViT

Images = Float[ArrayLike, "batch height width channels"]
Mask = Bool[ArrayLike, "batch patches"]
Predictions = Mapping[str, Num[Array, "_ batch _ ..."]]
"""By objective, of shape ``(depths, batch, patches, *values)``; targets may have a single depth."""


class TrainTask(Protocol):
    """What a run needs of whatever it trains: a method, or a tokenizer.

    Attributes:
        encoder: that is trained; its parameters are ``params["encoder"]``.
        frozen: parameters that targets are made with and no step changes; part of the teacher.
        has_momentum_encoder: whether the teacher is one (parameters of ``encoder``).
        description: one line on what is trained.
        objectives: names of what is predicted at each of ``depths``, if that is supervised.
        depths: supervised depths, if any.
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
        """Fresh parameters, float32."""

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """What no gradient moves, where the student starts with these parameters.

        ``frozen`` stands for the attribute, where that must not become a constant of a program.
        """

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """The part of a teacher that is as ``frozen``."""

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        images: Images,
        key: PRNGKeyArray,
        is_training: bool = True,
        progress: Float[Array, ""] | float | None = None,
    ) -> tuple[Float[Array, ""], Any]:
        """Loss of a batch of normalised images, and its output, for the two below.

        ``progress`` is the share of the run that is done, which those need whose loss changes over
        it. Further arguments are what :meth:`sample_masks`
        and :meth:`statistics` give, by name.
        """

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> Mapping[str, Array]:
        """What ``loss`` draws for each image of a batch with this key, the first axis the batch.

        Given to ``loss``, it takes the place of what that would draw: so the parts of a batch can
        have what the whole has. Stochastic depth is no part of it.
        """

    def statistics(self, teacher: PyTree, inputs: PyTree) -> Mapping[str, Array]:
        """What ``loss`` depends on beyond an image and its own part of the batch; else empty.

        A loss that is given a part of a batch is given this of all its equal parts, along a new
        first axis.
        """

    def descent(self, gradient: PyTree, output: Any) -> PyTree:
        """What the optimizer is given of a step's gradient and output, those of all its parts."""

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: Any, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """The teacher after a step that led to these parameters."""

    def metrics(self, output: Any) -> dict[str, Float[Array, ""]]:
        """What a step's output is made of, under readable names."""

    def visualize(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """What people look at, for the figures."""

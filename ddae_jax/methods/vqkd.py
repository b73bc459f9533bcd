"""VQ-KD: training of BEiT v2's tokenizer, and the trained tokenizer as methods use it."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ddae_jax.methods.spec import Keys, MethodSpec
from ddae_jax.methods.task import Images
from ddae_jax.models.codebook import (
    Codebook,
    empty_codebook,
    nearest_codes,
    perplexity,
    start_codebook,
    unit_vectors,
    update_codebook,
)
from ddae_jax.models.tokenizer import Tokenizer, make_tokenizer
from ddae_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A trained tokenizer, as methods use it.

    Attributes:
        module: the network.
        frozen: its parameters ``params`` and its ``codes``.
        adapt: converts images from the model's normalisation to the tokenizer's.
    """

    module: Tokenizer
    frozen: PyTree
    adapt: Callable[[Images], Images] = lambda images: images

    @property
    def num_codes(self) -> int:
        """The number of codes."""
        return self.frozen["codes"].shape[0]

    def tokens(self, frozen: PyTree, images: Images) -> Int[Array, "batch patches"]:
        """Returns the index of each patch's code; ``frozen`` is used instead of the attribute."""
        variables, codes = {"params": frozen["params"]}, frozen["codes"]
        return self.module.apply(variables, self.adapt(images), codes, method="tokens")


@dataclasses.dataclass(frozen=True)
class DistilledTeacher:
    """The encoder whose features are predicted from a tokenizer's codes.

    Attributes:
        module: the network.
        params: its parameters.
        adapt: converts images from the tokenizer's normalisation to this encoder's.
    """

    module: ViT
    params: PyTree
    adapt: Callable[[Images], Images] = lambda images: images


@flax.struct.dataclass
class VqKdOutput:
    """The outcome of a step of :class:`VqKd`.

    Attributes:
        codebook: the codebook after the step.
        share: for each code, the share of the batch's patches to which it is nearest.
        feature_loss: mean of 1 - cosine of predicted and true features.
        commitment_loss: mean squared difference of vectors and their codes.
    """

    codebook: Codebook
    share: Float[Array, " codes"]
    feature_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class VqKd:
    """Vector-quantised knowledge distillation (a :class:`ddae_jax.methods.task.TrainTask`).

    Each patch of an image is encoded as a unit vector, which is replaced by the nearest code. From
    the codes, a decoder predicts the teacher's features of the patches. The gradient of the vectors
    is taken to be that of the codes (straight through), and a second loss draws vectors to their
    codes. The codes are initialised by k-means of the first batch, follow the vectors by moving
    averages, and are replaced if they fall out of use.

    Attributes:
        tokenizer: the trained network.
        teacher: the encoder to be distilled; has the same grid of patches.
        num_codes: number of codes in the codebook.
        decay: decay of the codebook's moving averages.
        commitment: weight of the loss that draws vectors to their codes.
        revive_below: see :func:`ddae_jax.models.codebook.update_codebook`.

    Raises:
        ValueError: if the teacher's image size or grid of patches is not the tokenizer's.

    Source: Peng et al. 2022, BEiT v2, section 3.1, equations 1 to 3. Equation 3 sums squared
    differences over a vector; this class, like the authors' code, takes their mean.
    """

    tokenizer: Tokenizer
    teacher: DistilledTeacher
    num_codes: int = 8192
    decay: float = 0.99
    commitment: float = 1.0
    revive_below: float = 0.1

    has_momentum_encoder = False
    objectives = ()
    depths = ()

    def __post_init__(self):
        encoder, teacher = self.encoder, self.teacher.module
        if encoder.grid != teacher.grid or encoder.image_size != teacher.image_size:
            raise ValueError(
                f"the teacher sees images of {teacher.image_size} pixels as {teacher.grid} "
                f"patches, the tokenizer {encoder.image_size} as {encoder.grid}: each patch needs "
                "one feature. Set model.image_size and model.patch_size to the teacher's, or "
                "choose another one"
            )

    @property
    def encoder(self) -> ViT:
        """The tokenizer's encoder."""
        return self.tokenizer.encoder

    @property
    def frozen(self) -> PyTree:
        """The teacher's parameters."""
        return self.teacher.params

    @property
    def description(self) -> str:
        """A one-line description of what is trained."""
        h, w = self.encoder.grid
        return (
            f"a tokenizer of {h * w} patches ({h} x {w}) with {self.num_codes} codes of width "
            f"{self.tokenizer.code_width}, from features of width {self.tokenizer.teacher_width}"
        )

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Returns newly initialised float32 parameters of the tokenizer."""
        return self.tokenizer.init(key, jnp.zeros((1, *self.encoder.image_size, channels)))[
            "params"
        ]

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """Returns an uninitialised codebook and the distilled teacher's parameters."""
        return {
            "codebook": empty_codebook(self.num_codes, self.tokenizer.code_width),
            "encoder": self.frozen if frozen is None else frozen,
        }

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """Returns the distilled teacher's parameters."""
        return teacher["encoder"]

    def descent(self, gradient: PyTree, output: VqKdOutput) -> PyTree:
        """Returns the gradient as it is."""
        return gradient

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: VqKdOutput, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """Returns the codebook after the step, and the distilled teacher's unchanged parameters."""
        return teacher | {"codebook": output.codebook}

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        images: Images,
        key: PRNGKeyArray,
        is_training: bool = True,
        progress: Float[Array, ""] | float | None = None,
    ) -> tuple[Float[Array, ""], VqKdOutput]:
        """Returns ``mean(1 - cos(predicted, true)) + commitment * mean((vector - code)^2)``."""
        start_key, drop_path_key, revive_key = jax.random.split(key, 3)
        apply, variables = self.tokenizer.apply, {"params": params}
        vectors = apply(
            variables, images, is_training, method="encode", rngs={"drop_path": drop_path_key}
        )
        flat = jax.lax.stop_gradient(vectors.reshape(-1, vectors.shape[-1]))
        codebook = jax.lax.cond(
            teacher["codebook"].usage.sum() > 0,
            lambda: teacher["codebook"],
            lambda: start_codebook(start_key, flat, self.num_codes),
        )
        indices = nearest_codes(flat, codebook.codes)
        codes = jax.lax.stop_gradient(codebook.codes[indices].reshape(vectors.shape))
        straight_through = vectors + jax.lax.stop_gradient(codes - vectors)
        predicted = unit_vectors(apply(variables, straight_through, method="decode"))
        features = self.teacher.module.apply(
            {"params": teacher["encoder"]}, self.teacher.adapt(images)
        )
        targets = jax.lax.stop_gradient(unit_vectors(features.patches[0]))
        feature_loss = 1 - (predicted * targets).sum(axis=-1).mean()
        commitment_loss = jnp.square(vectors - codes).mean()
        updated = update_codebook(
            revive_key, codebook, flat, indices, self.decay, self.revive_below
        )
        share = jnp.zeros(self.num_codes).at[indices].add(1 / indices.size)
        output = VqKdOutput(updated, share, feature_loss, commitment_loss)
        return feature_loss + self.commitment * commitment_loss, output

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Array]:
        """Returns {}: nothing is masked."""
        return {}

    def statistics(self, teacher: PyTree, inputs: PyTree) -> dict[str, Array]:
        """Returns {}: nothing is needed beyond the batch, which has a single part."""
        return {}

    def metrics(self, output: VqKdOutput) -> dict[str, Float[Array, ""]]:
        """Returns both losses, and how much of the codebook the batch uses.

        ``codebook/used`` is the share of codes that some patch has. ``codebook/perplexity`` is the
        number of equally used codes that would have the same entropy.
        """
        return {
            "loss/features": output.feature_loss,
            "loss/commitment": output.commitment_loss,
            "codebook/used": (output.share > 0).mean(),
            "codebook/perplexity": perplexity(output.share),
        }

    def visualize(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``tokens`` (batch, patches), the ``codes``, and their ``usage``."""
        codebook = teacher["codebook"]
        tokens = self.tokenizer.apply({"params": params}, images, codebook.codes, method="tokens")
        return {"tokens": tokens, "codes": codebook.codes, "usage": codebook.usage}


def vqkd(
    encoder: ViT,
    decoder: None,
    *,
    teacher: DistilledTeacher,
    num_codes: int = 8192,
    code_width: int = 32,
    decoder_depth: int = 3,
    decay: float = 0.99,
    commitment: float = 1.0,
    revive_below: float = 0.1,
) -> VqKd:
    """Builds a tokenizer around an encoder, to be trained by VQ-KD.

    Args:
        encoder: the tokenizer's encoder, which sees all patches.
        decoder: None, since nothing is hidden.
        teacher: the encoder whose features are predicted from the codes.
        code_width: number of values in a code.
        decoder_depth: number of blocks in the tokenizer's decoder.
        num_codes, decay, commitment, revive_below: see :class:`VqKd`.

    Raises:
        ValueError: see :class:`VqKd`.
    """
    tokenizer = make_tokenizer(encoder, decoder_depth, code_width, teacher.module.width)
    return VqKd(tokenizer, teacher, num_codes, decay, commitment, revive_below)


def _check(keys: Keys) -> None:
    """Raises ``ValueError`` if there is no teacher, or if batches are split into parts."""
    if not keys["tokenizer.teacher"]:
        raise ValueError(
            "method='vqkd' learns from a teacher: give the workdir of an earlier run, or a folder "
            "with model.safetensors, as tokenizer.teacher"
        )
    if keys["optimizer.micro_batches"] > 1:
        raise ValueError(
            f"optimizer.micro_batches={keys['optimizer.micro_batches']}: method='vqkd' moves its "
            "codes by whole batches; set it to 1, and use model.rematerialization='full' to save "
            "memory"
        )


SPEC = MethodSpec(
    name="vqkd",
    summary="a tokenizer for beit and beit2, from features of a given teacher",
    build=vqkd,
    papers=(
        "Peng, Dong, Bao, Ye, Wei 2022. *BEiT v2: Masked Image Modeling with Vector-Quantized "
        "Visual Tokenizers*. arXiv:2208.06366",
    ),
    recipe={"model.encoder_input": "full"},
    kind="tokenizer",
    encoder_input="full",
    check=_check,
)

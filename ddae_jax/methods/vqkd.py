"""VQ-KD: how the tokenizer of BEiT v2 is trained, and what is left of it to be used."""

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
    """A tokenizer as methods use it.

    Attributes:
        module: the network.
        frozen: its parameters ``params`` and its ``codes``.
        adapt: images as the model has them to images as the tokenizer had them (other statistics).
    """

    module: Tokenizer
    frozen: PyTree
    adapt: Callable[[Images], Images] = lambda images: images

    @property
    def num_codes(self) -> int:
        """Codes to tell apart."""
        return self.frozen["codes"].shape[0]

    def tokens(self, frozen: PyTree, images: Images) -> Int[Array, "batch patches"]:
        """The index of each patch's code. ``frozen`` is as the attribute."""
        of_tokenizer, codes = {"params": frozen["params"]}, frozen["codes"]
        return self.module.apply(of_tokenizer, self.adapt(images), codes, method="tokens")


@dataclasses.dataclass(frozen=True)
class DistilledTeacher:
    """The encoder whose features a tokenizer learns to tell from its codes.

    Attributes:
        module: the network.
        params: its parameters.
        adapt: images as the tokenizer has them to images as this encoder had them.
    """

    module: ViT
    params: PyTree
    adapt: Callable[[Images], Images] = lambda images: images


@flax.struct.dataclass
class VqKdOutput:
    """What a step of :class:`VqKd` comes to.

    Attributes:
        codebook: after the step.
        share: of the batch's patches that each code is nearest to.
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

    Each patch of an image is encoded as a unit vector and replaced by its nearest code; from the
    codes a decoder predicts the features that the teacher has of the patches. The gradient passes
    the replacement as if it were none (straight through), and the vectors are drawn to their codes.
    The codes start by k-means of the first batch, follow by moving averages, and are revived where
    they fall out of use.

    Attributes:
        tokenizer: the trained network.
        teacher: to be distilled; has the same grid of patches.
        num_codes: of the codebook.
        decay: of the codebook's moving averages.
        commitment: weight of the loss that draws vectors to their codes.
        revive_below: see :func:`ddae_jax.models.codebook.update_codebook`.

    Raises:
        ValueError: if the teacher sees other images or patches than the tokenizer.

    Source: Peng et al. 2022, BEiT v2, section 3.1, equations 1 to 3; where the third sums squared
    differences over a vector, here, as in the authors' code, is their mean.
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
        ours, theirs = self.encoder, self.teacher.module
        if ours.grid != theirs.grid or ours.image_size != theirs.image_size:
            raise ValueError(
                f"the teacher sees images of {theirs.image_size} pixels as {theirs.grid} patches, "
                f"the tokenizer {ours.image_size} as {ours.grid}: each patch needs one feature. "
                "Set model.image_size and model.patch_size to the teacher's, or choose another one"
            )

    @property
    def encoder(self) -> ViT:
        """The tokenizer's."""
        return self.tokenizer.encoder

    @property
    def frozen(self) -> PyTree:
        """The teacher's parameters."""
        return self.teacher.params

    @property
    def description(self) -> str:
        """One line on what is trained."""
        h, w = self.encoder.grid
        return (
            f"a tokenizer of {h * w} patches ({h} x {w}) with {self.num_codes} codes of width "
            f"{self.tokenizer.code_width}, from features of width {self.tokenizer.teacher_width}"
        )

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Fresh parameters of the tokenizer, float32."""
        return self.tokenizer.init(key, jnp.zeros((1, *self.encoder.image_size, channels)))[
            "params"
        ]

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """A codebook that has not started, and the teacher's parameters."""
        return {
            "codebook": empty_codebook(self.num_codes, self.tokenizer.code_width),
            "encoder": self.frozen if frozen is None else frozen,
        }

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """The distilled teacher's parameters."""
        return teacher["encoder"]

    def descent(self, gradient: PyTree, output: VqKdOutput) -> PyTree:
        """The gradient."""
        return gradient

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: VqKdOutput, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """The codebook after the step, and the teacher as it was."""
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
        """``mean(1 - cos(predicted, true)) + commitment * mean((vector - code)^2)``."""
        start_key, drop_path_key, revive_key = jax.random.split(key, 3)
        apply, of_student = self.tokenizer.apply, {"params": params}
        vectors = apply(
            of_student, images, is_training, method="encode", rngs={"drop_path": drop_path_key}
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
        predicted = unit_vectors(apply(of_student, straight_through, method="decode"))
        features = self.teacher.module.apply(
            {"params": teacher["encoder"]}, self.teacher.adapt(images)
        )
        wanted = jax.lax.stop_gradient(unit_vectors(features.patches[0]))
        feature_loss = 1 - (predicted * wanted).sum(axis=-1).mean()
        commitment_loss = jnp.square(vectors - codes).mean()
        updated = update_codebook(
            revive_key, codebook, flat, indices, self.decay, self.revive_below
        )
        share = jnp.zeros(self.num_codes).at[indices].add(1 / indices.size)
        output = VqKdOutput(updated, share, feature_loss, commitment_loss)
        return feature_loss + self.commitment * commitment_loss, output

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Array]:
        """Nothing that belongs to an image."""
        return {}

    def statistics(self, teacher: PyTree, inputs: PyTree) -> dict[str, Array]:
        """Nothing."""
        return {}

    def metrics(self, output: VqKdOutput) -> dict[str, Float[Array, ""]]:
        """Both losses, and how much of the codebook the batch used.

        ``codebook/used`` is the share of codes that some patch has, ``codebook/perplexity`` how
        many equally used codes would be as varied.
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
        """``tokens`` (batch, patches), the ``codes``, and their ``usage``."""
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
        encoder: of the tokenizer; sees all patches.
        decoder: None, as nothing is hidden.
        teacher: whose features are told from the codes.
        code_width: values of a code.
        decoder_depth: blocks of the tokenizer's decoder.
        num_codes, decay, commitment, revive_below: see :class:`VqKd`.

    Raises:
        ValueError: as :class:`VqKd` does.
    """
    tokenizer = make_tokenizer(encoder, decoder_depth, code_width, teacher.module.width)
    return VqKd(tokenizer, teacher, num_codes, decay, commitment, revive_below)


def _check(keys: Keys) -> None:
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

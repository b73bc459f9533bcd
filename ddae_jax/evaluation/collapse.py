"""Collapse metrics: numbers that show whether features still distinguish images."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from ddae_jax.methods.features import normalize_features
from ddae_jax.methods.method import Method
from ddae_jax.training.sharding import batch_sharding, replicated

CollapseMetrics = Callable[
    [PyTree, PyTree, UInt8[Array, "images height width channels"]], Mapping[str, Float[Array, ""]]
]
"""``(params of the student's encoder, teacher, uint8 images) -> metrics by name``."""


def effective_rank(embeddings: Float[Array, "images features"]) -> Float[Array, ""]:
    """Returns the effective number of directions in which embeddings differ.

    It is ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum_j s_j``, where ``s`` are the singular
    values of the embeddings minus their mean. It lies in ``[1, min(images - 1, width)]``: k
    orthogonal directions of equal length give k; embeddings that are all equal give 1.

    Unlike RankMe, this function centres the embeddings: what all images have in common, which may
    be most of an embedding, does not distinguish them. Singular values below the float32 resolution
    of the embeddings count as 0, so that rounding errors do not count as directions.

    Args:
        embeddings: one embedding per image; finite.

    Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained
    Self-Supervised Representations by Their Rank", equation 1; Roy and Vetterli 2007, "The
    Effective Rank".
    """
    embeddings = embeddings.astype(jnp.float32)
    # Eigenvalues of the Gram matrix are squares, and would resolve only half as many digits.
    singular = jnp.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
    resolved = jnp.finfo(jnp.float32).eps * jnp.linalg.norm(embeddings)
    singular = jnp.where(singular > resolved, singular, 0.0)
    total = singular.sum()
    shares = singular / jnp.where(total > 0, total, 1.0)
    return jnp.exp(entr(shares).sum())


def mean_deviation(embeddings: Float[Array, "images features"]) -> Float[Array, ""]:
    """Returns how much normalised embeddings deviate over images, averaged over dimensions.

    It is ``mean_d std_i z_id``, where ``z_i`` is the embedding of image i normalised to zero mean
    and unit variance over its dimensions. It has no unit and lies in [0, 1]: 0 for embeddings that
    are equal up to shift and scale, near 1 for embeddings that have nothing in common.

    Source: Chen and He 2021, "Exploring Simple Siamese Representation Learning", section 4.1, where
    it reveals collapse; there, embeddings are divided by their norm.
    """
    return normalize_features(embeddings).std(axis=0).mean()


def position_share(targets: Float[Array, "batch patches features"]) -> Float[Array, ""]:
    """Returns the share of the targets that depends only on the position of a patch.

    It is ``1 - sum |t - m|^2 / sum |t|^2``, where ``m`` is the mean over the batch at each
    position: 1 for targets that can be predicted from the position without looking at the image,
    among them targets that are all 0; and 0 if the mean at each position is 0.
    """
    targets = targets.astype(jnp.float32)
    rest = jnp.square(targets - targets.mean(axis=0)).sum()
    total = jnp.square(targets).sum()
    return jnp.where(total > 0, jnp.clip(1 - rest / jnp.where(total > 0, total, 1.0), 0, 1), 1.0)


def make_collapse_metrics(
    method: Method, normalize: Callable[[Array], Array], mesh: Mesh
) -> CollapseMetrics:
    """Makes the jitted function that measures collapse of student and teacher, over the mesh.

    Its metrics are:

    * ``rank/student`` (:func:`effective_rank`) and ``deviation/student`` (:func:`mean_deviation`)
      of embeddings: means over an image's patches after the last block and the final norm;
    * the same for ``teacher``, if the teacher is a momentum encoder;
    * ``position_share/depth_N`` (:func:`position_share`) for each supervised depth, if features of
      the teacher are predicted (:meth:`ddae_jax.methods.features.FeatureTargets.watched`).

    Args:
        method: method that is trained.
        normalize: turns pixel values into the encoder's input.
        mesh: images, the same in all processes, are split over all its devices; every device gets
            the metrics.
    """

    @jax.jit  # so that student and teacher share one trace
    def embed(params, images):
        patches = method.encoder.apply({"params": params}, images).patches[0]
        return patches.astype(jnp.float32).mean(axis=1)

    def metrics(student, teacher, images):
        images = jax.lax.with_sharding_constraint(normalize(images), batch_sharding(mesh))
        encoders = {"student": student}
        if method.has_momentum_encoder:
            encoders["teacher"] = teacher
        values = {}
        for name, params in encoders.items():
            embeddings = embed(params, images)
            embeddings = jax.lax.with_sharding_constraint(embeddings, replicated(mesh))
            values[f"rank/{name}"] = effective_rank(embeddings)
            values[f"deviation/{name}"] = mean_deviation(embeddings)
        if method.watched_features is not None:
            targets = method.watched_features(teacher, images)
            for depth, depth_targets in zip(method.depths, targets, strict=True):
                values[f"position_share/depth_{depth}"] = position_share(depth_targets)
        return values

    return jax.jit(metrics, out_shardings=replicated(mesh))

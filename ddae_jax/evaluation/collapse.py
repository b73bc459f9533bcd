"""Whether features still tell images apart: numbers that fall when an encoder collapses."""

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
"""``(parameters of the student's encoder, teacher, uint8 images) -> metrics by name``."""


def effective_rank(embeddings: Float[Array, "images features"]) -> Float[Array, ""]:
    """Counts the directions in which embeddings differ, each by its share.

    ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum_j s_j``, where ``s`` are the singular values
    of the embeddings less their mean. It lies in ``[1, min(images - 1, width)]``: k orthogonal
    directions of equal length give k, and embeddings that are all equal 1.

    RankMe does not centre. Here it is done, as what all images have in common, which may be most of
    an embedding, tells none of them from another. Singular values below what float32 resolves
    beside the embeddings themselves count as 0, so that rounding is no direction either.

    Args:
        embeddings: one of each image; finite.

    Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained
    Self-Supervised Representations by Their Rank", equation 1; Roy and Vetterli 2007, "The
    Effective Rank".
    """
    embeddings = embeddings.astype(jnp.float32)
    # Not by the eigenvalues of the Gram matrix, which resolve only the root of what float32 does.
    singular = jnp.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
    resolved = jnp.finfo(jnp.float32).eps * jnp.linalg.norm(embeddings)
    singular = jnp.where(singular > resolved, singular, 0.0)
    total = singular.sum()
    shares = singular / jnp.where(total > 0, total, 1.0)
    return jnp.exp(entr(shares).sum())


def mean_deviation(embeddings: Float[Array, "images features"]) -> Float[Array, ""]:
    """Averages over dimensions how much embeddings, layer-normalised, deviate over images.

    ``mean_d std_i z_id`` with ``z_i`` the embedding of image i at zero mean and unit variance over
    its dimensions; so it has no unit and lies in [0, 1]. It is 0 for embeddings that are equal up
    to their scale, and near 1 for those that have nothing in common.

    Source: the standard deviation that tells collapse in Chen and He 2021, "Exploring Simple
    Siamese Representation Learning", section 4.1, which normalises by the norm.
    """
    return normalize_features(embeddings).std(axis=0).mean()


def position_share(targets: Float[Array, "batch patches features"]) -> Float[Array, ""]:
    """Tells the share of targets that is the same in all images, place by place.

    ``1 - sum |t - m|^2 / sum |t|^2``, with ``m`` the mean over the batch at each place. It is 1
    for targets that can be told from the place alone, without looking at the image, among them
    those that are all 0; and 0 where each place has mean 0.
    """
    targets = targets.astype(jnp.float32)
    rest = jnp.square(targets - targets.mean(axis=0)).sum()
    total = jnp.square(targets).sum()
    return jnp.where(total > 0, jnp.clip(1 - rest / jnp.where(total > 0, total, 1.0), 0, 1), 1.0)


def make_collapse_metrics(
    method: Method, normalize: Callable[[Array], Array], mesh: Mesh
) -> CollapseMetrics:
    """Makes the jitted function that looks at student and teacher, over the mesh.

    It gives, of embeddings (the mean over an image's patches after the last block and the final
    norm), ``rank/student`` (:func:`effective_rank`) and ``deviation/student``
    (:func:`mean_deviation`); the same of the ``teacher``, if that is a momentum encoder; and, if
    its features are predicted, ``position_share/depth_N`` (:func:`position_share`) of these at each
    supervised depth (:meth:`ddae_jax.methods.features.FeatureTargets.watched`).

    Args:
        method: that is trained.
        normalize: pixel values to what the encoder is trained on.
        mesh: images, the same in all processes, are split over all its devices; metrics come back
            whole on each.
    """

    @jax.jit  # so that it is traced once
    def embed(params, images):
        patches = method.encoder.apply({"params": params}, images).patches[0]
        return patches.astype(jnp.float32).mean(axis=1)

    def metrics(student, teacher, images):
        images = jax.lax.with_sharding_constraint(normalize(images), batch_sharding(mesh))
        encoders = {"student": student}
        if method.has_momentum_encoder:
            encoders["teacher"] = teacher
        found = {}
        for name, params in encoders.items():
            embeddings = embed(params, images)
            embeddings = jax.lax.with_sharding_constraint(embeddings, replicated(mesh))
            found[f"rank/{name}"] = effective_rank(embeddings)
            found[f"deviation/{name}"] = mean_deviation(embeddings)
        if method.watched_features is not None:
            targets = method.watched_features(teacher, images)
            for depth, of_depth in zip(method.depths, targets, strict=True):
                found[f"position_share/depth_{depth}"] = position_share(of_depth)
        return found

    return jax.jit(metrics, out_shardings=replicated(mesh))

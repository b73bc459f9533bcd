"""A codebook of unit vectors, learned by moving averages. Pure functions on arrays.

Under ``jit``, counts and sums are those of the whole batch, even if it is split over devices.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

_HIGHEST = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Codebook:
    """The codes, and how much each of them is used.

    Attributes:
        codes: unit vectors; all zero before :func:`start_codebook`.
        usage: moving average of the share of vectors that each code is nearest to. It sums to 1
            once the codebook has started, and is 0 before.
    """

    codes: Float[Array, "codes features"]
    usage: Float[Array, " codes"]


def empty_codebook(num_codes: int, width: int) -> Codebook:
    """Returns a codebook that has not started."""
    return Codebook(jnp.zeros((num_codes, width)), jnp.zeros(num_codes))


def unit_vectors(values: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch features"]:
    """Divides each vector by its length, in float32."""
    values = jnp.asarray(values).astype(jnp.float32)
    return values * jax.lax.rsqrt(jnp.square(values).sum(axis=-1, keepdims=True) + 1e-12)


def nearest_codes(
    vectors: Float[ArrayLike, "*batch features"], codes: Float[ArrayLike, "codes features"]
) -> Int[Array, "*batch"]:
    """Returns the index of the code with the largest cosine to each unit vector."""
    vectors = jax.lax.stop_gradient(vectors)  # an index has no gradient
    return jnp.argmax(jnp.einsum("...d,kd->...k", vectors, codes, precision=_HIGHEST), axis=-1)


def start_codebook(
    key: PRNGKeyArray,
    vectors: Float[ArrayLike, "vectors features"],
    num_codes: int,
    num_rounds: int = 10,
) -> Codebook:
    """Starts a codebook by spherical k-means of unit vectors, from randomly chosen ones of them.

    If there are fewer vectors than codes, vectors are chosen repeatedly. A centre that is nearest
    to no vector stays where it is.

    Source: Dhillon & Modha 2001 (spherical k-means); Peng et al. 2022, BEiT v2 (as initialisation).
    """
    vectors = jnp.asarray(vectors)
    order = jax.random.permutation(key, vectors.shape[0])
    centres = vectors[order[jnp.arange(num_codes) % vectors.shape[0]]]

    def one_round(_, centres):
        counts, sums = _count_and_sum(vectors, nearest_codes(vectors, centres), num_codes)
        return jnp.where(counts[:, None] > 0, unit_vectors(sums), centres)

    centres = jax.lax.fori_loop(0, num_rounds, one_round, centres)
    counts, _ = _count_and_sum(vectors, nearest_codes(vectors, centres), num_codes)
    return Codebook(centres, counts / counts.sum())


def update_codebook(
    key: PRNGKeyArray,
    codebook: Codebook,
    vectors: Float[ArrayLike, "vectors features"],
    indices: Int[ArrayLike, " vectors"],
    decay: float,
    revive_below: float,
) -> Codebook:
    """Moves each code towards the mean of the vectors nearest to it, and revives dead codes.

    ``code <- unit(decay * code + (1 - decay) * unit(mean))`` if there are such vectors, and
    ``usage <- decay * usage + (1 - decay) * share``. A code whose usage is below ``revive_below /
    codes`` is dead: it becomes a randomly chosen vector of the batch, with the mean usage
    ``1 / codes``.

    Args:
        key: random key of the choice.
        codebook: a codebook that has started.
        vectors: unit vectors of the batch.
        indices: index of the code nearest to each vector.
        decay: decay of the moving averages, in [0, 1).
        revive_below: usage, relative to the mean usage, below which a code is dead; 0 revives none.

    Source: Peng et al. 2022, BEiT v2, section 3.1; van den Oord et al. 2017, appendix A.1 (moving
    averages); Dhariwal et al. 2020, Jukebox, section 3 (random restarts).
    """
    vectors = jnp.asarray(vectors)
    num_codes = codebook.codes.shape[0]
    counts, sums = _count_and_sum(vectors, indices, num_codes)
    moved = unit_vectors(decay * codebook.codes + (1 - decay) * unit_vectors(sums))
    codes = jnp.where(counts[:, None] > 0, moved, codebook.codes)
    usage = decay * codebook.usage + (1 - decay) * counts / counts.sum()
    is_dead = usage < revive_below / num_codes
    count = vectors.shape[0]
    chosen = vectors[jax.random.permutation(key, count)[jnp.arange(num_codes) % count]]
    usage = jnp.where(is_dead, 1 / num_codes, usage)
    return Codebook(jnp.where(is_dead[:, None], chosen, codes), usage / usage.sum())


def perplexity(usage: Float[ArrayLike, " codes"]) -> Float[Array, ""]:
    """Returns ``exp(entropy)`` of the usage, at least 1.

    It is the number of equally used codes that would be as varied.
    """
    usage = jnp.asarray(usage)
    share = usage / jnp.maximum(usage.sum(), 1e-12)
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())


def _count_and_sum(
    vectors: Float[ArrayLike, "vectors features"],
    indices: Int[ArrayLike, " vectors"],
    num_codes: int,
) -> tuple[Float[Array, " codes"], Float[Array, "codes features"]]:
    counts = jnp.zeros(num_codes).at[indices].add(1.0)
    sums = jnp.zeros((num_codes, vectors.shape[-1])).at[indices].add(vectors)
    return counts, sums

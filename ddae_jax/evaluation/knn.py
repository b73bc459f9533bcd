"""k-nearest-neighbour classification of frozen features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def knn_predict(
    train_features: Float[np.ndarray, "train features"],
    train_labels: Int[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test features"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> Int[np.ndarray, "test"]:
    """Predicts the class that the ``k`` most similar training examples vote for.

    Similarity is the cosine; a neighbour's vote has the weight ``exp(similarity / temperature)``.
    Ties go to the lower class.

    Args:
        train_features, train_labels: training examples, with labels in [0, num_classes).
        test_features: examples to classify.
        num_classes: number of classes.
        k: number of neighbours; all training examples, if there are fewer.
        temperature: temperature of the weights; 0 gives all neighbours the same weight.
        chunk_size: number of test examples that are compared at a time.

    Raises:
        ValueError: if there are no training examples, labels lie outside the classes, or ``k`` < 1.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4; parameters as in Caron et al. 2021, DINO.
    """
    if k < 1:
        raise ValueError(f"k={k}; at least one neighbour votes")
    check_labels(train_labels, num_classes)
    k = min(k, len(train_labels))
    train = jnp.asarray(_unit(train_features))
    labels = jnp.asarray(train_labels)
    predictions = []
    for start in range(0, len(test_features), chunk_size):
        chunk = _unit(test_features[start : start + chunk_size])
        padding = chunk_size - len(chunk)  # all chunks have one shape, which is compiled once
        padded = np.pad(chunk, ((0, padding), (0, 0)))
        votes = _vote(train, labels, padded, num_classes, k, temperature)
        predictions.append(np.asarray(votes)[: len(chunk)])
    return np.concatenate(predictions)


def check_labels(labels: Int[np.ndarray, "examples"], num_classes: int) -> None:
    """Raises ``ValueError`` if there are no labels, or some lie outside [0, num_classes)."""
    if len(labels) == 0:
        raise ValueError("there are no labelled examples")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"labels lie in [{lowest}, {highest}]; {num_classes} classes ask for "
            f"[0, {num_classes - 1}]. Images without a label (-1) cannot be classified."
        )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _vote(
    train: Float[Array, "train features"],
    labels: Int[Array, "train"],
    test: Float[Array, "chunk features"],
    num_classes: int,
    k: int,
    temperature: float,
) -> Int[Array, "chunk"]:
    # The default precision of accelerators would swap neighbours of almost equal similarity.
    products = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)
    similarity, nearest = jax.lax.top_k(products, k)
    # Subtracting the largest similarity does not change the vote, and prevents overflow.
    weight = jnp.exp((similarity - similarity[:, :1]) / temperature) if temperature else 1.0
    votes = (
        jax.nn.one_hot(labels[nearest], num_classes)
        * jnp.broadcast_to(weight, nearest.shape)[..., None]
    )
    return votes.sum(axis=1).argmax(axis=-1)


def _unit(
    features: Float[np.ndarray, "examples features"],
) -> Float[np.ndarray, "examples features"]:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norm, 1e-12)

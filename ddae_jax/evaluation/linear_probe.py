"""A linear classifier on frozen features: logistic regression, by L-BFGS."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ddae_jax.evaluation.knn import check_labels

_log = logging.getLogger(__name__)

_CHUNK = 4096  # examples whose statistics are summed up at a time, in float64


def linear_predict(
    train_features: Float[np.ndarray, "train features"],
    train_labels: Int[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test features"],
    *,
    num_classes: int,
    reference: Float[np.ndarray, "examples features"] | None = None,
    l2: float = 1e-4,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
) -> Int[np.ndarray, "test"]:
    """Classes predicted by multinomial logistic regression on standardised features.

    Minimises ``mean cross-entropy + l2 / 2 * |weights|**2`` (the bias is free) with full-batch
    L-BFGS until the gradient's largest entry is below ``tolerance``. scikit-learn's
    ``LogisticRegression(C=1 / (l2 * examples))`` has the same optimum. Where it is not reached in
    time, a warning says so.

    Args:
        train_features, train_labels: labels in [0, num_classes).
        test_features: to classify.
        num_classes: classes.
        reference: features whose mean and deviation standardise all; the training ones by default.
        l2: strength of the penalty.
        max_iterations: at most so many steps.
        tolerance: see above.

    Raises:
        ValueError: if labels lie outside the classes.
    """
    check_labels(train_labels, num_classes)
    mean, deviation = _statistics(train_features if reference is None else reference)
    train, test = (
        (jnp.asarray(features, jnp.float32) - mean) / deviation
        for features in (train_features, test_features)
    )
    # Accelerators would otherwise take less than float32, in L-BFGS's own products too.
    with jax.default_matmul_precision("highest"):
        (weights, bias), steepest = _fit(
            train, jnp.asarray(train_labels), num_classes, l2, max_iterations, tolerance
        )
        logits = test @ weights + bias
    if steepest > tolerance:
        _log.warning(
            "the linear probe has not converged: after %d iterations the largest entry of its "
            "gradient is %.1e, above %.1e; its accuracy may be lower than it could be",
            max_iterations,
            steepest,
            tolerance,
        )
    return np.asarray(logits.argmax(axis=-1))


def _statistics(
    features: Float[np.ndarray, "examples features"],
) -> tuple[Float[np.ndarray, "features"], Float[np.ndarray, "features"]]:
    """Mean and deviation, float32; 1 for what is constant. Summed in float64, without a copy."""
    chunks = [features[start : start + _CHUNK] for start in range(0, len(features), _CHUNK)]
    mean = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in chunks) / len(features)
    squares = sum(np.square(chunk - mean).sum(axis=0) for chunk in chunks)
    deviation = np.sqrt(squares / len(features))
    deviation = np.where(deviation <= 1e-6 * np.abs(mean), 1, deviation)
    return mean.astype(np.float32), deviation.astype(np.float32)


@functools.partial(jax.jit, static_argnums=(2, 4))
def _fit(
    features: Float[Array, "examples features"],
    labels: Int[Array, "examples"],
    num_classes: int,
    l2: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[tuple[Float[Array, "features classes"], Float[Array, "classes"]], Float[Array, ""]]:
    """Weights and bias, and the largest entry of the gradient that is left."""

    def loss(classifier):
        weights, bias = classifier
        logits = features @ weights + bias
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return cross_entropy + l2 / 2 * jnp.square(weights).sum()

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def steepest(state):
        gradient = jax.tree.leaves(optax.tree.get(state, "grad"))
        return jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in gradient]))

    def is_unfinished(carry):
        _, state = carry
        step = optax.tree.get(state, "count")
        return (step == 0) | ((step < max_iterations) & (steepest(state) > tolerance))

    def improve(carry):
        classifier, state = carry
        value, gradient = value_and_gradient(classifier, state=state)
        updates, state = solver.update(
            gradient, state, classifier, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(classifier, updates), state

    start = (jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes))
    classifier, state = jax.lax.while_loop(is_unfinished, improve, (start, solver.init(start)))
    return classifier, steepest(state)

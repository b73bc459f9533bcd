"""Linear probe: logistic regression on frozen features, fitted by L-BFGS."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ddae_jax.evaluation.knn import check_labels

_log = logging.getLogger(__name__)

_CHUNK = 4096  # number of examples whose statistics are summed at a time, in float64


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
    """Predicts classes by multinomial logistic regression on standardised features.

    Full-batch L-BFGS minimises ``mean cross-entropy + l2 / 2 * |weights|**2`` (the bias is not
    penalised) until the largest entry of the gradient is at most ``tolerance``. scikit-learn's
    ``LogisticRegression(C=1 / (l2 * examples))`` has the same optimum. If the optimum is not
    reached in ``max_iterations``, a warning is logged.

    Args:
        train_features, train_labels: training examples, with labels in [0, num_classes).
        test_features: examples to classify.
        num_classes: number of classes.
        reference: features whose mean and deviation standardise all features; those of the training
            examples by default.
        l2: strength of the penalty.
        max_iterations: largest number of L-BFGS steps.
        tolerance: largest entry of the gradient at which the optimum counts as reached.

    Raises:
        ValueError: if there are no training examples, or labels lie outside the classes.
    """
    check_labels(train_labels, num_classes)
    mean, deviation = _statistics(train_features if reference is None else reference)
    train, test = (
        (jnp.asarray(features, jnp.float32) - mean) / deviation
        for features in (train_features, test_features)
    )
    # By default, accelerators multiply at less than float32 precision, in L-BFGS itself too.
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
    """Returns mean and standard deviation, float32; the deviation of constant features is 1.

    Sums are in float64, chunk by chunk, so that the features are not copied as a whole.
    """
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
) -> tuple[tuple[Float[Array, "width classes"], Float[Array, "classes"]], Float[Array, ""]]:
    """Returns weights and bias, and the largest entry of the remaining gradient."""

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

"""A linear classifier on frozen features: logistic regression, by L-BFGS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ddae_jax.evaluation.knn import check_labels


def linear_predict(
    train_features: Float[np.ndarray, "train width"],
    train_labels: Int[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test width"],
    *,
    num_classes: int,
    l2: float = 1e-4,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
) -> Int[np.ndarray, "test"]:
    """Classes predicted by multinomial logistic regression on standardised features.

    Minimises ``mean cross-entropy + l2 / 2 * |weights|**2`` (the bias is free) with full-batch
    L-BFGS until the gradient's largest entry is below ``tolerance``. scikit-learn's
    ``LogisticRegression(C=1 / (l2 * examples))`` has the same optimum.

    Args:
        train_features, train_labels: labels in [0, num_classes).
        test_features: to classify.
        num_classes: classes.
        l2: strength of the penalty.
        max_iterations: at most so many steps.
        tolerance: see above.

    Raises:
        ValueError: if labels lie outside the classes.
    """
    check_labels(train_labels, num_classes)
    mean = train_features.mean(axis=0, dtype=np.float64)
    deviation = train_features.std(axis=0, dtype=np.float64)
    is_constant = deviation <= 1e-6 * np.abs(mean)
    deviation = np.where(is_constant, 1, deviation)
    train = jnp.asarray((train_features - mean) / deviation, jnp.float32)
    test = jnp.asarray((test_features - mean) / deviation, jnp.float32)
    weights, bias = _fit(
        train, jnp.asarray(train_labels), num_classes, l2, max_iterations, tolerance
    )
    return np.asarray((test @ weights + bias).argmax(axis=-1))


@functools.partial(jax.jit, static_argnums=(2, 4))
def _fit(
    features: Float[Array, "examples width"],
    labels: Int[Array, "examples"],
    num_classes: int,
    l2: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[Float[Array, "width classes"], Float[Array, "classes"]]:
    def loss(classifier):
        weights, bias = classifier
        logits = features @ weights + bias
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return cross_entropy + l2 / 2 * jnp.square(weights).sum()

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def is_unfinished(carry):
        _, state = carry
        step = optax.tree.get(state, "count")
        gradient = optax.tree.get(state, "grad")
        steepest = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]))
        return (step == 0) | ((step < max_iterations) & (steepest > tolerance))

    def improve(carry):
        classifier, state = carry
        value, gradient = value_and_gradient(classifier, state=state)
        updates, state = solver.update(
            gradient, state, classifier, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(classifier, updates), state

    start = (jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes))
    classifier, _ = jax.lax.while_loop(is_unfinished, improve, (start, solver.init(start)))
    return classifier

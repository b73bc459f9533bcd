"""How well a linear probe does that has seen a few images of each class."""

import numpy as np
from jaxtyping import Int

from ddae_jax.evaluation.features import Examples
from ddae_jax.evaluation.linear_probe import linear_predict

NUM_DRAWS = 5
"""Draws of the images that are learned from; a single one says little."""


def few_shot_accuracies(
    train: Examples, test: Examples, num_classes: int, per_class: int, num_draws: int = NUM_DRAWS
) -> list[float]:
    """Accuracy on the test set after learning from ``per_class`` examples of each class, per draw.

    Features are standardised by the whole training set, of which labels are not needed for that;
    draw k is the same for all features of the same training set. The penalty is that of
    scikit-learn's ``LogisticRegression(C=1)``.

    Args:
        train, test: features and labels.
        num_classes: classes.
        per_class: examples of each; all, of a class that has fewer.
        num_draws: how often examples are drawn.

    Source: Assran et al. 2022, "Masked Siamese Networks", section 4 (low-shot evaluation by
    logistic regression on frozen features).
    """
    features, labels = train
    found = []
    for seed in range(num_draws):
        chosen = draw_of_each_class(labels, per_class, seed)
        predicted = linear_predict(
            features[chosen],
            labels[chosen],
            test[0],
            num_classes=num_classes,
            reference=features,
            l2=1 / len(chosen),
        )
        found.append(float((predicted == test[1]).mean()))
    return found


def draw_of_each_class(
    labels: Int[np.ndarray, "examples"], per_class: int, seed: int
) -> Int[np.ndarray, "chosen"]:
    """Indices of so many examples of each class, ascending; of all, where a class has fewer."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))

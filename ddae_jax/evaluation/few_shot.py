"""Few-shot evaluation: accuracy of a linear probe that learns from a few images of each class."""

import numpy as np
from jaxtyping import Int

from ddae_jax.evaluation.features import Examples
from ddae_jax.evaluation.linear_probe import linear_predict

NUM_DRAWS = 5
"""Number of random draws of the training images, as the accuracy varies much between draws."""


def few_shot_accuracies(
    train: Examples, test: Examples, num_classes: int, per_class: int, num_draws: int = NUM_DRAWS
) -> list[float]:
    """Returns test accuracies after learning from ``per_class`` examples of each class.

    Features are standardised by the whole training set, which needs no labels. Draw k selects the
    same examples for all features of the same training set. The penalty is that of scikit-learn's
    ``LogisticRegression(C=1)``.

    Args:
        train, test: features and labels.
        num_classes: number of classes.
        per_class: number of examples of each class; a class that has fewer is taken whole.
        num_draws: number of random draws of examples.

    Returns:
        The accuracy of each draw, in [0, 1].

    Source: Assran et al. 2022, "Masked Siamese Networks", section 4 (low-shot evaluation by
    logistic regression on frozen features).
    """
    features, labels = train
    accuracies = []
    for seed in range(num_draws):
        chosen = draw_per_class(labels, per_class, seed)
        predicted = linear_predict(
            features[chosen],
            labels[chosen],
            test[0],
            num_classes=num_classes,
            reference=features,
            l2=1 / len(chosen),
        )
        accuracies.append(float((predicted == test[1]).mean()))
    return accuracies


def draw_per_class(
    labels: Int[np.ndarray, "examples"], per_class: int, seed: int
) -> Int[np.ndarray, "chosen"]:
    """Draws the indices of ``per_class`` examples of each class, ascending.

    A class that has fewer examples is taken whole.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))

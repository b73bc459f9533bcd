"""Tests of few-shot evaluation: equal draws for all features, and scikit-learn's accuracies."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from ddae_jax.evaluation.few_shot import draw_per_class, few_shot_accuracies

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 5))


def examples(count):
    labels = RNG.integers(0, 3, count).astype(np.int32)
    return (CENTRES[labels] + RNG.normal(size=(count, 5))).astype(np.float32), labels


TRAIN, TEST = examples(300), examples(200)


def test_as_many_of_each_class_as_asked_and_all_of_a_smaller_one():
    labels = np.array([0] * 10 + [1] * 2 + [2] * 5)
    chosen = draw_per_class(labels, 3, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [3, 2, 3]
    assert len(set(chosen)) == len(chosen)
    assert (draw_per_class(labels, 3, seed=1) != chosen).any()


def test_accuracies_are_those_of_scikit_learn():
    found = few_shot_accuracies(TRAIN, TEST, 3, per_class=5, num_draws=3)
    mean, deviation = TRAIN[0].mean(0), TRAIN[0].std(0)
    for seed, accuracy in enumerate(found):
        chosen = draw_per_class(TRAIN[1], 5, seed)
        oracle = LogisticRegression(C=1, tol=1e-8, max_iter=1000)
        oracle.fit((TRAIN[0][chosen] - mean) / deviation, TRAIN[1][chosen])
        expected = oracle.score((TEST[0] - mean) / deviation, TEST[1])
        assert abs(accuracy - expected) <= 1 / 200  # one image with almost equal logits

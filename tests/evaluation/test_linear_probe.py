import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ddae_jax.evaluation.linear_probe import linear_predict


@pytest.fixture(scope="module")
def digits():
    """Training and test set of scanned digits, three pixels of which are constant, with labels."""
    features, labels = load_digits(return_X_y=True)
    is_test = np.arange(len(labels)) % 4 == 0
    features = features.astype(np.float32)
    assert (features.std(axis=0) == 0).sum() == 3
    return (features[~is_test], labels[~is_test]), (features[is_test], labels[is_test])


def scikit_learn(train, test_features, l2):
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    classifier = LogisticRegression(C=1 / (l2 * len(train[0])), tol=1e-6, max_iter=5000)
    classifier.fit(scaler.transform(train[0].astype(np.float64)), train[1])
    return classifier.predict(scaler.transform(test_features.astype(np.float64)))


@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_predictions_agree_with_scikit_learn(digits, l2):
    train, test = digits
    found = linear_predict(*train, test[0], num_classes=10, l2=l2)
    expected = scikit_learn(train, test[0], l2)
    # The optimum is the same; if two classes are almost equally likely, rounding may decide.
    assert (found != expected).sum() <= 1
    assert (expected == test[1]).mean() > 0.9


def test_the_default_penalty_reaches_scikit_learns_accuracy(digits):
    train, test = digits
    found = linear_predict(*train, test[0], num_classes=10)
    expected = scikit_learn(train, test[0], 1e-4)
    accuracies = [(predicted == test[1]).mean() for predicted in (found, expected)]
    assert abs(accuracies[0] - accuracies[1]) <= 2 / len(test[1])
    assert (found != expected).mean() < 0.01


def test_one_that_has_not_converged_says_so(digits, caplog):
    train, test = digits
    linear_predict(*train, test[0], num_classes=10, max_iterations=2)
    assert "has not converged: after 2 iterations" in caplog.text
    caplog.clear()
    linear_predict(*train, test[0], num_classes=10, l2=1e-1)
    assert caplog.text == ""


def test_units_of_the_features_do_not_matter(digits):
    train, test = digits
    scale = 2.0 ** np.linspace(-6, 6, 64).round().astype(np.float32)
    options = {"num_classes": 10, "l2": 1e-2}
    found = linear_predict((train[0] + 5) * scale, train[1], (test[0] + 5) * scale, **options)
    expected = linear_predict(*train, test[0], **options)
    assert (found != expected).sum() <= 1


def test_features_that_are_constant_in_training_are_no_trouble(digits):
    train, test = digits
    constant = np.full((len(train[0]), 4), 0.1, np.float32)
    # In the training set, their standard deviation is 0 up to rounding; in the test set they vary.
    varying = constant[: len(test[0])] + np.float32(0.01)
    options = {"num_classes": 10, "l2": 1e-2}
    found = linear_predict(
        np.hstack([train[0], constant]), train[1], np.hstack([test[0], varying]), **options
    )
    np.testing.assert_array_equal(found, linear_predict(*train, test[0], **options))


def test_all_features_constant_predict_the_most_frequent_class():
    labels = np.array([0, 2, 2, 1, 2])
    found = linear_predict(np.ones((5, 3), np.float32), labels, np.ones((2, 3)), num_classes=4)
    assert found.tolist() == [2, 2]


def test_the_bias_is_free_of_the_penalty():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 90 + [1] * 10)
    features = rng.normal(size=(100, 2)).astype(np.float32)
    found = linear_predict(features, labels, features, num_classes=2, l2=1e6)
    assert found.tolist() == [0] * 100
    swapped = linear_predict(features, 1 - labels, features, num_classes=2, l2=1e6)
    assert swapped.tolist() == [1] * 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, -1], r"labels lie in \[-1, 0\]"), ([0, 5], r"\[0, 5\]; 5 classes ask for \[0, 4\]")],
)
def test_labels_outside_the_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        linear_predict(np.ones((2, 3)), np.array(labels), np.ones((1, 3)), num_classes=5)

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ddae_jax.evaluation.knn import knn_predict

CLASSES = 7


def clusters(count, seed, width=24, spread=1.8):
    """Draws overlapping clusters of features of very different lengths, one per class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, width))
    labels = rng.integers(0, CLASSES, count)
    features = centres[labels] + spread * rng.normal(size=(count, width))
    features *= np.exp(rng.normal(size=(count, 1)))
    return features.astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope="module")
def train():
    return clusters(600, seed=1)


@pytest.fixture(scope="module")
def test():
    return clusters(500, seed=2)


def scikit_learn(train, test_features, k, weights):
    classifier = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
    return classifier.fit(*train).predict(test_features)


@pytest.mark.parametrize("k", [1, 2, 20, 600])
def test_equal_votes_agree_with_scikit_learn(train, test, k):
    found = knn_predict(*train, test[0], num_classes=CLASSES, k=k, temperature=0)
    np.testing.assert_array_equal(found, scikit_learn(train, test[0], k, "uniform"))


@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_weighted_votes_agree_with_scikit_learn(train, test, k, temperature):
    found = knn_predict(*train, test[0], num_classes=CLASSES, k=k, temperature=temperature)
    expected = scikit_learn(
        train, test[0], k, lambda distance: np.exp((1 - distance) / temperature)
    )
    np.testing.assert_array_equal(found, expected)
    accuracy = (found == test[1]).mean()
    assert 0.3 < accuracy < 0.99  # neither chance, 0.14, nor so easy that any classifier would do


def test_small_temperatures_do_not_overflow(train, test):
    found = knn_predict(*train, test[0], num_classes=CLASSES, k=20, temperature=1e-4)
    # The nearest neighbour's vote outweighs all others if it is nearer by more than 1e-3.
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (train[0], test[0])]
    similarity = np.sort(unit[1] @ unit[0].T, axis=1)
    clear = similarity[:, -1] - similarity[:, -2] > 1e-3
    assert clear.sum() > 300
    nearest = scikit_learn(train, test[0], 1, "uniform")
    np.testing.assert_array_equal(found[clear], nearest[clear])


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 500, 4096])
def test_chunks_do_not_matter(train, test, chunk_size):
    features = test[0][:100]
    options = {"num_classes": CLASSES, "k": 10}
    expected = knn_predict(*train, features, **options, chunk_size=100)
    found = knn_predict(*train, features, **options, chunk_size=chunk_size)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (100,)


def test_more_neighbours_than_examples_are_all_of_them(test):
    few = clusters(9, seed=3)
    found = knn_predict(*few, test[0], num_classes=CLASSES, k=20)
    np.testing.assert_array_equal(found, knn_predict(*few, test[0], num_classes=CLASSES, k=9))


def test_length_does_not_matter_only_direction(train, test):
    scale = np.random.default_rng(4).uniform(0.1, 10, (len(train[0]), 1)).astype(np.float32)
    found = knn_predict(train[0] * scale, train[1], test[0], num_classes=CLASSES)
    np.testing.assert_array_equal(found, knn_predict(*train, test[0], num_classes=CLASSES))


def test_ties_go_to_the_lower_class():
    features = np.eye(4, dtype=np.float32)
    labels = np.array([3, 1, 3, 1])
    found = knn_predict(features, labels, np.ones((1, 4), np.float32), num_classes=5, k=4)
    assert found.tolist() == [1]


def test_a_feature_of_zeros_is_classified_without_nan():
    features = np.eye(3, dtype=np.float32)
    test = np.zeros((1, 3), np.float32)
    found = knn_predict(features, np.array([2, 2, 0]), test, num_classes=3, k=3)
    assert found.tolist() == [2]


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours_are_refused(train, test, k):
    with pytest.raises(ValueError, match=rf"k={k}; at least one"):
        knn_predict(*train, test[0], num_classes=CLASSES, k=k)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], r"labels lie in \[-1, 0\]; 2 classes ask for \[0, 1\].*without a label \(-1\)"),
        ([0, 2], r"labels lie in \[0, 2\]; 2 classes"),
        ([], "no labelled examples"),
    ],
)
def test_labels_outside_the_classes_are_refused(labels, message):
    features = np.ones((len(labels), 3), np.float32)
    with pytest.raises(ValueError, match=message):
        knn_predict(features, np.array(labels, int), np.ones((1, 3)), num_classes=2)

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tlray.scoring import knn_accuracy, nearest_neighbours


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32), labels


def test_neighbours_equal_scikit_learn(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, _ = digits
    queries, known = features[:300], features[300:]
    indexes, cosines = nearest_neighbours(queries, known, 5)
    distances, expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(known).kneighbors(queries)
    assert np.allclose(cosines, 1 - distances, atol=1e-5)
    assert np.mean(indexes == expected) > 0.999  # ties may come in another order


@pytest.mark.parametrize("k", [1, 20])
def test_accuracy_equals_scikit_learn(digits: tuple[np.ndarray, np.ndarray], k: int) -> None:
    features, labels = digits
    names = np.array([f"digit {label}" for label in labels])
    classifier = KNeighborsClassifier(k, metric="cosine").fit(features[300:], names[300:])
    expected = classifier.score(features[:300], names[:300])
    assert knn_accuracy(features[300:], names[300:], features[:300], names[:300], k=k) == pytest.approx(expected, abs=1 / 300)


def test_a_zero_vector_is_similar_to_nothing() -> None:
    indexes, cosines = nearest_neighbours(np.zeros((1, 3), np.float32), np.eye(3, dtype=np.float32), 2)
    assert indexes.shape == (1, 2) and not cosines.any()

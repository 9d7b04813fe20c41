from collections import Counter

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


def test_accuracy_equals_votes_counted_by_hand(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Also where votes are equal, which scikit-learn decides likewise: for the first label."""
    features, labels = digits
    known, queries = features[200:700].astype(np.float64), features[:200].astype(np.float64)
    right = 0
    for query, label in zip(queries, labels[:200], strict=True):
        cosines = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in known]
        nearest = sorted(range(len(known)), key=lambda at: -cosines[at])[:20]
        votes = Counter(int(labels[200 + at]) for at in nearest)
        right += min(votes, key=lambda one: (-votes[one], one)) == label
    accuracy = knn_accuracy(features[200:700], labels[200:700], features[:200], labels[:200], k=20)
    assert accuracy == pytest.approx(right / 200, abs=1e-6)

"""Suspected labels: those that were made wrong are found, and the rule is that of the paper, row by row."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from tlray.scoring import label_errors


def test_swapped_labels_of_digits_are_found() -> None:
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:1000] / 16, labels[:1000].copy()
    swapped = np.random.default_rng(0).choice(1000, 30, replace=False)
    labels[swapped] = (labels[swapped] + 3) % 10
    model = LogisticRegression(max_iter=500)
    probabilities = cross_val_predict(model, features, labels, cv=5, method="predict_proba")
    found = label_errors(probabilities, labels)
    right = np.isin(found, swapped)  # among them some that were swapped to a digit of like shape are not sure enough
    assert right.sum() >= 20 and right.mean() >= 0.6 and right[:8].mean() > 0.8


def test_the_rule_of_the_paper_row_by_row() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet(np.ones(4), size=200)
    labels = generator.integers(4, size=200)
    thresholds = [probabilities[labels == one, one].mean() for one in range(4)]
    expected = set()
    for row in range(200):
        able = [one for one in range(4) if probabilities[row, one] >= thresholds[one]]
        if able and max(able, key=lambda one: probabilities[row, one]) != labels[row]:
            expected.add(row)
    assert set(label_errors(probabilities, labels).tolist()) == expected

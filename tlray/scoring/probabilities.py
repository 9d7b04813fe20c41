"""From a head's scores to probabilities.

Shape legend: N vectors, K outputs.
"""

import numpy as np

from tlray.predictor import Task


def probabilities_of(scores_NK: np.ndarray, task: Task) -> np.ndarray:
    """Softmax (single) or the logistic function (multi) of a head's scores; the scores themselves of a regression. float32."""
    if task == "regression":
        return scores_NK.astype(np.float32)
    if task == "multi":
        # 0.5 (1 + tanh(x / 2)) is the logistic function without an overflow.
        return (0.5 * (1 + np.tanh(0.5 * scores_NK))).astype(np.float32)
    powers_NK = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
    probabilities_NK: np.ndarray = (powers_NK / powers_NK.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities_NK

"""From scores to the columns of a table of predictions: arrays in, Arrow out.

Shape legend: B images, K outputs, N labels kept of each image.
"""

import numpy as np
import pyarrow as pa

from tlray.lake.table.parts import vector_column
from tlray.predictor import Output
from tlray.scoring import probabilities_of


def best(scores_BK: np.ndarray, count: int) -> np.ndarray:
    """Positions of the highest scores of each row, best first, equal ones in order of position; int64, shape (B, count)."""
    if count < scores_BK.shape[1] // 2:
        candidates_BN = np.sort(np.argpartition(-scores_BK, count, axis=1)[:, : count + 1], axis=1)
        order_BN = np.argsort(-np.take_along_axis(scores_BK, candidates_BN, axis=1), axis=1, kind="stable")
        return np.take_along_axis(candidates_BN, order_BN[:, :count], axis=1)
    return np.argsort(-scores_BK, axis=1, kind="stable")[:, :count]


def prediction_columns(scores_BK: np.ndarray, output: Output) -> dict[str, pa.Array]:
    """Make the columns of predictions (`tlray.lake.table.parts.prediction_fields`) of a batch of scores.

    Args:
        scores_BK: float32, finite.
        output: of the model.
    """
    if output.task == "regression":
        return {"values": vector_column(scores_BK, "full")}
    probabilities_BK = probabilities_of(scores_BK, output.task)
    top_BN = best(scores_BK, output.top_k)
    top_probabilities_BN = np.take_along_axis(probabilities_BK, top_BN, axis=1)
    classes = pa.array(output.classes, pa.string())
    top_labels = pa.FixedSizeListArray.from_arrays(classes.take(pa.array(top_BN.reshape(-1))), output.top_k)
    top = {"top_labels": top_labels, "top_probabilities": vector_column(top_probabilities_BN, "full")}
    if output.task == "multi":
        return {"predictions": _labels_above(probabilities_BK, output.threshold, classes), **top}
    return {
        "prediction": classes.take(pa.array(top_BN[:, 0])),
        "probability": pa.array(top_probabilities_BN[:, 0], pa.float32()),
        **top,
    }


def _labels_above(probabilities_BK: np.ndarray, threshold: float, classes: pa.StringArray) -> pa.ListArray:
    """The labels of each image with at least this probability, best first."""
    counts_B = (probabilities_BK >= threshold).sum(axis=1)
    order_BK = np.argsort(-probabilities_BK, axis=1, kind="stable")
    chosen = order_BK[np.arange(order_BK.shape[1]) < counts_B[:, None]]
    offsets = np.concatenate([[0], np.cumsum(counts_B)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), classes.take(pa.array(chosen)))

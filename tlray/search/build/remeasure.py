"""When to measure an index anew: once many of its rows have changed, or some unlike those that its lists were made for.

Measuring means to load the index and to search exactly, which takes longer than an update does otherwise. So it is not done
each time. In between, new rows are held against the centres of the lists, which are a small file of their own.
"""

from pathlib import Path

import numpy as np

from tlray.search.neighbours.exact import prepared
from tlray.search.neighbours.faiss_index import FaissIndex
from tlray.search.neighbours.index_kind import kind_made_by
from tlray.search.neighbours.parameters import Parameters
from tlray.search.versions.card import Card
from tlray.search.versions.changes import VectorChanges
from tlray.search.versions.files import get_file

CHANGED_FRACTION = 0.05
"""Vectors that came or went, as a share of all rows. A rule of thumb: half of what is merged at the latest."""

OUTLIER_FRACTION = 0.005
"""Outliers that came, as a share of all rows. A row that none finds and that finds none takes its share twice from the mean
recall: this is a point at most."""

OUTLIER_QUANTILE = 0.01
"""So many of the held-out rows of a build are further from the centre of their list than what is not called an outlier."""


def outlier_nearness(centres: FaissIndex | None, held_out_BD: np.ndarray) -> float | None:
    """Nearness to the centre of its list under which a row is an outlier; None without lists.

    Args:
        centres: `FaissIndex.centres`.
        held_out_BD: prepared vectors of rows that it was not trained on.
    """
    return None if centres is None else float(np.quantile(_to_centres(centres, held_out_BD), OUTLIER_QUANTILE))


def is_due(index_uri: str, card: Card, rows: int, before: VectorChanges, after: VectorChanges, scratch: Path) -> bool:
    """Whether an update makes changes or outliers pass a further share of the rows.

    A graph without training is never due: it grows by the rule that it was built by.

    Args:
        index_uri: of the index.
        card: of the version before.
        rows: live rows after the update.
        before: changes since the FAISS file was written, without the update.
        after: with it.
        scratch: a folder for temporary files.

    Raises:
        IndexCorruptError: the file of the centres is damaged.
    """
    if not kind_made_by(card.factory, card.dimensions, card.metric).trains:
        return False
    if _passes(before.size, after.size, CHANGED_FRACTION * rows):
        return True
    if card.built.outlier_nearness is None or not len(after.added_ND):
        return False
    centres = FaissIndex.load(get_file(index_uri, card.files["centres"], scratch), card.metric)
    is_outlier_B = _to_centres(centres, prepared(after.added_ND, card.metric)) < card.built.outlier_nearness
    return _passes(int(is_outlier_B[: len(before.added_ND)].sum()), int(is_outlier_B.sum()), OUTLIER_FRACTION * rows)


def _passes(before: int, after: int, step: float) -> bool:
    return before // step < after // step


def _to_centres(centres: FaissIndex, vectors_BD: np.ndarray) -> np.ndarray:
    _, nearness_B1 = centres.search(vectors_BD, 1, Parameters())
    return nearness_B1[:, 0]

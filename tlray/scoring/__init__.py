"""How good embeddings and labels are, as numbers: arrays in, arrays and floats out; no files, no torch."""

from tlray.scoring.duplicates import connected_components, near_duplicate_groups
from tlray.scoring.image_health import image_oddities
from tlray.scoring.label_errors import label_errors
from tlray.scoring.neighbours import knn_accuracy, nearest_neighbours, nearest_votes, unit_vectors
from tlray.scoring.probabilities import probabilities_of
from tlray.scoring.transferability import h_score, leep, logme

__all__ = [
    "connected_components",
    "h_score",
    "image_oddities",
    "knn_accuracy",
    "label_errors",
    "leep",
    "logme",
    "near_duplicate_groups",
    "nearest_neighbours",
    "nearest_votes",
    "probabilities_of",
    "unit_vectors",
]

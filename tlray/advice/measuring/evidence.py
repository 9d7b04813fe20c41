"""What is shown beside accuracies: floors, scores of features, likeness to the pretraining, and what is odd about the data.

Shape legend: N images of the sample, Z classes of a network's own.
"""

import time
from collections import Counter
from typing import Any

import numpy as np

from tlray.advice.inputs.sample import Sample, centred
from tlray.advice.measuring.probes import linear_probe, neighbour_probe
from tlray.advice.measuring.race import Finish, Racer
from tlray.config import AdviseConfig
from tlray.scoring import h_score, label_errors, leep, logme
from tlray.training.examples.examples import Split
from tlray.training.examples.metrics import Estimate, wilson

SHOWN = 20
"""Examples of each kind of oddity in a result."""


def floors_of(sample: Sample, seed: int) -> tuple[dict[str, Estimate], float]:
    """What is reached without any network: the largest class, and thumbnails' raw pixels.

    Returns:
        `majority`, `pixels_knn` and `pixels_linear`, and the seconds that the last one's probe took.
    """
    features_ND = centred(sample.pixels_NHWC)
    largest = int(np.bincount(sample.targets).max())
    neighbours = neighbour_probe(features_ND, sample.targets, sample.folds_N)
    began = time.monotonic()
    linear = linear_probe(features_ND, sample.examples, sample.folds_N, seed=seed)
    seconds = time.monotonic() - began
    floors = {
        "majority": wilson(largest, len(sample)),
        "pixels_knn": neighbours.accuracy,
        "pixels_linear": linear.accuracy,
    }
    return floors, seconds


def row_of(racer: Racer) -> dict[str, Any]:
    """A candidate as the result has it: of each layer the accuracies and scores, on the images that it was judged by."""
    candidate, sample = racer.candidate, racer.sample
    targets_N = sample.targets
    layers = []
    for tap, probe in racer.probes.items():
        features_ND = candidate.features[tap]
        neighbours = neighbour_probe(features_ND, targets_N, sample.folds_N)
        layers.append(
            {
                "layer": tap,
                "depth": round(candidate.depth(tap), 4),
                "dimensions": features_ND.shape[1],
                "linear": probe.accuracy.rounded(),
                "knn": neighbours.accuracy.rounded(),
                "logme": round(logme(features_ND, targets_N), 4),
                "h_score": round(h_score(features_ND, targets_N), 4),
            }
        )
    return {
        "candidate": candidate.name,
        "backbone": candidate.backbone.recipe.backbone,
        "weights": candidate.backbone.recipe.weights,
        "parameters": candidate.parameters,
        "seconds_per_image": round(candidate.seconds_per_image, 6),
        "images": len(sample),
        "dropped_after": candidate.dropped_after,
        "best_layer": racer.best_tap,
        "leep": None if candidate.own_NZ is None else round(leep(candidate.own_NZ, targets_N), 4),
        "layers": layers,
    }


def likeness_of(finish: Finish, pixels: float) -> dict[str, Any]:
    """How like the task is to what the best pretrained candidate was pretrained on.

    Returns:
        `value`, see `likeness`; and of that network's own classifier `confidence`, its mean greatest probability, and
        `classes_used`, exp of the entropy of its mean prediction: few, or many at little confidence, are signs of pictures
        that it does not know. None where there is no such network.
    """
    pretrained = next((one for one in (*finish.racers, *finish.out) if one.candidate.is_pretrained), None)
    if pretrained is None:
        return {"value": None, "confidence": None, "classes_used": None, "candidate": None}
    best = max(float(probe.right_N.mean()) for probe in pretrained.probes.values())
    own_NZ = pretrained.candidate.own_NZ
    found: dict[str, Any] = {"candidate": pretrained.candidate.name, "value": round(likeness(best, pixels), 4)}
    if own_NZ is None:
        return found | {"confidence": None, "classes_used": None}
    mean_Z = own_NZ.mean(axis=0, dtype=np.float64)
    entropy = -float((mean_Z * np.log(np.maximum(mean_Z, 1e-30))).sum())
    return found | {"confidence": round(float(own_NZ.max(axis=1).mean()), 4), "classes_used": round(float(np.exp(entropy)), 1)}


def likeness(pretrained: float, pixels: float) -> float:
    """Share of the errors of a probe on raw pixels that one on pretrained features avoids, from -1 to 1.

    Args:
        pretrained: accuracy of a linear probe on a pretrained network's features.
        pixels: of one on raw pixels.
    """
    if pixels >= 1:
        return 0.0 if pretrained >= 1 else -1.0
    return max(-1.0, min(1.0, (pretrained - pixels) / (1 - pixels)))


def data_of(sample: Sample, best: Racer, config: AdviseConfig) -> dict[str, Any]:
    """What is odd about images and labels: balance, near-duplicates, leaks between splits, labels that are probably wrong."""
    sizes = Counter(sample.class_sizes)
    ordered = sizes.most_common()
    return {
        "class_sizes": dict(ordered),
        "imbalance": round(ordered[0][1] / ordered[-1][1], 2),
        "near_duplicates": _near_duplicates(sample, has_splits=config.split.column is not None),
        "suspected_labels": _suspects(best),
    }


def _near_duplicates(sample: Sample, *, has_splits: bool) -> dict[str, Any]:
    numbers, sizes = np.unique(sample.group_N, return_counts=True)
    uris = sample.items["uri"].to_pylist()
    groups = [np.flatnonzero(sample.group_N == number) for number in numbers[sizes > 1]]
    conflicting = [rows for rows in groups if len(np.unique(sample.targets[rows])) > 1]
    splits_N = sample.examples.splits_N
    leaks = [rows for rows in groups if has_splits and len(np.unique(splits_N[rows])) > 1]
    first = [*leaks, *conflicting, *groups]
    shown = list({int(rows[0]): rows for rows in first}.values())[:SHOWN]
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "conflicting_labels": len(conflicting),
        "across_splits": len(leaks) if has_splits else None,
        "examples": [
            [
                {"uri": uris[row], "label": _label(sample, row)}
                | ({"split": Split(splits_N[row]).name.lower()} if has_splits else {})
                for row in rows[:4]
            ]
            for rows in shown
        ],
    }


def _label(sample: Sample, row: int) -> str:
    return str(sample.examples.classes[sample.targets[row]])


def _suspects(best: Racer) -> dict[str, Any]:
    likely_NK, sample = best.probes[best.best_tap].likely_NK, best.sample
    assert likely_NK is not None
    rows = label_errors(likely_NK, sample.targets)
    uris = sample.items["uri"].to_pylist()
    return {
        "count": len(rows),
        "examples": [
            {
                "uri": uris[row],
                "label": _label(sample, row),
                "suggested": sample.examples.classes[int(likely_NK[row].argmax())],
                "probability": round(float(likely_NK[row].max()), 4),
            }
            for row in rows[:SHOWN]
        ],
    }

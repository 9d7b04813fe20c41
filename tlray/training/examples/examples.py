"""Labelled images: which image has which target and is in which split. Nothing is dropped without being counted.

Shape legend: N images, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
import pyarrow as pa

from tlray.config import ExamplesConfig
from tlray.errors import ExamplesError
from tlray.predictor import Task
from tlray.training.examples.labels import Labels, read_labels, shown
from tlray.training.examples.splits import LEAST_ROWS, hash_splits, named_splits
from tlray.training.examples.targets import check_numbers, checked_labels, make_targets, standard_of

__all__ = ["Examples", "Split", "Task", "read_examples"]


class Split(IntEnum):
    """What an example is for: to train on, to choose by, or to test on."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Examples:
    """Labelled images, in the order of the images that were given.

    Attributes:
        uris: N.
        targets: int64 N, positions in `classes` (single); float32 N, K of 0 and 1 (multi); float64 N, K of values (regression).
        splits_N: uint8, `Split`.
        task: what is predicted.
        classes: names of the K outputs.
        rows_N: int64, where each was among the images that were given.
        counts: `images` given, `labelled` ones, and what `skip` allowed to be left out, by its name there.
    """

    uris: pa.StringArray
    targets: np.ndarray
    splits_N: np.ndarray
    task: Task
    classes: tuple[str, ...]
    rows_N: np.ndarray
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.splits_N)

    @property
    def left_out(self) -> dict[str, int]:
        """How many images or labels were left out, by reason."""
        return {name: count for name, count in self.counts.items() if count and name not in ("images", "labelled")}

    @cached_property
    def standard(self) -> tuple[np.ndarray, np.ndarray]:
        """mean_K and std_K, float64, of a regression's targets in the training rows; see `standard_of`."""
        return standard_of(self.targets[self.positions(Split.TRAIN)])

    @property
    def learned_targets(self) -> np.ndarray:
        """Targets as heads and networks learn them: those of a regression standardised, in float32."""
        if self.task != "regression":
            return self.targets
        mean_K, std_K = self.standard
        standardised_NK: np.ndarray = ((self.targets - mean_K) / std_K).astype(np.float32)
        return standardised_NK

    def positions(self, split: Split) -> np.ndarray:
        """Positions of a split's rows, int64, in order."""
        return np.flatnonzero(self.splits_N == split)


def read_examples(
    uris: pa.StringArray,
    column_labels: pa.StringArray,
    config: ExamplesConfig,
    *,
    groups_N: np.ndarray | None = None,
    columns: Mapping[str, pa.Array] | None = None,
) -> Examples:
    """Join images with their labels and split them.

    Args:
        uris: of the images that can be trained on.
        column_labels: of the same images, as the source or table has them; null where there is none.
        config: `labels`, `label_columns`, `separator`, `task`, `split`, `skip` and `seed` are used.
        groups_N: int64; images of the same number stay on one side of the split (beside `split.group`).
        columns: of a table, see `tlray.training.examples.labels.read_labels`.

    Raises:
        ExamplesError: labels and images do not fit together; the message counts what is wrong.
    """
    _check_columns(config)
    labels = read_labels(uris, column_labels, config, columns)
    names = ("label",) if config.labels == "folder" else config.label_columns
    values = [checked_labels(one, name, config.task, config.separator) for one, name in zip(labels.values, names, strict=True)]
    counts = {"images": len(uris)}
    rows_N = _labelled(uris, values, labels.missing, config, counts)
    classes, targets = make_targets([one.take(pa.array(rows_N)) for one in values], config.task, config.label_columns)
    if config.task == "single":
        kept_N = _not_rare(targets, classes, config, counts)
        rows_N, targets = rows_N[kept_N], targets[kept_N]
        present, targets = np.unique(targets, return_inverse=True)
        classes = tuple(classes[at] for at in present)
        _check_classes(classes)
    splits_N = _splits(uris.take(pa.array(rows_N)), targets, rows_N, labels, config, groups_N)
    if config.task == "multi":
        seen_K = _seen(targets[splits_N == Split.TRAIN], classes, config, counts)
        classes, targets = tuple(np.array(classes, object)[seen_K]), targets[:, seen_K]
    examples = Examples(uris.take(pa.array(rows_N)), targets, splits_N, config.task, classes, rows_N, counts)
    counts["labelled"] = len(examples)
    _check_splits(examples, config)
    return examples


def _check_columns(config: ExamplesConfig) -> None:
    if len(set(config.label_columns)) != len(config.label_columns):
        raise ExamplesError(f"label_columns names a column twice: {', '.join(config.label_columns)}; name each once")
    if config.task != "regression" and len(config.label_columns) != 1:
        raise ExamplesError(
            f"label_columns names {len(config.label_columns)} columns, expected one for task {config.task}; "
            "several labels of one image go into one cell, see separator"
        )


def _labelled(
    uris: pa.StringArray, values: Sequence[pa.Array], missing: Sequence[str], config: ExamplesConfig, counts: dict[str, int]
) -> np.ndarray:
    """Find the rows that have all labels.

    Raises:
        ExamplesError: there are others, or labels without images, and `skip` does not allow it.
    """
    has_N = np.ones(len(uris), bool)
    for value in values:
        has_N &= value.is_valid().to_numpy(zero_copy_only=False)
    rows_N = np.flatnonzero(has_N)
    if not len(rows_N):
        raise ExamplesError(
            f"none of the {len(uris)} images (such as {uris[0]}) has a label by labels: {config.labels!r}"
            + (f"; the file names others, such as {shown(missing)}" if missing else "")
            + "; expected column (the table's own), folder, or a file with a column of URIs and one of labels"
        )
    unlabelled = [str(uris[at]) for at in np.flatnonzero(~has_N)[:4]]
    _allow("unlabelled", len(uris) - len(rows_N), unlabelled, "images have no label", config, counts)
    what = "labels are of images that are not there, or have no vector (`tlray show` counts those that failed)"
    _allow("missing", len(missing), missing, what, config, counts)
    return rows_N


def _allow(name: str, count: int, of: Sequence[str], what: str, config: ExamplesConfig, counts: dict[str, int]) -> None:
    if not count:
        return
    if name not in config.skip:
        raise ExamplesError(f"{count} {what}: {shown(of)}; mend the labels, or leave them out and counted with --skip {name}")
    counts[name] = count


def _not_rare(targets: np.ndarray, classes: tuple[str, ...], config: ExamplesConfig, counts: dict[str, int]) -> np.ndarray:
    """Whether each row's class has enough rows."""
    sizes = np.bincount(targets, minlength=len(classes))
    rare = [name for name, size in zip(classes, sizes, strict=True) if size < LEAST_ROWS]
    what = "classes have one image alone, so that nothing is left to choose or test by"
    _allow("rare", len(rare), rare, what, config, counts)
    return np.asarray(sizes[targets] >= LEAST_ROWS)


def _seen(targets_NK: np.ndarray, classes: tuple[str, ...], config: ExamplesConfig, counts: dict[str, int]) -> np.ndarray:
    """Whether each label of `multi` has an image to train on; bool, K."""
    seen_K: np.ndarray = np.any(targets_NK, axis=0)
    unseen = [name for name, is_seen in zip(classes, seen_K, strict=True) if not is_seen]
    _allow("rare", len(unseen), unseen, "labels have no image to train on, all theirs are in other splits", config, counts)
    if not seen_K.any():
        raise ExamplesError(f"no image to train on has any of the {len(classes)} labels; give more labels or other splits")
    return seen_K


def _check_classes(classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise ExamplesError(
            f"all images have the same label {classes[0]!r}; expected at least two classes: give labels as a file, or as "
            "folder, with the images of each class in a folder of its own"
            if classes
            else _EMPTY
        )


_EMPTY = "no class has two images or more; give more labels"


def _splits(
    uris: pa.StringArray,
    targets: np.ndarray,
    rows_N: np.ndarray,
    labels: Labels,
    config: ExamplesConfig,
    groups_N: np.ndarray | None,
) -> np.ndarray:
    groups_N = _groups(rows_N, labels, config, groups_N)
    if labels.split is not None and config.split.column:
        splits_N = named_splits(labels.split.take(pa.array(rows_N)).to_pylist(), config.split.column)
        if groups_N is not None:
            _check_groups(uris, splits_N, groups_N, config.split.column)
        return splits_N
    strata_N = targets if config.task == "single" else np.zeros(len(rows_N), np.int64)
    return hash_splits(uris.to_pylist(), strata_N, config.split, config.seed, groups_N)


def _groups(rows_N: np.ndarray, labels: Labels, config: ExamplesConfig, groups_N: np.ndarray | None) -> np.ndarray | None:
    """The group of each row, int64; None where there are none."""
    if config.split.group_duplicates is not None and groups_N is None:
        raise ExamplesError("split.group_duplicates compares vectors, and there are none here; name a column with split.group")
    if labels.group is not None and groups_N is not None:
        raise ExamplesError("split.group and split.group_duplicates are both given; expected one of them")
    if labels.group is not None:
        names = labels.group.take(pa.array(rows_N)).to_pylist()
        # An image without a group is one of its own.
        own = [f"group {name}" if name is not None else f"row {at}" for at, name in enumerate(names)]
        return np.asarray(np.unique(np.array(own, object), return_inverse=True)[1])
    return None if groups_N is None else groups_N[rows_N]


def _check_groups(uris: pa.StringArray, splits_N: np.ndarray, groups_N: np.ndarray, column: str) -> None:
    """No group is in two of the splits that a column says."""
    group_of_pair = np.unique(groups_N * len(Split) + splits_N) // len(Split)
    torn = np.flatnonzero(np.bincount(group_of_pair) > 1)
    if len(torn):
        rows = np.flatnonzero(np.isin(groups_N, torn))
        some = [
            f"{uris[at]} ({Split(splits_N[at]).name.lower()})" for at in rows[np.argsort(groups_N[rows], kind="stable")][:4]
        ]
        raise ExamplesError(
            f"{len(torn)} groups, of {len(rows)} images, are in more than one split by the column {column}: {shown(some)}; "
            "mend that column, or leave it out, or leave out split.group and split.group_duplicates"
        )


def _check_splits(examples: Examples, config: ExamplesConfig) -> None:
    """Refuse splits of which a side is empty, and classes that have nothing to learn from."""
    for split in (Split.TRAIN, Split.VALIDATION):
        if not len(examples.positions(split)):
            raise ExamplesError(
                f"no image is in the {split.name.lower()} split ({len(examples)} images, validation {config.split.validation}, "
                f"test {config.split.test}, column {config.split.column}); give more images or other shares"
            )
    if examples.task == "regression":
        check_numbers(examples.targets[examples.positions(Split.TRAIN)], examples.classes)
    if examples.task == "single":
        seen = np.bincount(examples.targets[examples.positions(Split.TRAIN)], minlength=len(examples.classes))
        unseen = [name for name, count in zip(examples.classes, seen, strict=True) if not count]
        if unseen:
            raise ExamplesError(
                f"{len(unseen)} classes have no image to train on, all theirs are in other splits: {shown(unseen)}; "
                "move some of them, or leave the classes out"
            )

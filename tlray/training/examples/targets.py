"""From labels, as files and tables have them, to the targets of a task.

Shape legend: N labelled images, K outputs.
"""

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import ExamplesError, SourceError
from tlray.lake.source.label_text import label_texts
from tlray.predictor import Task
from tlray.training.examples.labels import shown

_log = logging.getLogger(__name__)

LEAST_STEPS = 100.0
"""Numbers that float32, in which predictions are made, must tell apart within one standard deviation of a regression's targets.
Rounding to steps of h has the variance h**2 / 12 (Bennett 1948), here at most 1e-5 of the targets' own."""


def checked_labels(values: pa.Array, column: str, task: Task, separator: str) -> pa.Array:
    """Bring the labels of one column to the form that a task takes.

    Args:
        values: of any type.
        column: its name, for messages.
        task: what they are to be labels of.
        separator: between the labels of one image, of task multi.

    Returns:
        Strings (single), lists of strings (multi) or float64 (regression); null where an image has no label.

    Raises:
        ExamplesError: they are no labels of such a task; the message says of which they may be.
    """
    try:
        if task == "single":
            return _single(values, column)
        return _multi(values, separator) if task == "multi" else _numbers(values, column)
    except (SourceError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise ExamplesError(f"the column {column} of {values.type} cannot be labels of task {task}: {what}") from error


def _single(values: pa.Array, column: str) -> pa.Array:
    if _is_list(values.type):
        raise ExamplesError(
            f"the column {column} holds lists of labels, expected one label for each image; several labels of an image are "
            "--task multi"
        )
    return _stripped(label_texts(values))


def _stripped(texts: pa.Array) -> pa.Array:
    """Take off spaces around labels, and say so: ` cat` and `cat` are hardly two classes."""
    stripped = pc.utf8_trim_whitespace(texts)
    odd = pc.fill_null(pc.not_equal(stripped, texts), False)
    if count := pc.sum(odd).as_py():
        some = [repr(one) for one in pc.unique(texts.filter(odd)).to_pylist()]
        _log.warning("%d labels have spaces around them, which are taken off: %s", count, shown(some))
    return stripped


def _multi(values: pa.Array, separator: str) -> pa.Array:
    """Split texts into lists; of an empty text no label applies, which is a label too."""
    if _is_list(values.type):
        inner = values.cast(pa.list_(values.type.value_type))
        texts = _stripped(label_texts(inner.flatten()))
        parents, is_null = pc.list_parent_indices(inner).to_pylist(), inner.is_null().to_pylist()
    else:
        whole = values.cast(pa.string()) if not pa.types.is_floating(values.type) else label_texts(values)
        is_missing = pc.and_(pc.is_null(label_texts(whole)), pc.not_equal(pc.utf8_trim_whitespace(whole), ""))
        is_null = pc.fill_null(is_missing, True).to_pylist()
        split = pc.split_pattern(pc.fill_null(whole, ""), separator)
        texts = pc.utf8_trim_whitespace(label_texts(split.flatten()))  # a space after the separator is how people write
        parents = pc.list_parent_indices(split).to_pylist()
    lists: list[list[str] | None] = [None if null else [] for null in is_null]
    for row, text in zip(parents, texts.to_pylist(), strict=True):
        mine = lists[row]
        if mine is not None and text is not None:
            mine.append(text)
    return pa.array(lists, pa.list_(pa.string()))


def _numbers(values: pa.Array, column: str) -> pa.Array:
    """Numbers in float64; NaN and empty texts are none.

    Raises:
        ExamplesError: other texts, infinite numbers, lists, dates.
    """
    numbers: list[float | None] = []
    odd: list[str] = []
    for value in values.to_pylist():
        number = _number(value)
        if number is None and not _is_missing(value):
            odd.append(str(value))
        numbers.append(number)
    if odd:
        raise ExamplesError(
            f"{len(odd)} values of {column} are not finite numbers ({shown(odd)}); mend them, or leave their cells empty and "
            "--skip unlabelled"
        )
    return pa.array(numbers, pa.float64())


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, str) and "_" in value:  # Python reads 1_000 as 1000
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _is_missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan", "<na>"))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def make_targets(labels: Sequence[pa.Array], task: Task, columns: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Make the targets of labelled images.

    Args:
        labels: as `checked_labels` gives them, without nulls; one array for each label column.
        task: what they are labels of.
        columns: the names of these columns.

    Returns:
        The names of the K outputs, and targets as `Examples` has them.

    Raises:
        ExamplesError: no image has any label.
    """
    if task == "regression":
        return columns, np.stack([one.to_numpy(zero_copy_only=False) for one in labels], axis=1)
    if task == "single":
        found, positions = np.unique(np.array(labels[0].to_pylist(), object), return_inverse=True)
        return _said(tuple(found.tolist())), positions.astype(np.int64)
    sets = [set(names) for names in labels[0].to_pylist()]
    classes = tuple(sorted(set().union(*sets)))
    if not classes:
        raise ExamplesError("no image has any label: every list is empty; expected at least one label")
    at = {name: position for position, name in enumerate(classes)}
    targets = np.zeros((len(sets), len(classes)), np.float32)
    for row, names in enumerate(sets):
        targets[row, [at[name] for name in names]] = 1
    return _said(classes), targets


def _said(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Say which classes hardly differ; they stay what they are."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    twins = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if twins:
        _log.warning("classes that differ in case, spaces or the encoding of letters alone are kept apart: %s", shown(twins))
    return classes


def check_numbers(targets_NK: np.ndarray, columns: Sequence[str]) -> None:
    """Refuse numbers of which predictions in float32 cannot tell anything.

    Args:
        targets_NK: float64, of the training rows of a regression.
        columns: their names; K.

    Raises:
        ExamplesError: all are the same, or they lie so far from 0, or so near to it, that float32 hardly tells them apart.
    """
    largest = float(np.finfo(np.float32).max)
    for column, values_N in zip(columns, targets_NK.T, strict=True):
        if values_N.max() == values_N.min():
            raise ExamplesError(
                f"all {len(values_N)} images to train on have the same value {values_N[0]:g} of {column}; there is nothing to "
                "learn: leave the column out"
            )
        middle, spread = float(values_N.mean()), float(values_N.std())
        reach = float(np.abs(values_N).max())
        step = float(np.spacing(np.float32(min(reach, largest / 2))))
        if reach > largest or step * LEAST_STEPS > spread:
            raise ExamplesError(
                f"the values of {column} lie around {middle:.10g} with a standard deviation of {spread:.3g}, and predictions "
                f"are float32, whose numbers there are {step:.3g} apart; train on the values minus {middle:.10g}, or on "
                "another unit"
            )


def standard_of(targets_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a regression's training rows.

    Heads and networks learn (target - mean) / std: a step of AdamW moves a bias by the learning rate at most, whatever the
    unit, and the loss, by which the best is chosen, counts each output by its own variance.

    Args:
        targets_NK: float64.

    Returns:
        mean_K and std_K, float64; std is 1 where all are the same.
    """
    varies_K = targets_NK.max(axis=0) > targets_NK.min(axis=0)
    return targets_NK.mean(axis=0), np.where(varies_K, targets_NK.std(axis=0), 1.0)

"""Splits: exact in each class, stable, and groups whole."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tlray.config import SplitConfig
from tlray.errors import ExamplesError
from tlray.training.examples.splits import _cut, hash_splits, named_splits


def uris(count: int) -> list[str]:
    return [f"s3://b/{number}.jpg" for number in range(count)]


def test_shares_are_exact_in_each_class() -> None:
    classes = np.repeat([0, 1, 2, 3], [100, 20, 3, 2])
    splits = hash_splits(uris(125), classes, SplitConfig(validation=0.2, test=0.1), 0)
    counts = {one: Counter(splits[classes == one].tolist()) for one in range(4)}
    assert counts == {0: {0: 70, 1: 20, 2: 10}, 1: {0: 14, 1: 4, 2: 2}, 2: {0: 1, 1: 1, 2: 1}, 3: {0: 1, 1: 1}}


def test_an_image_keeps_its_side_whatever_the_order_and_another_seed_gives_another_split() -> None:
    names, classes = uris(300), np.arange(300) % 3
    splits = hash_splits(names, classes, SplitConfig(), 0)
    order = np.random.default_rng(0).permutation(300)
    again = hash_splits([names[at] for at in order], classes[order], SplitConfig(), 0)
    assert np.array_equal(again, splits[order])
    assert not np.array_equal(hash_splits(names, classes, SplitConfig(), 1), splits)


def test_few_change_sides_when_images_come() -> None:
    names = uris(1100)
    before = hash_splits(names[:1000], np.zeros(1000, int), SplitConfig(), 0)
    after = hash_splits(names, np.zeros(1100, int), SplitConfig(), 0)[:1000]
    assert np.mean(before != after) < 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=80))
def test_groups_are_never_cut(rows: list[tuple[int, int]]) -> None:
    classes, groups = np.array(rows).T
    splits = hash_splits(uris(len(rows)), classes, SplitConfig(), 0, groups)
    assert all(len(set(splits[groups == group])) == 1 for group in set(groups))


def test_groups_meet_the_shares_up_to_one_group() -> None:
    groups = np.repeat(np.arange(100), 5)
    splits = hash_splits(uris(500), np.zeros(500, int), SplitConfig(validation=0.2, test=0.2), 0, groups)
    assert Counter(splits.tolist()) == {0: 300, 1: 100, 2: 100}


@pytest.mark.parametrize(
    ("sizes", "shares", "expected"),
    [
        ([2, 2, 100], {}, [2, 1, 0]),
        ([1, 1, 1, 60], {}, [2, 2, 1, 0]),
        ([1, 1, 1], {"test": 0.85, "validation": 0.1}, [2, 1, 0]),
        ([2, 1, 1], {"test": 0.05, "validation": 0.9}, [1, 1, 0]),
        ([60, 60], {}, [1, 0]),
        ([60, 60, 60, 60], {"test": 0}, [1, 0, 0, 0]),
        ([1], {}, [0]),
    ],
)
def test_large_groups_leave_some_to_train_on_and_some_to_choose_by(sizes: list[int], shares: dict, expected: list[int]) -> None:
    assert _cut(np.array(sizes), SplitConfig(**shares)).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=8), st.floats(0.01, 0.98), st.floats(0, 0.98))
def test_there_is_always_some_to_train_on_and_some_to_choose_by(sizes: list[int], validation: float, share: float) -> None:
    splits = _cut(np.array(sizes), SplitConfig(validation=validation, test=share * (1 - validation)))
    assert {0, 1} <= set(splits.tolist())


def test_shares_that_leave_nothing_to_train_on() -> None:
    with pytest.raises(ValidationError, match=r"validation 0.4 and test 0.6 leave nothing to train on"):
        SplitConfig(validation=0.4, test=0.6)


def test_names_of_splits() -> None:
    assert named_splits(["train", "Val", " test", "validation"], "split").tolist() == [0, 1, 2, 1]
    with pytest.raises(ExamplesError, match=r"of 3 images \(None, holdout\)"):
        named_splits(["train", "holdout", None, None], "split")

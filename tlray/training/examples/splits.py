"""Which rows are trained on, chosen by and tested on: by a hash of the URI, in each class alike; groups stay together.

Shape legend: N rows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from tlray.config import SplitConfig
from tlray.errors import ExamplesError
from tlray.training.examples.labels import shown

SPLIT_NAMES = {
    "train": 0, "training": 0,
    "validation": 1, "valid": 1, "val": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip
"""What a column of splits may say, and its `Split`."""

LEAST_ROWS = 2
"""The least rows of a class: one to train on and one to choose by."""


def hash_splits(
    uris: Sequence[str], strata_N: np.ndarray, config: SplitConfig, seed: int, groups_N: np.ndarray | None = None
) -> np.ndarray:
    """Cut each stratum by the order of its rows' hashes, so that shares are exact in each.

    Rows keep their order for ever, so those of an image change side only where the counts of its stratum move the cut.
    A group counts to the stratum of its first row by hash, is ordered by that hash, and goes where most of it fits; so with
    groups shares are met up to one group.

    Args:
        uris: N.
        strata_N: int64, the class of each row; one number for all where there are no classes.
        config: shares of validation and test.
        seed: another one gives another split.
        groups_N: int64, rows of one number stay together.

    Returns:
        splits_N, uint8.
    """
    hashes = [hashlib.blake2b(f"{seed}\n{uri}".encode(), digest_size=8).digest() for uri in uris]
    order_N = np.array(sorted(range(len(uris)), key=lambda at: (hashes[at], uris[at])), np.int64)
    group_N = np.arange(len(uris)) if groups_N is None else groups_N
    # Of each group its first row by hash; then groups in the order of these, each with all of its rows.
    _, first_of_group, member_N = np.unique(group_N[order_N], return_index=True, return_inverse=True)
    sizes_G = np.bincount(member_N)
    stratum_G = strata_N[order_N[first_of_group]]
    split_G = np.zeros(len(sizes_G), np.uint8)
    for stratum in np.unique(stratum_G):
        groups = np.flatnonzero(stratum_G == stratum)
        groups = groups[np.argsort(first_of_group[groups], kind="stable")]
        split_G[groups] = _cut(sizes_G[groups], config)
    splits_N = np.empty(len(uris), np.uint8)
    splits_N[order_N] = split_G[member_N]
    return splits_N


def _cut(sizes: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Splits of one stratum's groups, in order: test first, then validation, the rest is trained on."""
    rows, ends = int(sizes.sum()), np.cumsum(sizes)
    middles = ends - sizes / 2
    test = _share(rows, config.test) if len(sizes) > LEAST_ROWS else 0
    validation = _share(rows, config.validation)
    splits = np.where(middles < test, 2, np.where(middles < test + validation, 1, 0)).astype(np.uint8)
    # Large groups or shares: neither side may be without any, training first.
    if not (splits == 0).any():
        splits[-1] = 0
    if len(sizes) >= LEAST_ROWS and not (splits == 1).any():
        trained_on = np.flatnonzero(splits == 0)
        splits[trained_on[0] if len(trained_on) > 1 else -2] = 1
    return splits


def _share(rows: int, share: float) -> int:
    return max(1, round(rows * share)) if share else 0


def named_splits(names: Sequence[str | None], column: str) -> np.ndarray:
    """Splits that the labels file says.

    Raises:
        ExamplesError: other words than those of `SPLIT_NAMES`, or none.
    """
    words = [None if name is None else name.strip().lower() for name in names]
    odd = sorted({str(name) for name, word in zip(names, words, strict=True) if word not in SPLIT_NAMES})
    if odd:
        count = sum(word not in SPLIT_NAMES for word in words)
        raise ExamplesError(
            f"the column {column} says other than train, validation or test of {count} images ({shown(odd)}); "
            "mend the labels file"
        )
    return np.array([SPLIT_NAMES[word] for word in words if word is not None], np.uint8)

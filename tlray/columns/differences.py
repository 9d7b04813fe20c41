"""Which values of a column are other ones than before; two nulls are the same.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def differ(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> np.ndarray:
    """Tell which of two columns' values differ, row by row.

    Args:
        ours: N values, of a type that travels.
        theirs: N of the same type.

    Returns:
        N bools.
    """
    one, other = (values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values for values in (ours, theirs))
    return _differ_lists(one, other) if pa.types.is_list(one.type) else _differ_plain(one, other)


def _differ_plain(one: pa.Array, other: pa.Array) -> np.ndarray:
    unequal = pc.fill_null(pc.not_equal(one, other), False)
    return np.asarray(pc.or_(unequal, pc.xor(pc.is_null(one), pc.is_null(other))), bool)


def _differ_lists(one: pa.Array, other: pa.Array) -> np.ndarray:
    lengths_N, others_N = (np.asarray(pc.fill_null(pc.list_value_length(lists), -1)) for lists in (one, other))
    differs_N: np.ndarray = lengths_N != others_N
    same_N = ~differs_N & (lengths_N > 0)
    mask = pa.array(same_N)
    differs = _differ_plain(pc.list_flatten(one.filter(mask)), pc.list_flatten(other.filter(mask)))
    rows = np.repeat(np.flatnonzero(same_N), lengths_N[same_N])
    differs_N[rows[differs]] = True
    return differs_N

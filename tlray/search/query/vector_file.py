"""Query vectors out of a NumPy file.

Shape legend: B vectors, D dimensions.
"""

import io
import struct
import tokenize
import warnings

import numpy as np

from tlray.errors import ObjectNotFoundError, ObjectTooLargeError, QueryError, first_line
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri

MAX_VECTOR_FILE_BYTES = 2**30
"""Half a million vectors of 512 floats; more queries than that are a table's (`--queries`), which is answered part by part."""

_UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, EOFError, OSError, struct.error),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)
"""What NumPy and Python's own parser, which reads the header, raise for files that are damaged."""

_EXPECTED = "expected a .npy file of numbers, one vector (D,) or rows of them (B, D), as numpy.save writes it"


def read_vector_file(place: str) -> np.ndarray:
    """The vectors of a `.npy` file, in memory order of any kind and of any numeric type.

    Args:
        place: URI or path.

    Returns:
        queries_BD, B at least 1.

    Raises:
        QueryError: no such file, or one of another kind, or without a vector.
    """
    uri = to_uri(place)
    try:
        data = open_store(uri).read(uri, max_bytes=MAX_VECTOR_FILE_BYTES).data
    except ObjectNotFoundError as error:
        raise QueryError(f"there is no file {place}; {_EXPECTED}") from error
    except ObjectTooLargeError as error:
        raise QueryError(f"{error}; give so many queries as a table (--queries)") from error
    if data[:4] == b"PK\x03\x04":
        raise QueryError(f"{place} is an archive of arrays (.npz); save the one that is meant with numpy.save; {_EXPECTED}")
    if not data.startswith(np.lib.format.MAGIC_PREFIX):
        raise QueryError(f"{place} is not a NumPy array; {_EXPECTED}")
    try:
        with warnings.catch_warnings(action="ignore"):  # what it warns of is read all the same
            queries = np.load(io.BytesIO(data), allow_pickle=False)
    except _UNREADABLE as error:
        said = first_line(error)
        if "allow_pickle" in said:
            said = "it holds Python objects, which are not read as they can run code"
        raise QueryError(f"{place} cannot be read: {said}; {_EXPECTED}") from error
    if queries.ndim not in (1, 2) or queries.dtype.kind not in "fiub":
        raise QueryError(f"{place} has the shape {queries.shape} of {queries.dtype}; {_EXPECTED}")
    if not queries.size:
        raise QueryError(f"{place} has no vector in it (shape {queries.shape}); {_EXPECTED}")
    return np.atleast_2d(queries)

"""The text of a label: one rule for every place that labels come from.

A class must not depend on the format of the file that names it. So `1`, `1.0`, `True` and a missing value come out the same
from a CSV file (where all is text), a Parquet column, a JSON field and a text file:

- Missing is null, NaN, an empty or blank text, and the texts `nan`, `NaN` and `<NA>`, which is how pandas and NumPy write a
  missing value into text. `NA`, `None` and `null` are names like any other.
- A whole number is written without a fraction, whether it was stored as 1, 1.0 or the text `1.0`: one missing label makes
  pandas turn a column of whole numbers into floats. `007`, `1.50` and `1e5` stay what they are.
- Booleans are `true` and `false`, however they are capitalised.
"""

from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import SourceError
from tlray.lake.source.member_uri import MEMBER_PATTERN

_MISSING = pa.array(["", "nan", "NaN", "<NA>"])
_BOOLEANS = pa.array(["True", "TRUE", "False", "FALSE"])
_WHOLE_NUMBER = r"^([+-]?(?:0|[1-9][0-9]*))\.0$"

_REPR_BELOW, _REPR_FROM = 1e-4, 1e15
"""Outside of these, Arrow writes a float in another way than Python, JSON and pandas do (0.00001 for 1e-05)."""

_FOLDER = r"(?s)^[a-z0-9]+://[^/]*/(?:.*/)?(?P<folder>[^/]+)/[^/]*$"
_MEMBER_FOLDER = r"(?s)^(?:.*/)?(?P<folder>[^/]+)/[^/]*$"

Column = TypeVar("Column", pa.Array, pa.ChunkedArray)


def label_texts(values: Column) -> Column:
    """The labels of N images as texts, null where an image has none.

    Args:
        values: texts, numbers or booleans, of any file format; N.

    Returns:
        N strings.

    Raises:
        SourceError: they are lists, structs, or bytes that are not UTF-8.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if pa.types.is_nested(kind):
        raise SourceError(f"labels of type {kind} are no texts, numbers or booleans; expected one label for each image")
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return values.cast(pa.string())
    try:
        texts = _float_texts(values) if pa.types.is_floating(kind) else values.cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(f"labels of type {kind} cannot be read as text: {error}") from error
    return _normalised(texts)


def label_text(value: str | float | bool | None) -> str | None:
    """The text of one label, as `label_texts` has it; None where there is none.

    Raises:
        SourceError: it is no text, as there is half of a surrogate pair in it, which JSON can spell.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # of any size
    try:
        values = pa.array([value], None if value is not None else pa.string())
    except UnicodeEncodeError as error:
        raise SourceError(f"{value!r} has half of a surrogate pair, which is no text") from error
    text: str | None = label_texts(values)[0].as_py()
    return text


def folder_labels(uris: Column) -> Column:
    """The names of the folders that images are in, which depend on nothing but their URIs.

    Args:
        uris: of N images, or of members of tar and Parquet files.

    Returns:
        N strings; null for an object at the top of its bucket, and for a member at the top of its tar file.
    """
    if not pc.any(pc.match_substring(uris, "#")).as_py():
        return _folder(uris, _FOLDER)
    inner = pc.replace_substring_regex(uris, MEMBER_PATTERN, "")
    return pc.if_else(pc.equal(inner, uris), _folder(uris, _FOLDER), _folder(inner, _MEMBER_FOLDER))


def _folder(names: Column, pattern: str) -> Column:
    found: Column = pc.struct_field(pc.extract_regex(names, pattern), "folder")
    return found


def _float_texts(values: Column) -> Column:
    """Floats as JSON and Python write them, whole ones without a fraction."""
    texts: Column = values.cast(pa.string())
    numbers = np.abs(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy())
    is_other = np.isfinite(numbers) & (numbers != 0) & ((numbers < _REPR_BELOW) | (numbers >= _REPR_FROM))
    if not is_other.any():
        return texts
    mask = pa.array(is_other)
    others = [repr(float(text)).removesuffix(".0") for text in texts.filter(mask).to_pylist()]
    return pc.replace_with_mask(texts, mask, pa.array(others, pa.string()))


def _normalised(texts: Column) -> Column:
    """Texts without those that say nothing, and with one spelling of whole numbers and booleans."""
    if pc.any(pc.ends_with(texts, ".0")).as_py():
        texts = pc.replace_substring_regex(texts, _WHOLE_NUMBER, r"\1")
    is_boolean = pc.is_in(texts, value_set=_BOOLEANS)
    if pc.any(is_boolean).as_py():
        texts = pc.if_else(is_boolean, pc.utf8_lower(texts), texts)
    is_missing = pc.is_in(pc.utf8_trim_whitespace(texts), value_set=_MISSING)
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), texts)

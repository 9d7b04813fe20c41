"""Where labels come from: the images' own column, the names of their folders, or a file joined by URI.

Shape legend: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tlray.config import ExamplesConfig
from tlray.errors import ExamplesError, ObjectNotFoundError
from tlray.lake.source.listing.manifest import URI_COLUMNS, resolve_entry
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SHOWN = 3
"""Names that a message shows of those that it counts."""


@dataclass(frozen=True)
class Labels:
    """What is known of each image.

    Attributes:
        values: one array of length N for each label column: strings, numbers or lists of strings; null where there is none.
        split: names of splits, N, where the labels file says them.
        group: names of groups, N, likewise.
        missing: URIs of the labels file that no image has.
    """

    values: tuple[pa.Array, ...]
    split: pa.Array | None = None
    group: pa.Array | None = None
    missing: tuple[str, ...] = ()


def shown(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def labels_uri(labels: str) -> str | None:
    """The URI of the labels file that `labels` names, or None where the labels are the images' own."""
    return None if labels in ("column", "folder") else to_uri(labels)


def read_labels(uris: pa.StringArray, column_labels: pa.StringArray, config: ExamplesConfig) -> Labels:
    """Find each image's label.

    Args:
        uris: of the images, N.
        column_labels: as the table or source has them, N.
        config: `labels`, `label_columns`, `split.column` and `split.group` are used.

    Raises:
        ExamplesError: the labels file has not these columns, or says two things of one image.
        StorageError: the store failed.
    """
    file_uri = labels_uri(config.labels)
    if file_uri is None:
        if config.split.column or config.split.group:
            raise ExamplesError(
                f"split.column and split.group are columns of a labels file, but labels is {config.labels!r}; name a file"
            )
        return Labels((folder_names(uris) if config.labels == "folder" else column_labels,))
    others = [name for name in (config.split.column, config.split.group) if name]
    rows = _read_file(file_uri, [*config.label_columns, *others])
    at_N = pc.index_in(uris, value_set=rows["uri"].combine_chunks())
    missing = rows["uri"].filter(pc.invert(pc.is_in(rows["uri"], value_set=uris))).to_pylist()

    def joined(name: str | None) -> pa.Array | None:
        return rows[name].combine_chunks().take(at_N) if name else None

    values = tuple(rows[name].combine_chunks().take(at_N) for name in config.label_columns)
    return Labels(values, joined(config.split.column), joined(config.split.group), tuple(missing))


def folder_names(uris: pa.StringArray) -> pa.StringArray:
    """The last folder of each URI, or of what is inside a tar file; null where there is none."""
    inner = pc.replace_substring_regex(uris, r"(?s)^[a-z0-9]+://[^/]*", "")
    found = pc.struct_field(pc.extract_regex(inner, r"(?s)(?:^|[/#])(?P<folder>[^/#]+)/[^/]*$"), "folder")
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _read_file(uri: str, columns: list[str]) -> pa.Table:
    """`uri` and the named columns of a labels file; each image once."""
    ending = "." + uri.rpartition(".")[2].lower()
    if ending not in (*_DELIMITERS, ".parquet"):
        raise ExamplesError(
            f"labels: {uri} is neither column nor folder nor a file by its name, which would end in .csv, .tsv or .parquet"
        )
    try:
        with open_store(uri).open(uri) as stream:
            rows = pq.ParquetFile(stream).read() if ending == ".parquet" else _read_csv(stream.read(), _DELIMITERS[ending])
    except ObjectNotFoundError as error:
        raise ExamplesError(f"no labels file at {uri}; check the address and the credentials") from error
    except (pa.ArrowException, OSError) as error:
        raise ExamplesError(f"the labels file {uri} cannot be read: {error}") from error
    uri_column = next((name for name in URI_COLUMNS if name in rows.column_names), None)
    absent = [name for name in columns if name not in rows.column_names]
    if uri_column is None or absent:
        what = f"columns {', '.join(absent)}" if absent else f"column of URIs ({', '.join(URI_COLUMNS)})"
        raise ExamplesError(f"the labels file {uri} has no {what}; its columns are {', '.join(rows.column_names)}")
    folder, texts = uri.rpartition("/")[0], rows[uri_column].cast(pa.string()).to_pylist()
    resolved = pa.array([resolve_entry(folder, text, uri, at) for at, text in enumerate(texts)], pa.string())
    rows = pa.table({"uri": resolved} | {name: rows[name] for name in columns})
    return _each_once(rows, uri)


def _read_csv(data: bytes, delimiter: str) -> pa.Table:
    """All columns as text: `007` stays what it is, and an empty cell is an empty text (of task multi: no label applies)."""
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    header = data.partition(b"\n")[0].decode("utf-8-sig").strip("\r\n")
    names = [name.strip('"') for name in header.split(delimiter)]
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pyarrow.csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert)


def _each_once(rows: pa.Table, uri: str) -> pa.Table:
    """Without rows that only repeat another.

    Raises:
        ExamplesError: two rows of one image differ.
    """
    if pc.count_distinct(rows["uri"]).as_py() == len(rows):
        return rows
    first: dict[str, tuple[object, ...]] = {}
    keep, conflicts = [], []
    for at, (name, *values) in enumerate(zip(*(column.to_pylist() for column in rows.columns), strict=True)):
        if name not in first:
            first[name] = tuple(values)
            keep.append(at)
        elif first[name] != tuple(values):
            conflicts.append(name)
    if conflicts:
        raise ExamplesError(
            f"the labels file {uri} says different things of {len(set(conflicts))} images ({shown(sorted(set(conflicts)))}); "
            "keep one row an image (several labels of one image go into one cell, see separator)"
        )
    return rows.take(keep)

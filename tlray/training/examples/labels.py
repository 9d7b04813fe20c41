"""Where labels come from: the images' own column, the names of their folders, or a file joined by URI.

Shape legend: N images, L rows of a labels file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import ExamplesConfig
from tlray.errors import ExamplesError, ObjectNotFoundError
from tlray.lake.source.label_text import folder_labels, label_texts
from tlray.lake.source.listing.manifest import URI_COLUMNS, resolve_entry
from tlray.lake.source.listing.table_file import TABLE_ENDINGS, TableFile, ending_of, open_table_file
from tlray.lake.storage.uri import to_uri

_SHOWN = 3
"""Names that a message shows of those that it counts."""


@dataclass(frozen=True)
class Labels:
    """What is known of each image.

    Attributes:
        values: one array of length N for each label column, of whatever type the file has; null where there is none.
        split: names of splits, N, where the labels file says them.
        group: names of groups, N, likewise; null where an image is in none.
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


def columns_asked(config: ExamplesConfig) -> tuple[str, ...]:
    """Names of a table's columns, beside `label`, that labels, splits and groups come from; none where a file has them."""
    if config.labels != "column":
        return ()
    names = (*config.label_columns, config.split.column, config.split.group)
    return tuple(dict.fromkeys(name for name in names if name and name != "label"))


def read_labels(
    uris: pa.StringArray,
    column_labels: pa.StringArray,
    config: ExamplesConfig,
    columns: Mapping[str, pa.Array] | None = None,
) -> Labels:
    """Find the label of each image, in a file, a column or its folder.

    Args:
        uris: of the images, N.
        column_labels: as the table or source has them, N.
        config: `labels`, `label_columns`, `split.column` and `split.group` are used.
        columns: of a table, those that `columns_asked` names, N values each; None where the images are of no table.

    Raises:
        ExamplesError: the labels file has not these columns, or says two things of one image.
        SourceError: it cannot be read as what its name says.
        StorageError: the store failed.
    """
    file_uri = labels_uri(config.labels)
    if file_uri is None:
        if config.labels == "column" and columns is not None:
            return _of_table({"label": column_labels, **columns}, config)
        if config.split.column or config.split.group or config.label_columns != ("label",):
            raise ExamplesError(
                "label_columns, split.column and split.group are columns of a labels file, or of a table where labels is "
                f"column, but labels is {config.labels!r}"
                + ("; name a file" if columns is not None else " of a source; name a file")
            )
        return Labels((folder_labels(uris) if config.labels == "folder" else column_labels,))
    others = [name for name in (config.split.column, config.split.group) if name]
    rows = _read_file(file_uri, [*config.label_columns, *others])
    at_N = pc.index_in(uris, value_set=rows["uri"].combine_chunks())
    missing = rows["uri"].filter(pc.invert(pc.is_in(rows["uri"], value_set=uris))).to_pylist()

    def joined(name: str) -> pa.Array:
        return rows[f"column {name}"].combine_chunks().take(at_N)

    def texts(name: str | None) -> pa.Array | None:
        return None if name is None else label_texts(joined(name))

    values = tuple(joined(name) for name in config.label_columns)
    return Labels(values, texts(config.split.column), texts(config.split.group), tuple(missing))


def _of_table(columns: Mapping[str, pa.Array], config: ExamplesConfig) -> Labels:
    """Labels, splits and groups out of the columns of a table."""
    split, group = (label_texts(columns[name]) if name else None for name in (config.split.column, config.split.group))
    return Labels(tuple(columns[name] for name in config.label_columns), split, group)


def _read_file(uri: str, columns: Sequence[str]) -> pa.Table:
    """`uri` and, called `column <name>`, the named columns of a labels file; each image once."""
    if ending_of(uri) not in TABLE_ENDINGS:
        raise ExamplesError(
            f"labels: {uri} is neither column nor folder nor a file by its name, which would end in .csv, .tsv or .parquet"
        )
    try:
        file = open_table_file(uri)
        uri_column = _uri_column(file, columns)
        wanted = list(dict.fromkeys([uri_column, *columns]))
        batches = list(file.batches(wanted))
    except ObjectNotFoundError as error:
        raise ExamplesError(f"no labels file at {uri}; check the address and the credentials") from error
    if not batches:
        raise ExamplesError(f"the labels file {uri} has no rows; expected one for each image")
    rows = pa.Table.from_batches(batches)
    folder, texts = uri.rpartition("/")[0], _texts(rows[uri_column], uri_column, uri)
    resolved = pa.array([resolve_entry(folder, text, uri, at) for at, text in enumerate(texts)], pa.string())
    return _each_once(pa.table({"uri": resolved} | {f"column {name}": rows[name] for name in columns}), uri)


def _uri_column(file: TableFile, columns: Sequence[str]) -> str:
    """The column of URIs of a labels file that has all the others.

    Raises:
        ExamplesError: it has not; the message names its columns.
    """
    found = next((name for name in URI_COLUMNS if name in file.columns), None)
    absent = [name for name in columns if name not in file.columns]
    if found is not None and not absent:
        return found
    what = f"columns {', '.join(absent)}" if absent else f"column of URIs ({', '.join(URI_COLUMNS)})"
    raise ExamplesError(f"the labels file {file.uri} has no {what}; its columns are {', '.join(file.columns)}{file.hint()}")


def _texts(column: pa.ChunkedArray, name: str, uri: str) -> list[str | None]:
    try:
        texts: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise ExamplesError(f"the labels file {uri}: column {name} holds {column.type}, expected the URIs of images") from error
    return texts


def _each_once(rows: pa.Table, uri: str) -> pa.Table:
    """Leave out rows that only repeat another.

    Raises:
        ExamplesError: two rows of one image differ.
    """
    if pc.count_distinct(rows["uri"]).as_py() == len(rows):
        return rows
    first: dict[str, str] = {}
    keep, conflicts = [], []
    for at, (name, *values) in enumerate(zip(*(column.to_pylist() for column in rows.columns), strict=True)):
        said = repr(values)  # two NaN are not equal, but are written alike
        if name not in first:
            first[name] = said
            keep.append(at)
        elif first[name] != said:
            conflicts.append(name)
    if conflicts:
        raise ExamplesError(
            f"the labels file {uri} says different things of {len(set(conflicts))} images ({shown(sorted(set(conflicts)))}); "
            "keep one row an image (several labels of one image go into one cell, see separator)"
        )
    return rows.take(keep)

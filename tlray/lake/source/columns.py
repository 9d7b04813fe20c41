"""Which columns of a source travel into a table, and of which types they are: settled before any work is done.

A type is the one that the table has already, else the one that is declared (`price::number`), else what the source says: the
schema of a Parquet file, all cells of a text file, the first images of tar files. It stays the same in all later runs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tlray.columns.column import NO_VALUE, TYPES, Column, requested, type_of, why_not
from tlray.columns.inference import wider
from tlray.errors import SourceError
from tlray.lake.source.containers.json_fields import find
from tlray.lake.source.containers.parquet import read_schema
from tlray.lake.source.containers.tar import look_for_fields
from tlray.lake.source.listing.carried import types_in
from tlray.lake.source.listing.manifest import own_columns
from tlray.lake.source.listing.metadata import MetadataFile, find_metadata, type_of_values
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.listing.table_file import TABLE_ENDINGS, ending_of, open_table_file
from tlray.lake.source.open import some_files
from tlray.lake.source.source import Source
from tlray.lake.source.texts.columns import RowColumns

_DOCUMENTS_LOOKED_AT = 250
"""Images of each tar file whose JSON documents tell what fields there are, as where labels are looked for."""


@dataclass(frozen=True)
class Settled:
    """A source whose columns are settled.

    Attributes:
        source: with its columns.
        notes: what was left out, for people.
    """

    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """What a source says of its columns.

    Attributes:
        where: it was looked for, for messages.
        names: of all columns that could travel.
        types: by name, of those that were asked about; see `type_of`.
        notes: what is to be said of them.
    """

    where: str
    names: Sequence[str]
    types: Mapping[str, str | None]
    notes: tuple[str, ...] = ()


def with_columns(source: Source, there: Sequence[Column], reserved: Collection[str] = ()) -> Settled:
    """Settle the columns of a source.

    Args:
        source: opened.
        there: columns that travelled into the table before.
        reserved: further names of the table's own, in small letters.

    Raises:
        SourceError: the source has no such column, or one of another type than the table's.
        ConfigError: a name that is reserved, or an unknown type.
    """
    if not source.config.columns:
        return Settled(source)
    wanted = requested(source.config.columns, reserved)
    known = {column.name: column.type for column in there}
    file = _metadata_of(source)
    found = _look(source, file, wanted, known)
    notes: list[str] = list(found.notes)
    names = list(wanted) or _all_of(found, reserved, notes)
    if missing := [name for name in names if name not in found.names]:
        raise SourceError(
            f"source.columns: {found.where} has no {', '.join(missing)}; it has {', '.join(found.names) or 'none'}"
        )
    columns = []
    for name in names:
        word = _settled(name, wanted.get(name), known, found, notes, is_named=bool(wanted))
        if word is not None:
            columns.append(Column(name=name, type=word))
    settled = replace(source, columns=tuple(columns), metadata=file.read(columns) if file is not None else None)
    return Settled(settled, tuple(notes))


def _settled(
    name: str, declared: str | None, known: Mapping[str, str], found: _Found, notes: list[str], *, is_named: bool
) -> str | None:
    """The type of a column; None where it does not travel this time, which the notes say."""
    alike = next((other for other in known if other.lower() == name.lower() and other != name), None)
    if alike is not None:
        raise SourceError(f"source.columns: the table has {alike}, given {name}; capital letters do not tell columns apart")
    before, here = known.get(name), found.types.get(name, NO_VALUE)
    if before is not None and declared not in (None, before):
        raise SourceError(
            f"source.columns: {name} is of type {before} in the table, given {declared}; name another table for it"
        )
    word = before or declared
    if word is not None:
        if declared is None and here not in (NO_VALUE, word, None) and wider(str(here), word) is None:
            raise SourceError(
                f"source.columns: {name} is of type {word} in the table, but of type {here} in {found.where}; mend the source, "
                f"or say that its texts are to be read so ({name}::{word})"
                + ("" if here == "text" else ", or name another table")
            )
        return word
    if here is None:
        said = (
            f"{name} of {found.where} is of a type that does not travel; expected {', '.join(TYPES)}, or lists of one of these"
        )
        if is_named:
            raise SourceError(f"source.columns: {said}, or values of one type; leave it out, or declare a type ({name}::text)")
        notes.append(f"left out: {said}")
        return None
    if here == NO_VALUE:
        notes.append(
            f"{name} of {found.where} has no value yet; it travels once there is one, or with its type ({name}::number)"
        )
        return None
    return here


def _all_of(found: _Found, reserved: Collection[str], notes: list[str]) -> list[str]:
    """The names that can travel, the others said."""
    taken: dict[str, str] = {}
    for name in found.names:
        reason = why_not(name, reserved) or (
            f"{taken[name.lower()]} is there and capital letters do not tell names apart" if name.lower() in taken else None
        )
        if reason is None:
            taken[name.lower()] = name
        else:
            notes.append(f"left out: the column {name!r} of {found.where}, as {reason}")
    return list(taken.values())


def _metadata_of(source: Source) -> MetadataFile | None:
    """The metadata file of an image folder; None where the source has columns of its own.

    Raises:
        SourceError: it has none of either.
    """
    if source.format != "images" or (source.listing is not None and ending_of(source.listing) in TABLE_ENDINGS):
        return None
    if source.is_file:
        raise SourceError(f"source.columns: {source.uri} is one image, which has no columns; name its folder, or a manifest")
    return MetadataFile(find_metadata(source.uri))


def _look(source: Source, file: MetadataFile | None, wanted: Mapping[str, str | None], known: Mapping[str, str]) -> _Found:
    def unknown(names: Sequence[str]) -> list[str]:
        """Names whose types are to be looked for."""
        asked = [name for name in names if name in wanted] if wanted else [name for name in names if why_not(name) is None]
        return [name for name in asked if name not in known and not wanted.get(name)]

    if file is not None:
        return _Found(file.uri, file.columns, file.types(unknown(file.columns)))
    if source.kind == "parquet":
        return _in_parquet(source)
    if source.kind == "webdataset":
        return _in_tars(source, wanted)
    if source.format == "rows":
        return _in_rows(source, wanted, unknown)
    uri = source.listing or source.uri
    table = open_table_file(uri)
    own = own_columns(table, source.config, is_listing=source.listing is not None)
    names = [name for name in table.columns if name not in own]
    return _Found(uri, names, types_in(table, names if table.schema is not None else unknown(names)))


def _in_rows(source: Source, wanted: Mapping[str, str | None], unknown: Callable[[Sequence[str]], list[str]]) -> _Found:
    """What tables of texts have beside the texts; all files are looked into, as all of them are read in any case."""
    text = source.config.text
    if text in wanted:
        raise SourceError(f"source.columns: {text!r} is the column of the texts, which the table keeps as text; leave it out")
    looked = RowColumns(source.config, wanted, unknown)
    for page in source.files(ListingReport()):
        for uri in page["uri"].to_pylist():
            looked.add(uri)
    lacking = {name: count for name, count in looked.lacking.items() if name in wanted or not wanted}
    notes = (f"{count} files of {source.uri} have no column {name}: null in their rows" for name, count in lacking.items())
    return _Found(source.uri, [name for name in looked.names if name != text], looked.types, tuple(notes))


def _in_parquet(source: Source) -> _Found:
    """What the footers of some files say; a struct of an image, and bytes, are of no type that travels."""
    types: dict[str, str | None] = {}
    for uri in some_files(source):
        for field in read_schema(uri):
            before, here = types.get(field.name, NO_VALUE), type_of(field.type)
            types[field.name] = None if before is None or here is None else wider(before, here)
    return _Found(source.uri, list(types), types)


def _in_tars(source: Source, wanted: Mapping[str, str | None]) -> _Found:
    documents = [
        document for uri in some_files(source) for document in look_for_fields(uri, source.config, _DOCUMENTS_LOOKED_AT)
    ]
    top = dict.fromkeys(name for document in documents for name in document)
    nested = [name for name in wanted if name not in top and any(find(one, name) is not None for one in documents)]
    names = [*top, *nested]
    types = {name: type_of_values([find(one, name) for one in documents]) for name in names}
    # What comes in files that were not looked into may have a fraction.
    seen = {
        name: "number" if word == "integer" else "number[]" if word == "integer[]" else word for name, word in types.items()
    }
    return _Found(f"the JSON documents of {source.uri}", names, seen)

"""Listings of a source: what images, or files that hold images, there are; a page at a time, no request for each one.

Four forms: `images` below a prefix, a `manifest` that names them, `webdataset` tar shards and `parquet` files of bytes. What is
below a prefix is asked of the store, or of a listing that was made before (`tlray.lake.source.listing.inventory`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.containers.member_uri import containers_of
from tlray.lake.source.containers.members import IMAGE_SUFFIXES, SUFFIXES, check_columns, image_columns, read_schema
from tlray.lake.source.label_text import folder_labels
from tlray.lake.source.listing.inventory import read_listing
from tlray.lake.source.listing.manifest import read_manifest
from tlray.lake.source.listing.names import Globs
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import LISTING_SCHEMA, in_range
from tlray.lake.storage.uri import join, to_uri

Format = Literal["images", "manifest", "webdataset", "parquet"]
Kind = Literal["images", "webdataset", "parquet"]

PAGE_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64()), ("label", pa.string())])

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Source:
    """Where images come from; cheap to make, listed only by `pages`.

    Attributes:
        kind: what a listed item is: one image, or a file that holds images.
        format: the form of the source; for `auto`, what it turned out to be.
        uri: normalised; a prefix, one file, or a brace pattern of files.
        config: what the user asked for.
        is_file: whether `uri` names one object (or a pattern of them), not a prefix.
        listing: URI of what stands in for listing `uri`.
    """

    kind: Kind
    format: Format
    uri: str
    config: SourceConfig
    is_file: bool
    listing: str | None = None

    @property
    def gives_labels(self) -> bool:
        """Whether a listed item's label, or its having none, is known before its file is read."""
        return self.kind == "images" and self.config.labels != "none"

    @property
    def asks_the_store(self) -> bool:
        """Whether what is listed is there, as far as the store knows at this moment."""
        return self.format != "manifest" and self.listing is None

    def pages(self) -> Iterator[pa.Table]:
        """The items, streamed. A manifest may name one twice; no other source does.

        None at all is an error, as a wrong prefix must not empty a table; but a range of names may have become empty.

        Yields:
            Pages of PAGE_SCHEMA. Etag and size are null where a manifest does not say them, the label where there is none
            (that of a member is known only when its file is read).

        Raises:
            SourceError: nothing is left in the end (in a range: of what is listed), or a manifest is broken.
            AccessError: the credentials do not allow to list.
            StorageError: the store failed.
        """
        listed = kept = 0
        example = ""
        for page in self._found():
            rows = self._with_labels(page.filter(self._keeps(page["uri"])))
            if not listed and len(page):
                example = page["uri"][0].as_py()
            listed, kept = listed + len(page), kept + len(rows)
            if len(rows):
                yield rows
        if not kept and (listed or self._range == (None, None)):
            seen = f"{listed} listed ({example} ...), all left out" if listed else "nothing is listed there"
            where = f"the listing {self.listing} of {self.uri}" if self.listing else f"the source {self.uri}"
            raise SourceError(f"{where} has no {self._wanted()}: {seen}")

    def covers(self, uris: pa.Array) -> np.ndarray:
        """Which rows of a table would be listed if they still existed, and are deleted if they are not listed any more.

        A manifest covers every row in its range of names: it is the whole truth of the table that follows it.

        Args:
            uris: of items, or of members of containers; N strings.

        Returns:
            N bools.
        """
        if self.kind != "images":
            uris = containers_of(uris)
        first, end = self._range
        covered = np.ones(len(uris), bool)
        if first is not None:
            covered &= np.asarray(pc.greater_equal(uris, first), bool)
        if end is not None:
            covered &= np.asarray(pc.less(uris, end), bool)
        if self.format != "manifest":
            covered &= np.asarray(pc.and_(self._is_below(uris), self._keeps(uris)), bool)
        return covered

    @cached_property
    def _range(self) -> tuple[str | None, str | None]:
        """URIs from the first on, before the second."""
        root = self.uri.rpartition("/")[0] if self.is_file else self.uri
        ends = (self.config.keys_from, self.config.keys_to)
        first, end = (name if name is None or "://" in name else join(root, name) for name in ends)
        if first is not None and end is not None and first >= end:
            raise SourceError(f"no name is from {first} on and before {end}; source.keys_from must come before source.keys_to")
        return first, end

    def _found(self) -> Iterator[pa.Table]:
        if self.listing is not None:
            for page in self._listed(self.listing):
                yield in_range(page, *self._range)
        elif self.format == "manifest":
            for page in read_manifest(self.uri, self.config):
                yield in_range(page, *self._range)
        elif self.is_file:
            yield in_range(self._files(), *self._range)
        else:
            first, end = self._range
            yield from open_store(self.uri).list(self.uri, first=first, end=end)

    def _listed(self, listing: str) -> Iterator[pa.Table]:
        """What a listing that was made before names below the prefix."""
        for page in read_listing(listing, self.uri, self.config):
            yield page.filter(self._is_below(page["uri"]))

    def _files(self) -> pa.Table:
        """The one file, or those of a pattern."""
        store = open_store(self.uri)
        found = [(uri, store.stat(uri)) for uri in _expanded(self.uri)]
        missing = [uri for uri, info in found if info is None]
        if missing:
            raise SourceError(f"{self.uri} names {len(found)} files, of which {len(missing)} are missing: {missing[0]} ...")
        rows = [{"uri": info.uri, "etag": info.etag, "size_bytes": info.size_bytes} for _, info in found if info]
        return pa.Table.from_pylist(rows, LISTING_SCHEMA)

    def _is_below(self, uris: pa.Array) -> pa.Array:
        if self.is_file:
            return pc.is_in(uris, value_set=pa.array(_expanded(self.uri)))
        return pc.starts_with(uris, _folder(self.uri))

    def _keeps(self, uris: pa.Array | pa.ChunkedArray) -> pa.Array:
        """By name alone: globs, and for containers the suffix."""
        if self.is_file or self.format == "manifest":
            return pa.array(np.ones(len(uris), bool))
        relative = pc.utf8_slice_codeunits(uris, start=len(_folder(self.uri)))
        if isinstance(relative, pa.ChunkedArray):
            relative = relative.combine_chunks()
        keeps = self._globs.keeps(relative)
        return keeps if self.kind == "images" else pc.and_(keeps, pc.ends_with(relative, SUFFIXES[self.kind]))

    @cached_property
    def _globs(self) -> Globs:
        return Globs(self.config.include, self.config.exclude)

    def _with_labels(self, page: pa.Table) -> pa.Table:
        if "label" in page.column_names and self.config.labels != "folder":
            return page.select(PAGE_SCHEMA.names).cast(PAGE_SCHEMA)
        labels = pa.nulls(len(page), pa.string())
        if self.kind == "images" and self.config.labels == "folder":
            labels = folder_labels(page["uri"])
        return pa.table([page["uri"], page["etag"], page["size_bytes"], labels], schema=PAGE_SCHEMA)

    def _wanted(self) -> str:
        if self.format == "manifest":
            return "row"
        what = "object" if self.kind == "images" else f"*{SUFFIXES[self.kind]} file"
        return f"{what} that include, exclude and the rule for hidden names (a leading . or _) let through"


def open_source(config: SourceConfig) -> Source:
    """Find out what a source is, from its root and (for `auto`) its first page.

    Raises:
        SourceError: nothing is there, its form is not the one that was asked for, or it has no such column.
        AccessError: the credentials do not allow it.
    """
    uri = to_uri(config.uri)
    files = _expanded(uri)
    store = open_store(uri)
    if config.listing is not None:
        source = _open_listed(uri, to_uri(config.listing), config)
    elif store.stat(files[0]) is not None:
        form = _form_of_file(files[0], config)
        source = Source("images" if form == "manifest" else form, form, uri, config, is_file=True)
    else:
        first = next(iter(store.list(uri)), None) if files == [uri] else None
        if first is None:
            raise SourceError(f"nothing is at {files[0]}; expected an object, or a folder that is not empty")
        source = _below(uri, first, config)
    _check_labels(source)
    return source


def _open_listed(uri: str, listing: str, config: SourceConfig) -> Source:
    """A prefix whose listing was made before; the store is not asked for any."""
    source = Source("images", "images", uri, config, is_file=False, listing=listing)
    first = next((page for page in source._listed(listing) if len(page)), None)
    if first is None:
        raise SourceError(f"the listing {listing} names nothing below {uri}; source.uri is the prefix that it is complete for")
    return _below(uri, first, config, listing)


def _below(uri: str, first: pa.Table, config: SourceConfig, listing: str | None = None) -> Source:
    """A prefix of which the first page is known."""
    form = _form_of_names(first["uri"].to_pylist()) if config.format == "auto" else config.format
    if form == "manifest":
        raise SourceError(f"{uri} is a folder; a manifest is one file that ends in .csv, .tsv or .parquet")
    return Source(form, form, uri, config, is_file=False, listing=listing)


def _form_of_file(uri: str, config: SourceConfig) -> Format:
    suffix = PurePosixPath(uri).suffix
    form: Format
    if config.format != "auto":
        form = config.format
    elif suffix == ".parquet":
        candidates = image_columns(read_schema(uri))
        form = "parquet" if (config.column in candidates if config.column else candidates) else "manifest"
    else:
        form = {".csv": "manifest", ".tsv": "manifest", ".tar": "webdataset"}.get(suffix.lower(), "images")  # type: ignore[assignment]
    if form in SUFFIXES and suffix != SUFFIXES[form]:
        raise SourceError(f"{uri} is not a {form} file by its name; expected one that ends in {SUFFIXES[form]}")
    return form


def _form_of_names(uris: list[str]) -> Format:
    """The form of which most names are; images where no name tells."""
    suffixes = Counter(PurePosixPath(uri).suffix for uri in uris)
    count: dict[Format, int] = {
        "images": sum(number for suffix, number in suffixes.items() if suffix.lower() in IMAGE_SUFFIXES),
        "webdataset": suffixes[".tar"],
        "parquet": suffixes[".parquet"],
    }
    return max(count, key=lambda form: count[form])


def _check_labels(source: Source) -> None:
    """Refuse a label column that cannot be there; those of manifests are checked as they are read."""
    if source.kind == "parquet":
        if first := next(source.pages(), None):
            check_columns(first["uri"][0].as_py(), source.config)
    elif source.format == "images" and source.config.labels not in ("none", "folder") and not _is_table(source.listing):
        raise SourceError(
            f"{source.uri} has no columns, so source.labels cannot be {source.config.labels!r}; "
            "expected none or folder, or a manifest with that column"
        )


def _is_table(listing: str | None) -> bool:
    return listing is not None and listing.endswith((".csv", ".tsv", ".parquet"))


def _expanded(uri: str) -> list[str]:
    """The files of a brace pattern: `x-{000..012}.tar` is thirteen names, as wide as the first number."""
    braces = _BRACES.search(uri)
    if braces is None:
        return [uri]
    numbers = range(int(braces[1]), int(braces[2]) + 1)
    names = [f"{uri[: braces.start()]}{number:0{len(braces[1])}}{uri[braces.end() :]}" for number in numbers]
    if not names:
        raise SourceError(f"{uri} names no file: {braces[0]} runs backwards")
    return [file for name in names for file in _expanded(name)]


def _folder(uri: str) -> str:
    return uri if uri.endswith("/") else uri + "/"

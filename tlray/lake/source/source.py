"""Listings of a source: what images, or files that hold images, there are; a page at a time, no request for each one.

Five forms: `images` (or files of text) below a prefix, a `manifest` that names them, `webdataset` tar shards, `parquet` files
of bytes, and `rows` of tables that hold texts. What is below a prefix is asked of the store, or of a listing that was made
before (`tlray.lake.source.listing.inventory`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.columns.column import Column, fields_of
from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.containers.members import SUFFIXES
from tlray.lake.source.label_text import folder_labels
from tlray.lake.source.listing.inventory import read_listing
from tlray.lake.source.listing.manifest import read_manifest
from tlray.lake.source.listing.metadata import Metadata
from tlray.lake.source.listing.names import NameFilter, expanded
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.member_uri import containers_of
from tlray.lake.source.texts.rows import ROW_ENDINGS, TEXT_FIELDS, read_rows
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import LISTING_SCHEMA, Walk, in_range
from tlray.lake.storage.uri import join

Format = Literal["images", "manifest", "webdataset", "parquet", "rows"]
Kind = Literal["images", "webdataset", "parquet"]

PAGE_SCHEMA = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size_bytes", pa.int64()), ("label", pa.string())])


@dataclass(frozen=True)
class Source:
    """Where images come from; cheap to make (by `open_source`), listed only by `pages`.

    Attributes:
        kind: what a listed item is: one image or text (`images`), or a file that holds some.
        format: the form of the source; for `auto`, what it turned out to be.
        uri: normalised; a prefix, one file, or a brace pattern of files.
        config: what the user asked for.
        is_file: whether `uri` names one object (or a pattern of them), not a prefix.
        listing: URI of what stands in for listing `uri`.
        columns: that travel into the table, with their types (`tlray.lake.source.columns.with_columns`).
        metadata: where the columns of an image folder are.
    """

    kind: Kind
    format: Format
    uri: str
    config: SourceConfig
    is_file: bool
    listing: str | None = None
    columns: tuple[Column, ...] = ()
    metadata: Metadata | None = field(default=None, compare=False)

    @property
    def gives_labels(self) -> bool:
        """Whether a listed item's label, or its having none, is known before its file is read."""
        return self.kind == "images" and self.config.labels != "none"

    @property
    def asks_the_store(self) -> bool:
        """Whether what is listed is there, as far as the store knows at this moment."""
        return self.format != "manifest" and self.listing is None

    @property
    def page_schema(self) -> pa.Schema:
        """The schema of the pages that it lists: PAGE_SCHEMA, and what else travels with each item to the worker.

        That are texts, and the columns that travel into the table, where their values are known before files are read.
        """
        texts = TEXT_FIELDS if self.format == "rows" else ()
        return pa.schema([*PAGE_SCHEMA, *texts, *fields_of(self.columns if self.kind == "images" else ())])

    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]:
        """The items, streamed. A manifest may name one twice; no other source does.

        None at all is an error, as a wrong prefix must not empty a table; but a range of names may have become empty.

        Args:
            report: is told what is left out.

        Yields:
            Pages of `page_schema`. Etag and size are null where a manifest does not say them, the label where there is none
            (that of a member is known only when its file is read).

        Raises:
            SourceError: nothing is left in the end (in a range: of what is listed), no item has a label though labels were
                asked for, or a manifest is broken.
            AccessError: the credentials do not allow to list.
            StorageError: the store failed.
        """
        report = report or ListingReport(things=self.config.things)
        listed = items = unlabelled = 0
        for page in self._found(report):
            listed += len(page)
            rows = self._as_page(self._named(page, report))
            items += len(rows)
            unlabelled += rows["label"].null_count
            if len(rows):
                yield rows
        is_whole = self._range == (None, None)
        if self.metadata is not None:
            report.notes += self.metadata.unmatched()
        if not items and (listed or is_whole):
            raise SourceError(self._nothing(report))
        if is_whole and self.gives_labels and unlabelled == items:
            raise SourceError(self._no_label(items))

    def items(self, report: ListingReport) -> pa.Table:
        """All items in memory, in order of URI, each once: the first of those that a manifest names twice.

        Args:
            report: is told what is left out, and how many items have no label.

        Returns:
            Rows of `page_schema`.

        Raises:
            SourceError, AccessError, StorageError: see `pages`.
        """
        listed = pa.concat_tables([self.page_schema.empty_table(), *self.pages(report)])
        once = listed.group_by("uri", use_threads=False).aggregate([(name, "first") for name in listed.column_names[1:]])
        items = once.rename_columns(self.page_schema.names).sort_by("uri").combine_chunks()
        if len(items) < len(listed):
            counts = pc.value_counts(listed["uri"])
            repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
            report.leave_out("repeated", repeated[0].as_py(), len(listed) - len(items))
        report.unlabelled += items["label"].null_count if self.gives_labels else 0
        return items

    def covers(self, uris: pa.Array) -> np.ndarray:
        """Which rows of a table would be listed if they still existed, and are deleted if they are not listed any more.

        A manifest covers every row in its range of names: it is the whole truth of the table that follows it.

        Args:
            uris: of items, or of members of containers; N strings.

        Returns:
            N bools.
        """
        first, end = self._range
        if self.kind != "images":
            uris = containers_of(uris)
        covered = np.ones(len(uris), bool)
        if first is not None:
            covered &= np.asarray(pc.greater_equal(uris, first), bool)
        if end is not None:
            covered &= np.asarray(pc.less(uris, end), bool)
        if self.format == "rows":  # of whose range each row is by itself
            uris = containers_of(uris)
        if self.format != "manifest":
            covered &= np.asarray(self.is_below(uris), bool)
        return covered if self._names is None else covered & np.asarray(self._takes(uris), bool)

    def is_below(self, uris: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Whether URIs are of files below the source's, or of its own."""
        if self.is_file:
            return pc.is_in(uris, value_set=pa.array(expanded(self.uri)))
        return pc.starts_with(uris, _folder(self.uri))

    @cached_property
    def _range(self) -> tuple[str | None, str | None]:
        """URIs from the first on, before the second."""
        root = self.uri.rpartition("/")[0] if self.is_file else self.uri
        ends = (self.config.keys_from, self.config.keys_to)
        first, end = (name if name is None or "://" in name else join(root, name) for name in ends)
        if first is not None and end is not None and first >= end:
            raise SourceError(f"no name is from {first} on and before {end}; source.keys_from must come before source.keys_to")
        return first, end

    def _found(self, report: ListingReport) -> Iterator[pa.Table]:
        if self.format == "rows":
            for page in self.files(report):
                for uri in page["uri"].to_pylist():
                    for rows in read_rows(uri, self.config, self.columns):
                        yield in_range(rows, *self._range)
        elif self.listing is not None:
            for page in self.listed(report):
                yield in_range(page, *self._range)
        elif self.format == "manifest":
            for page in read_manifest(self.uri, self.config, columns=self.columns):
                yield in_range(page, *self._range)
        elif self.is_file:
            yield in_range(self._files(report), *self._range)
        else:
            first, end = self._range
            yield from open_store(self.uri).list(self.uri, first=first, end=end, walk=self.walk(report))

    def files(self, report: ListingReport) -> Iterator[pa.Table]:
        """The tables that hold texts, where their rows are what is listed."""
        if self.listing is not None:
            pages = self.listed(report)
        elif self.is_file:
            pages = iter([self._files(report)])
        else:
            pages = open_store(self.uri).list(self.uri, walk=self.walk(report))
        for page in pages:
            yield page if self._names is None else page.filter(self._takes(page["uri"], report))

    def _named(self, page: pa.Table, report: ListingReport) -> pa.Table:
        """The items of a page that the rules for names let through; of rows, their files' names have been."""
        return page if self._names is None or self.format == "rows" else page.filter(self._takes(page["uri"], report))

    def listed(self, report: ListingReport) -> Iterator[pa.Table]:
        """What a listing that was made before names below the prefix, whatever the rules for names say."""
        assert self.listing is not None
        columns = self.columns if self.format == "images" and self.metadata is None else ()
        for page in read_listing(self.listing, self.uri, self.config, columns):
            rows = page.filter(self.is_below(page["uri"]))
            if len(rows) < len(page):
                outside = page.filter(pc.invert(self.is_below(page["uri"])))
                report.leave_out("outside", outside["uri"][0].as_py(), len(outside))
            yield rows

    def walk(self, report: ListingReport) -> Walk:
        """How a tree of folders is gone through: none is entered in which nothing can be taken."""
        root = len(_folder(self.uri))

        def enters(folder: str) -> bool:
            reason = self._names.why_not_enter(folder[root:]) if self._names is not None else None
            if reason is not None:
                report.leave_out(reason, folder[root:])
            return reason is None

        return Walk(enters, report.leave_out, report.is_of)

    def _files(self, report: ListingReport) -> pa.Table:
        """The one file, or those of a pattern."""
        store = open_store(self.uri)
        found = [(uri, store.stat(uri)) for uri in expanded(self.uri)]
        missing = [uri for uri, info in found if info is None]
        if missing:
            raise SourceError(f"{self.uri} names {len(found)} files, of which {len(missing)} are missing: {missing[0]} ...")
        for _, info in found:
            if info and info.commit:
                report.is_of(info.commit)
        rows = [{"uri": info.uri, "etag": info.etag, "size_bytes": info.size_bytes} for _, info in found if info]
        return pa.Table.from_pylist(rows, LISTING_SCHEMA)

    @cached_property
    def _names(self) -> NameFilter | None:
        """The rules by which names below a prefix are taken; None where the source names its files itself."""
        if self.is_file or self.format == "manifest":
            return None
        return NameFilter(self.config, self._suffixes)

    @property
    def _suffixes(self) -> tuple[str, ...]:
        """How the names of its files end, in lower case; empty where an image's name may end in any way."""
        if self.format == "rows":
            return ROW_ENDINGS
        if self.kind != "images":
            return (SUFFIXES[self.kind],)
        return () if self.config.text is None else (f".{self.config.text.lower()}",)

    def _takes(self, uris: pa.Array | pa.ChunkedArray, report: ListingReport | None = None) -> pa.Array:
        """Which URIs the rules for names let through; all must be below the prefix for this to mean something."""
        assert self._names is not None
        relative = pc.utf8_slice_codeunits(uris, start=len(_folder(self.uri)))
        if isinstance(relative, pa.ChunkedArray):
            relative = relative.combine_chunks()
        return pa.array(self._names.takes(relative, report))

    def _as_page(self, page: pa.Table) -> pa.Table:
        """What was listed, with labels and the columns that travel."""
        schema = self.page_schema
        if self.metadata is not None:
            page = self.metadata.join(page)
        if self.format == "rows" or ("label" in page.column_names and self.config.labels != "folder"):
            return page.select(schema.names).cast(schema)
        labels = folder_labels(page["uri"]) if self.gives_labels else pa.nulls(len(page), pa.string())
        values = [page[name] for name in schema.names[len(PAGE_SCHEMA) :]]
        return pa.table([page["uri"], page["etag"], page["size_bytes"], labels, *values], schema=schema)

    def _where(self) -> str:
        return f"the listing {self.listing} of {self.uri}" if self.listing else f"the source {self.uri}"

    def _nothing(self, report: ListingReport) -> str:
        what = f"{' or '.join(f'*{suffix}' for suffix in self._suffixes)} file" if self._suffixes else "image"
        return f"{self._where()} has no {what}: {'; '.join(report.lines()) or 'nothing is listed there'}"

    def _no_label(self, items: int) -> str:
        looked = "the name of a folder" if self.config.labels == "folder" else f"a value in the column {self.config.labels!r}"
        return f"none of the {items} {self.config.things} of {self._where()} has a label; looked for {looked} (source.labels)"


def _folder(uri: str) -> str:
    return uri if uri.endswith("/") else uri + "/"

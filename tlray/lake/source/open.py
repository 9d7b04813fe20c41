"""Finding out what a source is, and that it can be what the config says, before anything is done with it."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tlray.config import SourceConfig
from tlray.errors import AccessError, SourceError, StorageError
from tlray.lake.source.containers.members import SUFFIXES
from tlray.lake.source.containers.parquet import check_image_column, check_label_column, holds_images, read_schema
from tlray.lake.source.containers.tar import TarLabels, look_for_labels
from tlray.lake.source.listing.names import IMAGE_SUFFIXES, expanded, is_other_name
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.listing.table_file import TABLE_ENDINGS, ending_of
from tlray.lake.source.source import Format, Kind, Source
from tlray.lake.source.texts.decode import check_encoding
from tlray.lake.source.texts.rows import ROW_ENDINGS, check_rows
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri

_FILES_LOOKED_INTO = 8
"""How many containers are looked into, evenly among the first page of names: not all need have the columns and labels that are
asked for."""

_IMAGES_LOOKED_AT = 250
"""How many images of each tar file are looked at before it counts as one without labels: the first image that has one ends the
search."""

_EXTENSIONS_SHOWN = 8

_KINDS: dict[Format, Kind] = {
    "images": "images", "manifest": "images", "rows": "images", "webdataset": "webdataset", "parquet": "parquet",
}  # fmt: skip
"""What the items are that a source of each format lists."""

_NAMES_LOOKED_UP = 16
"""How many of a manifest's first rows are looked up before it counts as one whose names lead nowhere."""


def open_source(config: SourceConfig) -> Source:
    """Find out what a source is, from its root, its first page of names and a look into some of its files.

    Raises:
        SourceError: nothing is there, its form is not the one that was asked for, or it has no such column or labels.
        AccessError: the credentials do not allow it.
        StorageError: the store failed.
    """
    uri = to_uri(config.uri)
    check_encoding(config.encoding)
    if config.id is not None and config.text is None:
        raise SourceError(f"source.id is {config.id!r}, which names rows of texts; give source.text, the column of the texts")
    files = expanded(uri)
    store = open_store(uri)
    if config.listing is not None:
        source = _open_listed(uri, to_uri(config.listing), config)
    elif store.stat(files[0]) is not None:
        form = _form_of_file(files[0], config)
        source = Source(_KINDS[form], form, uri, config, is_file=True)
        _check_no_filter(source)
    else:
        source = _open_prefix(uri, config)
    if source.format == "rows":
        _check_rows(source)
    elif source.kind == "parquet":
        _check_parquet(source)
    elif source.kind == "webdataset":
        _check_tar_labels(source)
    elif source.format == "images" and source.listing is None and config.labels not in ("none", "folder"):
        raise SourceError(
            f"{source.uri} has no columns, so source.labels cannot be {config.labels!r}; "
            "expected none or folder, or a manifest with that column"
        )
    return source


def open_images(config: SourceConfig) -> Source:
    """Find out what a source of images is.

    Raises:
        SourceError: it is one of texts, or `open_source` says so.
        AccessError: the credentials do not allow it.
        StorageError: the store failed.
    """
    if config.text is not None:
        raise SourceError(
            f"source.text is {config.text!r}, but images are wanted here; make a table of the texts with tlray extract "
            "and train a head on that"
        )
    return open_source(config)


def check_names_lead_somewhere(source: Source) -> None:
    """Refuse a manifest or listing of whose first names none is there: they are meant to be relative to another folder.

    Raises:
        SourceError: that is so.
    """
    if source.asks_the_store or (first := next(source.pages(), None)) is None:
        return
    uris = first["uri"].to_pylist()
    some = uris[:: max(1, -(-len(uris) // _NAMES_LOOKED_UP))]
    with ThreadPoolExecutor(len(some), thread_name_prefix="names") as threads:
        if any(threads.map(_may_be_there, some)):
            return
    if source.format == "manifest":
        folder, instead = source.uri.rpartition("/")[0], f"--source.uri <their folder> --source.listing {source.uri}"
    else:
        folder, instead = source.uri, "--source.uri <their folder>"
    raise SourceError(
        f"none of {len(some)} names of {source.listing or source.uri} that were looked up is there, as {some[0]}, so all would "
        f"fail (not_found); relative names are relative to {folder}. If they belong below another folder, use {instead}"
    )


def _open_prefix(uri: str, config: SourceConfig) -> Source:
    """The source below a prefix of the store."""
    nothing = SourceError(
        f"nothing is at {expanded(uri)[0]}; expected a file, or a folder (a prefix) with files in it: check the address"
    )
    if expanded(uri) != [uri]:
        raise nothing
    source = Source("images", "images", uri, config, is_file=False)
    report = ListingReport(things=source.config.things)
    first = next(iter(open_store(uri).list(uri, walk=source.walk(report))), None)
    if first is None and not report.left_out:
        raise nothing
    return _with_form(source, [] if first is None else first["uri"].to_pylist())


def _open_listed(uri: str, listing: str, config: SourceConfig) -> Source:
    """A prefix whose listing was made before; the store is not asked for any."""
    source = Source("images", "images", uri, config, is_file=False, listing=listing)
    if config.labels not in ("none", "folder") and ending_of(listing) not in TABLE_ENDINGS:
        raise SourceError(
            f"the listing {listing} has no columns, so source.labels cannot be {config.labels!r}; "
            "expected none or folder, or a .csv, .tsv or .parquet file with that column"
        )
    first = next((page for page in source.listed(ListingReport()) if len(page)), None)
    if first is None:
        raise SourceError(f"the listing {listing} names nothing below {uri}; source.uri is the prefix that it is complete for")
    return _with_form(source, first["uri"].to_pylist())


def _with_form(source: Source, first_uris: Sequence[str]) -> Source:
    """A prefix of which the first names are known."""
    form: Format = _form_of_names(first_uris, source.config.text) if source.config.format == "auto" else source.config.format
    if form == "manifest":
        raise SourceError(f"{source.uri} is a folder; a manifest is one file that ends in .csv, .tsv or .parquet")
    form = "rows" if form == "parquet" and source.config.text is not None else form
    return replace(source, kind=_KINDS[form], format=form)


def _form_of_file(uri: str, config: SourceConfig) -> Format:
    ending = ending_of(uri)
    form: Format
    if config.text is not None and config.format in ("auto", "parquet"):
        form = "rows" if ending in ROW_ENDINGS else "webdataset" if ending == SUFFIXES["webdataset"] else "images"
    elif config.format != "auto":
        form = config.format
    elif ending == ".parquet":
        form = "parquet" if holds_images(uri, config.column) else "manifest"
    elif ending in TABLE_ENDINGS:
        form = "manifest"
    elif ending == SUFFIXES["webdataset"]:
        form = "webdataset"
    elif is_other_name(uri):
        raise SourceError(
            f"{uri} is no image, manifest (.csv, .tsv, .parquet) or tar shard (.tar) by its name; a list of names, one a line, "
            "goes with --source.listing beside the --source.uri that they are below; archives are to be unpacked, or made .tar"
        )
    else:
        form = "images"
    if form in SUFFIXES and ending != SUFFIXES[form]:
        raise SourceError(f"{uri} is not a {form} file by its name; expected one that ends in {SUFFIXES[form]}")
    return form


def _form_of_names(uris: Sequence[str], text: str | None) -> Format:
    """The form of which most names are; images, or files of text, where no name tells."""
    endings = Counter(map(ending_of, uris))
    if text is not None:
        count_of_texts: dict[Format, int] = {
            "images": endings[f".{text.lower()}"],
            "webdataset": endings[".tar"],
            "rows": sum(endings[ending] for ending in ROW_ENDINGS),
        }
        return max(count_of_texts, key=lambda form: count_of_texts[form])
    count: dict[Format, int] = {
        "images": sum(number for ending, number in endings.items() if ending in IMAGE_SUFFIXES),
        "webdataset": endings[".tar"],
        "parquet": endings[".parquet"],
    }
    return max(count, key=lambda form: count[form])


def _check_no_filter(source: Source) -> None:
    """Refuse patterns that would have no effect: one file, or a pattern of files, is named by the user already."""
    config = source.config
    given = [name for name in ("include", "exclude", "also") if getattr(config, name)]
    if given:
        raise SourceError(
            f"source.{given[0]} chooses among the names below a folder, but {source.uri} is "
            + ("a manifest, which names its images itself" if source.format == "manifest" else "one file")
            + "; leave it out"
        )


def _check_rows(source: Source) -> None:
    """Refuse a source of tables of texts of which the first one has not the columns that are asked for."""
    for page in source.files(ListingReport()):
        for uri in page["uri"].to_pylist()[:1]:
            check_rows(uri, source.config)
            return


def _check_parquet(source: Source) -> None:
    """Refuse a source whose files have not the columns of images and labels; that a single one has them is enough.

    A file without them among others becomes a failed row, or images without labels.
    """
    problems: dict[int, SourceError] = {}
    for uri in some_files(source):
        passed = 0
        try:
            schema = read_schema(uri)
            passed += 1
            check_image_column(schema, source.config, uri)
            passed += 1
            check_label_column(schema, source.config, uri)
        except SourceError as error:
            problems.setdefault(passed, error)
        else:
            return
    if problems:
        raise problems[max(problems)]


def _check_tar_labels(source: Source) -> None:
    """Refuse a source of tar files of which none that is looked into has the labels that are asked for."""
    labels = source.config.labels
    if labels == "none":
        return
    found = TarLabels()
    for uri in some_files(source):
        one = look_for_labels(uri, source.config, _IMAGES_LOOKED_AT)
        if one.labelled:
            return
        found.images += one.images
        found.extensions.update(one.extensions)
    if found.images:
        looked = "folders inside the tar files" if labels == "folder" else f"files *.{labels} beside the images"
        if labels.partition(".")[0] in found.extensions and "." in labels:
            looked = f"the field {labels.partition('.')[2]!r} of the files *.{labels.partition('.')[0]}"
        there = ", ".join(f"*.{extension}" for extension, _ in found.extensions.most_common(_EXTENSIONS_SHOWN))
        raise SourceError(
            f"none of the first {found.images} images of {source.uri} has a label; looked for {looked} (source.labels is "
            f"{labels!r}), while there are {there}"
        )


def some_files(source: Source) -> list[str]:
    """Some of a source's files, evenly among the first page; none where there are none."""
    first = next(source.pages(), None)
    uris: list[str] = [] if first is None else first["uri"].to_pylist()
    return uris[:: max(1, -(-len(uris) // _FILES_LOOKED_INTO))]


def _may_be_there(uri: str) -> bool:
    try:
        return open_store(uri).stat(uri) is not None
    except (StorageError, AccessError, SourceError):
        return True  # the run says what is wrong with it

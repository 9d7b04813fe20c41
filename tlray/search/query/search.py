"""`tlray search`: from its config to its answers."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.config import SearchConfig
from tlray.errors import (
    AccessError,
    ConfigError,
    ImageError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    QueryError,
    StorageError,
    TableError,
)
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.search.query.answer_file import check_place, write_answers
from tlray.search.query.answers import answer_part
from tlray.search.query.hits import Hits, answer_schema
from tlray.search.query.searcher import Searcher
from tlray.search.query.vector_file import read_vector_file
from tlray.search.rows.row_texts import RowTexts
from tlray.search.rows.selection import Filter
from tlray.search.rows.shown_columns import shown_fields

MAX_IMAGE_BYTES = 256 * 2**20
TEXT_CHARACTERS = 500
"""How much of each hit's text is shown, in a table of texts: all of it is in the table."""


def search(config: SearchConfig) -> dict[str, Any]:
    """Answer the queries of `tlray search`.

    Args:
        config: of the command.

    Returns:
        The command's JSON object: the answers, or how many were written to `out`.

    Raises:
        ConfigError: no query, a query that does not fit, or no index.
        RecipeMismatchError: queries of another recipe.
        GoldenMismatchError: this machine embeds images otherwise than the table's.
    """
    began = time.monotonic()
    kinds: list[object] = [config.image, config.text, config.uri, config.by_label, config.vector, config.queries]
    if sum(bool(kind) for kind in kinds) != 1:
        raise ConfigError("expected one kind of query: --image, --text, --uri, --by-label, --vector or --queries")
    if config.queries and not config.out:
        raise ConfigError("--queries answers each row of a table; give --out, a Parquet file for the answers")
    if config.out:
        check_place(config.out)
    searcher = Searcher.open(config.index)
    where = Filter(config.label, tuple(_as_prefix(prefix) for prefix in config.prefix), config.where or "")
    result: dict[str, Any] = {"index": to_uri(config.index), **searcher.about}
    result["table_versions_ahead"] = _versions_ahead(searcher)
    if where:
        result["filtered_rows"] = _filtered_rows(searcher, where)
    if config.queries:
        result |= _answer_table(searcher, config, where)
    else:
        result |= _answer_some(searcher, config, where)
    return result | {"seconds": round(time.monotonic() - began, 3)}


def _as_prefix(given: str) -> str:
    """A path stands for its file:// URI, as everywhere, and keeps its last slash."""
    if "://" in given:
        return given
    return to_uri(given) + ("/" if given.endswith("/") and given.strip("/") else "")


def _filtered_rows(searcher: Searcher, where: Filter) -> int:
    """How many rows the filter lets through; what is asked for and found nowhere is said."""
    count = searcher.count(where)
    if not count:
        say(
            f"no row of the index has {where}, so nothing is found; its most frequent labels are "
            f"{list(searcher.rows.labels)[:5]}, and a URI in it is {searcher.rows.uri(0)}"
        )
        return count
    each = [Filter(labels=(label,)) for label in where.labels] + [Filter(prefixes=(prefix,)) for prefix in where.prefixes]
    for one in each if len(each) > 1 else []:
        if not searcher.rows.mask(one.labels, one.prefixes).any():
            say(f"no row of the index has {one}")
    return count


def _versions_ahead(searcher: Searcher) -> int | None:
    """How far the table has moved on; None where it cannot be asked, as an index answers without it."""
    try:
        ahead = searcher.table_version() - searcher.card.table_version
    except (TableError, StorageError, AccessError) as error:
        say(f"whether the index is up to date cannot be told: {error}")
        return None
    if ahead:
        say(f"the table is {ahead} versions ahead of the index; `tlray index` brings it up to date")
    return ahead


def _answer_some(searcher: Searcher, config: SearchConfig, where: Filter) -> dict[str, Any]:
    """The answers to the queries on the command line, or in a file of vectors."""
    shown = _shown(searcher, config)
    names, hits = _hits(searcher, config, where)
    if config.out:
        write_answers(config.out, [hits.to_table(names, shown)], answer_schema(shown))
        return {"queries": len(names), "out": config.out}
    texts = RowTexts.of(searcher.recipe_file, searcher.card.table)
    answers = []
    for name, found, positions_K in zip(names, hits.to_lists(shown), hits.positions_BK, strict=True):
        if texts is not None:
            for hit, position in zip(found, positions_K, strict=False):  # which are fewer where fewer rows were found
                hit["text"] = texts.get(searcher.rows, int(position))[:TEXT_CHARACTERS]
        answers.append({"query": name, "hits": found})
    return {"answers": answers}


def _shown(searcher: Searcher, config: SearchConfig) -> list[pa.Field] | None:
    """The columns that are asked for, which a file can have beside its own; refused before anything is embedded."""
    shown = shown_fields(searcher.rows, config.columns)
    if config.out:
        answer_schema(shown)
    return shown


def _hits(searcher: Searcher, config: SearchConfig, where: Filter) -> tuple[list[str], Hits]:
    if config.image:
        images = [_read(image) for image in config.image]
        vectors_BD = np.concatenate([_embedded(searcher, *named) for named in zip(config.image, images, strict=True)])
        return list(config.image), searcher.search(vectors_BD, config.k, where)
    if config.text:
        return list(config.text), searcher.search_texts(config.text, config.k, where)
    if config.uri:
        # A path stands for its file:// URI, as everywhere.
        return list(config.uri), searcher.search_uris([to_uri(uri) for uri in config.uri], config.k, where)
    if config.by_label:
        return list(config.by_label), searcher.search_labels(config.by_label, config.k, where)
    assert config.vector is not None
    queries_BD = read_vector_file(config.vector)
    try:
        hits = searcher.search(queries_BD, config.k, where)
    except QueryError as error:
        raise QueryError(f"{config.vector}: {error}") from error
    return [f"{config.vector}#{row}" for row in range(len(queries_BD))], hits


def _read(place: str) -> bytes:
    uri = to_uri(place)
    try:
        return open_store(uri).read(uri, max_bytes=MAX_IMAGE_BYTES).data
    except ObjectNotFoundError as error:
        raise QueryError(f"no image at {place}; expected a file or an s3:// URI") from error
    except ObjectTooLargeError as error:
        raise QueryError(f"{error}; expected a smaller image") from error


def _embedded(searcher: Searcher, place: str, data: bytes) -> np.ndarray:
    try:
        return searcher.encoder().embed([data])
    except ImageError as error:
        raise QueryError(f"the image {place} cannot be used: {error}") from error


def _answer_table(searcher: Searcher, config: SearchConfig, where: Filter) -> dict[str, Any]:
    """Every row of a table as a query, part by part, so that memory holds one part and its answers."""
    assert config.queries is not None and config.out is not None
    table = Table.open(to_uri(config.queries))
    if table.columns:
        searcher.check_recipe(table.recipe_file.recipe_id)
    table.column_of(searcher.card.column)
    parts = table.parts("ok")
    count = sum(part.rows for part in parts)
    if not count:
        raise QueryError(f"{table.uri} version {table.version} has no rows with an embedding, so there is nothing to answer")
    paths, schema = [part.path for part in parts], answer_schema(_shown(searcher, config))
    write_answers(config.out, _answers(searcher, config, table.uri, paths, where), schema)
    return {"queries": count, "out": config.out}


def _answers(searcher: Searcher, config: SearchConfig, table_uri: str, paths: list[str], where: Filter) -> Iterable[pa.Table]:
    if not config.workers:
        return (answer_part(searcher, table_uri, path, config.k, where, config.columns) for path in paths)
    from tlray.search.query.answers_on_ray import answers_on_ray  # Ray only where work is spread out

    version = searcher.card.version
    return answers_on_ray(to_uri(config.index), version, table_uri, paths, config.k, where, config.columns, config.workers)

"""`tlray search`: from its config to its answers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tlray.config import SearchConfig
from tlray.errors import AccessError, ConfigError, ObjectNotFoundError, QueryError, StorageError, TableError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.columns import column_of
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.search.query.answers import answer_part
from tlray.search.query.hits import ANSWER_SCHEMA, Hits
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter

MAX_IMAGE_BYTES = 256 * 2**20


def search(config: SearchConfig) -> dict[str, Any]:
    """Answer queries.

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
    kinds: list[object] = [config.image, config.uri, config.by_label, config.vector, config.queries]
    if sum(bool(kind) for kind in kinds) != 1:
        raise ConfigError("expected one kind of query: --image, --uri, --by-label, --vector or --queries")
    if config.queries and not config.out:
        raise ConfigError("--queries answers each row of a table; give --out, a Parquet file for the answers")
    searcher = Searcher.open(config.index)
    result: dict[str, Any] = {"index": to_uri(config.index), **searcher.about}
    result["table_versions_ahead"] = _versions_ahead(searcher)
    where = Filter(config.label, config.prefix)
    if config.queries:
        return result | _answer_table(searcher, config, where) | {"seconds": round(time.monotonic() - began, 3)}
    names, hits = _answer(searcher, config, where)
    if config.out:
        with pq.ParquetWriter(config.out, ANSWER_SCHEMA) as writer:
            writer.write_table(hits.to_table(names))
        return result | {"queries": len(names), "out": config.out, "seconds": round(time.monotonic() - began, 3)}
    answers = []
    for name, found in zip(names, hits.to_lists(), strict=True):
        answers.append({"query": name, "hits": found})
    return result | {"answers": answers, "seconds": round(time.monotonic() - began, 3)}


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


def _answer(searcher: Searcher, config: SearchConfig, where: Filter) -> tuple[list[str], Hits]:
    if config.image:
        return list(config.image), searcher.search_images([_read(image) for image in config.image], config.k, where)
    if config.uri:
        # A path stands for its file:// URI, as everywhere.
        return list(config.uri), searcher.search_uris([to_uri(uri) for uri in config.uri], config.k, where)
    if config.by_label:
        centroids_BD = np.stack([searcher.centroid(label) for label in config.by_label])
        return list(config.by_label), searcher.search(centroids_BD, config.k, where)
    assert config.vector is not None
    try:
        queries_BD = np.atleast_2d(np.load(Path(config.vector), allow_pickle=False))
    except (OSError, ValueError) as error:
        raise QueryError(f"cannot read --vector {config.vector}: {error}; expected a .npy file of floats") from error
    return [f"{config.vector}#{row}" for row in range(len(queries_BD))], searcher.search(queries_BD, config.k, where)


def _read(address: str) -> bytes:
    uri = to_uri(address)
    try:
        return open_store(uri).read(uri, max_bytes=MAX_IMAGE_BYTES).data
    except ObjectNotFoundError as error:
        raise QueryError(f"no image at {address}; expected a file or an s3:// URI") from error


def _answer_table(searcher: Searcher, config: SearchConfig, where: Filter) -> dict[str, Any]:
    """Every row of a table as a query, part by part, so that memory holds one part and its answers."""
    assert config.queries is not None and config.out is not None
    table = Table.open(to_uri(config.queries))
    if table.columns:
        searcher.check_recipe(table.recipe_file.recipe_id)
    column_of(table, searcher.card.column)
    parts = table.parts("ok")
    paths = [part.path for part in parts]
    if config.workers:
        from tlray.search.query.answers_on_ray import answers_on_ray  # Ray only where work is spread out

        version = searcher.card.version
        answers = answers_on_ray(to_uri(config.index), version, table.uri, paths, config.k, where, config.workers)
    else:
        answers = (answer_part(searcher, table.uri, path, config.k, where) for path in paths)
    with pq.ParquetWriter(config.out, ANSWER_SCHEMA, compression="zstd") as writer:
        for answer in answers:
            writer.write_table(answer)
    return {"queries": sum(part.rows for part in parts), "out": config.out}

"""Build an index of a table's version: choose, train, add, tune, measure, publish.

Shape legend: N rows, B queries, D dimensions, K neighbours.
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tlray.config import IndexConfig
from tlray.errors import TableError
from tlray.lake.table.columns import column_of
from tlray.lake.table.table import Table
from tlray.machine import memory_budget_bytes
from tlray.progress import say
from tlray.search.build.remeasure import outlier_nearness
from tlray.search.build.sample import ChosenRows, chosen_rows, leaving_out, probe_of
from tlray.search.neighbours.exact import ExactVectors
from tlray.search.neighbours.factory import Choice, choose
from tlray.search.neighbours.faiss_index import BLOCK_ROWS, FaissIndex
from tlray.search.neighbours.metric import prepared
from tlray.search.neighbours.recall import measure, tune
from tlray.search.rows.row_table import RowTable, read_rows, with_ids
from tlray.search.rows.table_vectors import read_part_vectors, read_vectors
from tlray.search.versions.card import Built, Card
from tlray.search.versions.exact_vectors import ArrayVectors, IndexVectors, save_vectors
from tlray.search.versions.files import FileKind, IndexFile, put_file
from tlray.search.versions.publish import Contents, publish_whole
from tlray.search.versions.stopwatch import Stopwatch


def choice_for(config: IndexConfig, rows: int, dimensions: int) -> Choice:
    """The factory that the user names, or the chosen one."""
    if config.factory != "auto":
        return Choice(config.factory, ("named by the user",))
    return choose(rows, dimensions, config.memory_bytes or memory_budget_bytes(), config.recall_target, config.metric)


def build(table: Table, config: IndexConfig, index_uri: str, version: int, scratch: Path) -> Card:
    """Build an index as a whole and publish it.

    Args:
        table: at the version to show.
        config: of the command.
        index_uri: where.
        version: number of the new version.
        scratch: a folder for temporary files.

    Raises:
        TableError: there is nothing to index.
        ConfigError: a factory or a metric that does not fit.
    """
    watch = Stopwatch()
    column = column_of(table, config.column)
    dimensions = math.prod(table.recipe_file.shapes[column])
    parts = table.parts("ok")
    count = sum(part.rows for part in parts)
    if not count:
        raise TableError(f"{table.uri} version {table.version} has no rows with an embedding; run `tlray extract` first")
    choice = choice_for(config, count, dimensions)
    say(f"{count} rows of {dimensions} dimensions: {choice.factory} ({'; '.join(choice.reasons)})")
    index = FaissIndex.make(choice.factory, dimensions, config.metric)
    with watch.stage("read"):
        rows = RowTable(with_ids(read_rows(table, [part.path for part in parts]), np.arange(count)))
    vectors_ND = None
    if config.shards > 1:
        from tlray.search.build.shards_on_ray import fill_in_shards  # Ray only where work is spread out

        probe = fill_in_shards(index, choice.factory, table.uri, column, parts, config.shards, watch)
        exact: ExactVectors = IndexVectors(index, rows, None, table.uri, column)
    else:
        with watch.stage("read"):
            memory_bytes = config.memory_bytes or memory_budget_bytes()
            sizes = [(part.path, part.rows) for part in parts]
            vectors_ND = read_vectors(table.uri, column, sizes, dimensions, config.metric, scratch, memory_bytes)
        chosen = chosen_rows(choice.factory, count, dimensions)
        fill(index, vectors_ND, chosen, watch)
        exact = ArrayVectors(vectors_ND, index.metric)
    # No parameter of a search is in the file: it is written, hashed and stored while they are sought.
    with ThreadPoolExecutor(1) as storing:
        stored = storing.submit(_store, index, index_uri, scratch)
        if vectors_ND is not None:
            with watch.stage("exact search"):
                probe = probe_of(index, vectors_ND, chosen.probe_ids)
        with watch.stage("tune"):
            parameters = tune(index, exact, probe, target=config.recall_target, mode=config.rerank)
        kept = None
        if parameters.rerank > 1 or (config.rerank == "always" and not index.kind.is_exact):
            if vectors_ND is not None:
                blocks = _in_blocks(vectors_ND)
            else:
                blocks = (prepared(read_part_vectors(table.uri, part.path, column), config.metric) for part in parts)
            kept = storing.submit(_keep, blocks, (count, dimensions), index_uri, scratch / "vectors.npy")
        with watch.stage("store"):
            files = stored.result()
            if kept is not None:
                files["vectors"] = kept.result()
    with watch.stage("measure"):
        quality = measure(index, exact, probe, parameters, index.reconstruction_error(probe.queries_BD, probe.ids_B))
    built = Built(
        rows=count,
        recall_at_10=quality.recall_at_10,
        outlier_nearness=outlier_nearness(index.centres(), probe.queries_BD),
    )
    contents = Contents(index, files, rows, parameters, quality, next_id=count, built=built)
    return publish_whole(table, config, index_uri, version, contents, choice, watch)


def _store(index: FaissIndex, index_uri: str, scratch: Path) -> dict[FileKind, IndexFile]:
    files: dict[FileKind, IndexFile] = {}
    kinds: dict[FileKind, FaissIndex | None] = {"faiss": index, "centres": index.centres()}
    for kind, each in kinds.items():
        if each is not None:
            each.save(scratch / kind)
            files[kind] = put_file(index_uri, kind, scratch / kind)
    return files


def _keep(blocks: Iterable[np.ndarray], shape: tuple[int, int], index_uri: str, path: Path) -> IndexFile:
    save_vectors(path, blocks, shape)
    return put_file(index_uri, "vectors", path)


def fill(index: FaissIndex, vectors_ND: np.ndarray, chosen: ChosenRows, watch: Stopwatch) -> None:
    """Train an empty index on the rows that are chosen for it, and add all."""
    with watch.stage("train"):
        if not index.is_trained:
            _train(index, vectors_ND, chosen)
    with watch.stage("add"):
        start = 0
        grows_by_copying = index.kind.is_exact and not index.kind.lists  # all vectors are in one array
        for vectors_BD in [vectors_ND] if grows_by_copying else _in_blocks(vectors_ND):
            index.add(vectors_BD, start)
            start += len(vectors_BD)


def _in_blocks(vectors_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Slices that bound what is handled at once."""
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        yield vectors_ND[start : start + BLOCK_ROWS]


def _train(index: FaissIndex, vectors_ND: np.ndarray, chosen: ChosenRows) -> None:
    if not len(chosen.training_ids):
        index.train(vectors_ND)
    elif len(chosen.training_ids) + len(chosen.probe_ids) < len(vectors_ND):
        index.train(vectors_ND[chosen.training_ids])
    else:
        with leaving_out(vectors_ND, chosen.probe_ids) as training_BD:
            index.train(training_BD)

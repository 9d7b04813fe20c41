"""The index on Ray: shards against one process, and a table of queries answered by several processes.

`shards`: the same IVF index built in this process and in shards by workers, with the time that merging them takes; both are
held against FAISS Flat. Shards are asked for at once, so on one machine they share the cores that one process has to itself.

`queries`: a table of queries answered by one process (a part of it) and by workers (all of it). The answers are counted, and a
sample is held against FAISS Flat. The index is loaded within the time, and Ray starts within it. `megabytes` is the memory that
this process and the largest worker have for themselves: after a quarter of the time, at the end, and at most.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
import ray

from tests.bench.harness import machine, print_json, print_table, ratio
from tests.bench.index import Collection, make_rows, make_vectors, recall, truth
from tests.search.tables import recipe_file
from tlray.config import IndexConfig, SearchConfig
from tlray.lake.table.parts import Change, write_part
from tlray.lake.table.table import Table
from tlray.search.build.build_index import index
from tlray.search.query.search import search
from tlray.search.query.searcher import Searcher
from tlray.search.versions.card import read_card

K = 10
CHUNK_ROWS = 50_000
CHECKED = 500
LOCAL_QUERIES = 100_000


def query_table(uri: str, queries: int, dimensions: int, part_rows: int) -> Table:
    """A table of queries, made piece by piece."""
    table = Table.create(uri, recipe_file(dimensions))
    parts = []
    for start in range(0, queries, CHUNK_ROWS):
        chunk_BD = make_vectors(min(CHUNK_ROWS, queries - start), dimensions, 1000 + start // CHUNK_ROWS)
        for at in range(0, len(chunk_BD), part_rows):
            block_BD = chunk_BD[at : at + part_rows]
            uris = [f"s3://queries/{start + at + row:08d}.jpg" for row in range(len(block_BD))]
            rows = make_rows(uris, "1", block_BD)
            parts.append(write_part(uri, rows, status="ok", stem="part", recipe_id=table.recipe_file.recipe_id))
    table.commit(Change(parts), app_id="bench", sequence=1, info={})
    return table


def shards(
    folder: Path, collection: Collection, queries_BD: np.ndarray, factory: str, counts: list[int]
) -> list[dict[str, Any]]:
    wanted = truth(collection.contents(), queries_BD)
    rows = []
    for count in counts:
        config = IndexConfig(table=collection.table.uri, out=str(folder / f"shards-{count}"), factory=factory, shards=count)
        began = time.perf_counter()
        index(config)
        seconds = time.perf_counter() - began
        card = read_card(f"file://{config.out}")
        stages = {name: card.seconds.get(name) for name in ("train", "add", "merge")}
        found = recall(Searcher.open(config.out), queries_BD, wanted)
        rows.append({"step": f"{count} shards", "seconds": seconds, **stages, "recall": found})
    return rows


class MemoryLog:
    """Anonymous memory of this process and of the largest worker, twice a second."""

    def __init__(self) -> None:
        self.megabytes: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "MemoryLog":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.megabytes.append((own_megabytes(Path("/proc/self")), max(map(own_megabytes, worker_processes()), default=0.0)))

    def summary(self) -> dict[str, list[int]]:
        """After a quarter, at the end, at most."""
        columns = dict(zip(("this", "worker"), zip(*self.megabytes, strict=True), strict=True))
        return {name: [round(of[len(of) // 4]), round(of[-1]), round(max(of))] for name, of in columns.items()}


def worker_processes() -> list[Path]:
    """Those that answer queries, as folders of /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::_Answerer"):
                found.append(folder)
    return found


def own_megabytes(process: Path) -> float:
    with contextlib.suppress(OSError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) / 1024
    return 0.0


def answered(index_path: str, queries: Table, out: Path, workers: int) -> dict[str, Any]:
    began = time.perf_counter()
    config = SearchConfig(index=index_path, queries=queries.uri, out=str(out), k=K, workers=workers)
    with MemoryLog() as memory:
        count = search(config)["queries"]
    seconds = time.perf_counter() - began
    answers = pl.scan_parquet(out).select(pl.len(), pl.col("query").n_unique().alias("names")).collect()
    assert answers.row(0) == (count * K, count), answers
    return {"step": f"{workers} workers", "queries": count, "seconds": seconds, "queries_per_second": count / seconds} | {
        "megabytes": memory.summary()
    }


def sample_recall(collection: Collection, queries: Table, out: Path, dimensions: int) -> float:
    """Of the first queries' answers, as they are in the file."""
    names = [f"s3://queries/{at:08d}.jpg" for at in range(CHECKED)]
    found = pl.scan_parquet(out).filter(pl.col("query").is_in(names)).collect().group_by("query").agg(pl.col("uri"))
    of_name = {name: set(uris) for name, uris in found.iter_rows()}
    first_BD = make_vectors(min(CHUNK_ROWS, sum(part.rows for part in queries.parts())), dimensions, 1000)[:CHECKED]
    wanted = truth(collection.contents(), first_BD)
    return float(np.mean([len(of_name[name] & one) / K for name, one in zip(names, wanted, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--part-rows", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--shards-factory", default="IVF1024,Flat")
    parser.add_argument("--queries-factory", default="auto")
    parser.add_argument("--steps", nargs="*", choices=("shards", "queries"), default=["shards", "queries"])
    parser.add_argument("--folder", type=Path, help="keep the table of queries there, for the next time")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.queries, arguments.dimensions, arguments.part_rows = 6_000, 3_000, 64, 500
        arguments.shards, arguments.shards_factory = [1, 2], "IVF64,Flat"
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
        folder = Path(scratch).resolve()
        collection = Collection(folder, make_vectors(arguments.rows, arguments.dimensions, 1), arguments.part_rows)
        if "queries" in arguments.steps:
            place = f"file://{(arguments.folder or folder).resolve()}/queries"
            queries = Table.open_or_none(place) or query_table(
                place, arguments.queries, arguments.dimensions, arguments.part_rows
            )
            few = query_table(f"file://{folder}/few", min(LOCAL_QUERIES, arguments.queries), arguments.dimensions, 4096)
            index_path = str(folder / "index")
            index(IndexConfig(table=collection.table.uri, out=index_path, factory=arguments.queries_factory))
        ray.init(address="local", num_cpus=arguments.workers, include_dashboard=False, logging_level="WARNING")
        if "shards" in arguments.steps:
            sample_BD = make_vectors(1000, arguments.dimensions, 2)
            result["shards"] = shards(folder, collection, sample_BD, arguments.shards_factory, arguments.shards)
        if "queries" in arguments.steps:
            out = folder / "answers.parquet"
            rows = [answered(index_path, few, out, 0), answered(index_path, queries, out, arguments.workers)]
            result["queries"] = rows
            result["recall"] = sample_recall(collection, queries, out, arguments.dimensions)
            result["ratio_to_one_process"] = ratio(rows[1]["queries_per_second"], rows[0]["queries_per_second"])
        ray.shutdown()
    for step in arguments.steps:
        print_table(result[step])
    print_json(result | machine())


if __name__ == "__main__":
    main()

"""Searches among rows of which a condition holds: recall and time at several shares of rows that pass, beside all rows.

Truth is FAISS Flat over the rows that pass, which NumPy tells. `even` conditions let rows through that lie anywhere, `near`
ones those of which a number of the vector is large, so that they lie together. Time is of one query at a time by an opened
index, the median; `first_ms` is of the first query of a condition, which reads the column and decides which rows pass.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from tests.bench.harness import finish, ratio
from tests.bench.index import make_rows, make_vectors, unit
from tests.search.tables import recipe_file
from tlray.config import IndexConfig
from tlray.lake.table.parts import Change, write_part
from tlray.lake.table.table import Table
from tlray.search.build.build_index import index
from tlray.search.query.searcher import Searcher
from tlray.search.rows.selection import Filter

FACTORIES = ["HNSW32", "IVF1024,Flat", "IVF1024,PQ32"]
SHARES = [0.5, 0.01, 0.0001]
PART_ROWS = 10_000
QUERIES, SINGLES = 200, 100


def make_table(folder: Path, features_ND: np.ndarray, even_N: np.ndarray, near_N: np.ndarray) -> Table:
    """A table with the columns `even` and `near`."""
    table = Table.create(f"file://{folder}/table", recipe_file(features_ND.shape[1]))
    parts, fields = [], [pa.field("even", pa.float64()), pa.field("near", pa.float64())]
    for start in range(0, len(features_ND), PART_ROWS):
        block = slice(start, start + PART_ROWS)
        uris = [f"s3://photos/{at:08d}.jpg" for at in range(start, start + len(features_ND[block]))]
        rows = make_rows(uris, "1", features_ND[block])
        for field, values in zip(fields, (even_N, near_N), strict=True):
            rows = rows.append_column(field, pa.array(values[block]))
        parts.append(write_part(table.uri, rows, status="ok", stem="part", recipe_id=table.recipe_file.recipe_id))
    table.commit(Change(parts, fields=fields), app_id="bench", sequence=1, info={})
    return table


def measure(
    searcher: Searcher, features_ND: np.ndarray, queries_BD: np.ndarray, values_N: np.ndarray, where: str, limit: float
) -> dict[str, Any]:
    """Recall, and milliseconds of one query."""
    passing = np.flatnonzero(values_N < limit)
    flat = faiss.IndexFlatL2(features_ND.shape[1])
    flat.add(unit(features_ND[passing]))
    k = min(10, len(passing))
    wanted = passing[flat.search(unit(queries_BD), k)[1]]
    began = time.perf_counter()
    searcher.search(queries_BD[:1], 10, Filter(where=where))
    first = time.perf_counter() - began
    found = searcher.search(queries_BD, 10, Filter(where=where)).to_lists()
    positions = [{int(hit["uri"][-12:-4]) for hit in hits} for hits in found]
    recall = float(np.mean([len(one & set(other.tolist())) / k for one, other in zip(positions, wanted, strict=True)]))
    seconds = []
    for at in range(SINGLES):
        began = time.perf_counter()
        searcher.search(queries_BD[at : at + 1], 10, Filter(where=where))
        seconds.append(time.perf_counter() - began)
    return {"rows": len(passing), "recall_at_10": round(recall, 4), "ms": 1e3 * median(seconds), "first_ms": 1e3 * first}


def main() -> None:
    """Build each index and measure it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--factories", nargs="+", default=FACTORIES)
    parser.add_argument("--quick", action="store_true", help="5,000 rows: only shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.dimensions, arguments.factories = 5000, 32, ["HNSW32"]
    features_ND = make_vectors(arguments.rows, arguments.dimensions, 1)
    queries_BD = make_vectors(QUERIES, arguments.dimensions, 2)
    rng = np.random.default_rng(3)
    near_N = -features_ND[:, 0].astype(np.float64)
    columns = {"even": rng.random(arguments.rows), "near": near_N}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tlray-where-") as name:
        folder = Path(name)
        table = make_table(folder, features_ND, columns["even"], columns["near"])
        for number, factory in enumerate(arguments.factories):
            out = str(folder / f"index-{number}")
            index(IndexConfig(table=table.uri, out=out, factory=factory, rerank="auto"))
            searcher = Searcher.open(out)
            faiss.omp_set_num_threads(1)
            everything = measure(searcher, features_ND, queries_BD, columns["even"], "", 2.0)
            about = {"factory": factory, "target": searcher.card.recall_target}
            rows.append({**about, "where": "", **everything, "ms_to_unfiltered": 1.0})
            for column, values_N in columns.items():
                for share in SHARES:
                    limit = float(np.sort(values_N)[max(10, round(share * len(values_N)))])
                    found = measure(searcher, features_ND, queries_BD, values_N, f"{column} < {limit!r}", limit)
                    to_unfiltered = ratio(found["ms"], everything["ms"])
                    rows.append({**about, "where": f"{column} {share:.2%}", **found, "ms_to_unfiltered": to_unfiltered})
            faiss.omp_set_num_threads(os.cpu_count() or 1)
    worst = min(row["recall_at_10"] - row["target"] for row in rows)
    finish({"searches": rows, "least_recall_over_target": round(worst, 4)}, rows)


if __name__ == "__main__":
    main()

"""The index, against FAISS itself: recall, time to build, time to search, and an update against a full rebuild.

Bare FAISS gets the vectors in memory, the same factory string, the same training rows, the same search parameters and, where
we re-rank, its own IndexRefineFlat; it trains, adds and writes a file. Ours begins with the table in Parquet and ends with a
tuned, measured, published index; `build_ratio` is the time of the FAISS calls in it over those of bare FAISS, `whole_ratio`
all of it. Both are built several times, turn by turn, and the fastest time of each counts; of the whole build the median of the
turns, too, as one file is on the disk much sooner than another. All but our first are full rebuilds after the update, which is
made as often, each time from the version before. Once is enough (`--builds 1`) for families that are slow to train.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from tests.bench.harness import finish, ratio
from tests.search.tables import recipe_file
from tlray.config import IndexConfig
from tlray.lake.table.parts import Change, Part, vector_column, vectors_of, write_part
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table
from tlray.search.build.build_index import index
from tlray.search.neighbours.factory import training_rows
from tlray.search.query.searcher import Searcher
from tlray.search.versions.card import Card, read_card

FAMILIES = ["Flat", "HNSW32", "IVF1024,Flat", "IVF1024,PQ16", "OPQ16_64,IVF1024,PQ16"]
"""Each by itself takes half a minute on two cores, the last two some minutes."""

INTRINSIC = 24
QUERIES = 1000
SINGLES = 200


def make_vectors(count: int, dimensions: int, seed: int) -> np.ndarray:
    """As networks give them: clusters of unequal size on a curved surface of few dimensions, after a ReLU, with noise."""
    shape = np.random.default_rng(0)
    centres = shape.standard_normal((400, INTRINSIC))
    lift = shape.standard_normal((INTRINSIC, dimensions)) / np.sqrt(INTRINSIC)
    weights = shape.zipf(1.5, 400).clip(max=50).astype(float)
    rng = np.random.default_rng(seed)
    inner = centres[rng.choice(400, count, p=weights / weights.sum())] + 0.6 * rng.standard_normal((count, INTRINSIC))
    features = np.maximum(inner @ lift, 0) + 0.05 * rng.standard_normal((count, dimensions))
    return features.astype(np.float32)


def make_rows(uris: list[str], etag: str, features_BD: np.ndarray) -> pa.Table:
    count = len(uris)
    sides = pa.array([500] * count, pa.int32())
    columns = [uris, [etag] * count, pa.nulls(count, pa.string()), sides, sides, vector_column(features_BD, "half")]
    return pa.table(
        [*columns, pa.nulls(count, pa.string())], names=[*(field.name for field in FIXED_FIELDS), "embedding", "error"]
    )


class Collection:
    """A table of vectors that changes by whole parts, as `extract` changes it."""

    def __init__(self, folder: Path, features_ND: np.ndarray, part_rows: int) -> None:
        self.table = Table.create(f"file://{folder}/table", recipe_file(features_ND.shape[1]))
        self.pieces = [
            make_rows([f"s3://photos/{at:08d}.jpg" for at in range(start, start + len(block))], "1", block)
            for start in range(0, len(features_ND), part_rows)
            for block in [features_ND[start : start + part_rows]]
        ]
        self.parts = [self._write(piece) for piece in self.pieces]
        self.table.commit(Change(self.parts), app_id="bench", sequence=1, info={})

    def _write(self, rows: pa.Table) -> Part:
        return write_part(self.table.uri, rows, status="ok", stem="part", recipe_id=self.table.recipe_file.recipe_id)

    def change(self, share: float, seed: int) -> tuple[list[str], list[str]]:
        """Delete, change and add that share of rows, spread over all parts. URIs that are gone, and that are new or changed."""
        rng = np.random.default_rng(seed)
        gone: list[str] = []
        fresh: list[str] = []
        kept = []
        for piece in self.pieces:
            chosen = rng.choice(len(piece), 2 * round(share * len(piece)), replace=False)
            out, changed = np.split(chosen, 2)
            uris = np.array(piece["uri"].to_pylist())
            gone += uris[out].tolist()
            fresh += uris[changed].tolist()
            kept.append(piece.take(np.setdiff1d(np.arange(len(piece)), chosen)))
        added = len(gone)
        new = fresh + [f"s3://photos/new-{at:06d}.jpg" for at in range(added)]
        vectors = make_vectors(len(new), vectors_of(self.pieces[0]["embedding"]).shape[1], seed)
        self.pieces = [*kept, make_rows(new, "2", vectors)]
        parts = [self._write(piece) for piece in self.pieces]
        self.table.commit(Change(parts, self.parts), app_id="bench", sequence=2, info={})
        self.parts = parts
        return gone, new

    def contents(self) -> tuple[list[str], np.ndarray]:
        rows = pa.concat_tables(self.pieces)
        return rows["uri"].to_pylist(), vectors_of(rows["embedding"])


def unit(features_ND: np.ndarray) -> np.ndarray:
    copy = features_ND.copy()
    faiss.normalize_L2(copy)
    return copy


def truth(contents: tuple[list[str], np.ndarray], queries_BD: np.ndarray) -> list[set[str]]:
    """FAISS Flat."""
    uris, features_ND = contents
    flat = faiss.IndexFlatL2(features_ND.shape[1])
    flat.add(unit(features_ND))
    return [{uris[at] for at in row} for row in flat.search(unit(queries_BD), 10)[1]]


def recall(searcher: Searcher, queries_BD: np.ndarray, wanted: list[set[str]]) -> float:
    found = searcher.search(queries_BD, 10).to_lists()
    return float(np.mean([len({hit["uri"] for hit in one} & other) / 10 for one, other in zip(found, wanted, strict=True)]))


def bare(factory: str, vectors_ND: np.ndarray, folder: Path) -> tuple[Any, dict[str, float]]:
    """Train, add and write, and how long each took."""
    sample = np.random.default_rng(0).permutation(len(vectors_ND))[
        : training_rows(factory, len(vectors_ND), vectors_ND.shape[1])
    ]
    training_BD = vectors_ND[np.sort(sample)]
    at = [time.perf_counter()]
    made = faiss.index_factory(vectors_ND.shape[1], factory, faiss.METRIC_L2)
    if len(training_BD):
        made.train(training_BD)
    at.append(time.perf_counter())
    made.add(vectors_ND)
    at.append(time.perf_counter())
    faiss.write_index(made, str(folder / f"bare-{time.monotonic_ns()}.faiss"))  # a new one each time, as ours are
    at.append(time.perf_counter())
    return made, dict(zip(("train", "add", "write"), np.diff(at).tolist(), strict=True))


def seconds(work: Callable[[], object], repetitions: int) -> float:
    work()
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def search_times(searcher: Searcher, made: Any, vectors_ND: np.ndarray, queries_BD: np.ndarray) -> dict[str, float]:
    parameters = searcher.card.parameters
    if parameters.rerank > 1:
        made = faiss.IndexRefineFlat(made, faiss.swig_ptr(vectors_ND))
        made.k_factor = parameters.rerank
    space = faiss.ParameterSpace()
    if parameters.nprobe:
        space.set_index_parameter(made, "nprobe", parameters.nprobe)
    if parameters.ef_search:
        space.set_index_parameter(made, "efSearch", parameters.ef_search)
    prepared = unit(queries_BD)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: searcher.search(queries_BD, 10),
        "bare": lambda: made.search(prepared, 10),
        "ours one": lambda: [searcher.search(queries_BD[at : at + 1], 10) for at in range(SINGLES)],
        "bare one": lambda: [made.search(prepared[at : at + 1], 10) for at in range(SINGLES)],
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(5):  # turn by turn, as the machine is not always the same
        for name, work in works.items():
            times[name].append(seconds(work, 1))
    return {name: median(values) for name, values in times.items()}


def timed(config: IndexConfig) -> tuple[dict[str, Any], float, Card]:
    """Run the command; its result, its seconds and the new card."""
    began = time.perf_counter()
    result = index(config)
    return result, time.perf_counter() - began, read_card(f"file://{config.out}")


def updated(config: IndexConfig, before: Path) -> tuple[float, Card]:
    """Bring an index as it was to its table; seconds and the new card. Links will do, as an index's files never change."""
    shutil.rmtree(config.out, ignore_errors=True)
    shutil.copytree(before, config.out, copy_function=os.link)
    result, taken, card = timed(config)
    assert result["action"] == "updated", result
    return taken, card


def calls(card: Card) -> float:
    """Seconds of the FAISS calls of a build."""
    return card.seconds.get("train", 0) + card.seconds["add"]


def measure(factory: str, features_ND: np.ndarray, queries_BD: np.ndarray, part_rows: int, count: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="tlray-bench-")).resolve()
    collection = Collection(folder, features_ND, part_rows)
    config = IndexConfig(table=collection.table.uri, out=str(folder / "index"), factory=factory)
    contents = collection.contents()
    vectors_ND = unit(contents[1])
    made, first_bare = bare(factory, vectors_ND, folder)
    _, built_seconds, card = timed(config)
    searcher = Searcher.open(config.out)
    times = search_times(searcher, made, vectors_ND, queries_BD)
    row: dict[str, Any] = {
        "factory": factory,
        "recall": recall(searcher, queries_BD, truth(contents, queries_BD)),
        "parameters": " ".join(f"{name}={value}" for name, value in card.parameters if value is not None),
        "batch_ratio": ratio(times["ours"], times["bare"]),
        "single_ratio": ratio(times["ours one"], times["bare one"]),
        "single_ms": times["ours one"] / SINGLES * 1000,
    }
    gone, new = collection.change(0.01, 7)
    before = Path(config.out).rename(folder / "before")
    os.sync()  # else the disk is still busy with what was written here
    updates = [updated(config, before) for _ in range(count)]
    update_seconds = min(seconds for seconds, _ in updates)
    began = time.perf_counter()
    searcher = Searcher.open(config.out)
    open_seconds = time.perf_counter() - began
    contents = collection.contents()
    wanted = truth(contents, queries_BD)
    after = recall(searcher, queries_BD, wanted)
    uris = contents[0]
    at_of = {uri: at for at, uri in enumerate(uris)}
    new_BD = contents[1][[at_of[uri] for uri in new]]
    found_new = [hits[0]["uri"] for hits in searcher.search(new_BD, 1).to_lists()]
    seen = {hit["uri"] for hits in searcher.search(contents[1][::10], 20).to_lists() for hit in hits}
    del searcher, made
    bares, builds, rebuilt = [first_bare], [(built_seconds, card)], None
    for _ in range(count - 1):
        bares.append(bare(factory, unit(contents[1]), folder)[1])
        builds.append(timed(config.model_copy(update={"rebuild": True}))[1:])
        rebuilt = recall(Searcher.open(config.out), queries_BD, wanted)
    shutil.rmtree(folder)
    bare_calls = min(one["train"] + one["add"] for one in bares)
    bare_seconds = min(sum(one.values()) for one in bares)
    rebuild_seconds = min(seconds for seconds, _ in builds)
    return row | {
        "bare_seconds": bare_seconds,
        "build_ratio": ratio(min(calls(one) for _, one in builds), bare_calls),
        "whole_ratio": round(median(seconds / sum(one.values()) for (seconds, _), one in zip(builds, bares, strict=True)), 3),
        "whole_ratio_fastest": ratio(rebuild_seconds, bare_seconds),
        "update_seconds": update_seconds,
        "open_seconds": open_seconds,
        "rebuild_seconds": rebuild_seconds,
        "update_ratio": ratio(update_seconds, rebuild_seconds),
        "recall_updated": after,
        "recall_rebuilt": rebuilt,
        "deleted_seen": len(seen & (set(gone) - set(uris))),
        "new_found": float(np.mean([one == other for one, other in zip(found_new, new, strict=True)])),
        "seconds": {
            "bare": bares,
            "builds": [one.seconds for _, one in builds],
            "updates": [{"all": round(seconds, 3)} | one.seconds for seconds, one in updates],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--part-rows", type=int, default=4096)
    parser.add_argument("--builds", type=int, default=3, help="of each")
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.dimensions, arguments.families = 5_000, 64, ["Flat", "HNSW16", "IVF64,Flat"]
    features_ND = make_vectors(arguments.rows, arguments.dimensions, 1)
    queries_BD = make_vectors(QUERIES, arguments.dimensions, 2)
    rows = [measure(factory, features_ND, queries_BD, arguments.part_rows, arguments.builds) for factory in arguments.families]
    stages = [row.pop("seconds") for row in rows]
    for row, stage in zip(rows, stages, strict=True):
        print(row["factory"], stage)
    finish({"rows": rows, "stages": stages}, rows)


if __name__ == "__main__":
    main()

"""Approximate neighbours: our index beside bare FAISS, hnswlib and usearch, each as wide as the same recall needs.

Every engine gets the same structured unit vectors under squared L2, and is measured in two processes of its own: one that
builds and writes a file, one that opens the file and searches. Ours begins with a table in Parquet, tunes and measures itself,
and answers with rows of that table; the others have the vectors in memory and answer with numbers. `links` are those of a node
in the upper layers of a graph (twice as many in the lowest), `effort` how many candidates a new node is linked from: each graph
is built as FAISS does it and as its own library does it by default.

Recall at 10 is held against FAISS Flat over all queries. For each target the least width (efSearch, nprobe) that reaches it is
searched for, and timed there: one query at a time, and all at once on all cores (`batch_cpu` is the processor time of that);
engines take turns, and the fastest turn of each counts. Memory is what the second process holds of its own (anonymous, not
mapped from files) beyond what it had before it opened the file. `cpu_seconds` are of the whole process that builds, imports
included: other work on the machine hardly changes them. With `--folder` what is there is used again, so that builds of an hour
and the timing of searches need not be one run.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np

from tests.bench.harness import finish, print_json, ratio, run_json
from tests.bench.index import make_rows, make_vectors, unit
from tests.bench.neighbour_engines import Engine, K, Search, engines, timed
from tests.search.tables import recipe_file
from tlray.lake.table.parts import Change, round_to_half, write_part
from tlray.lake.table.table import Table

QUERIES, SINGLES, ROUNDS = 1000, 200, 5
BLOCK_ROWS = 50_000
BUILD_SECONDS = 6 * 3600.0
MOST_WIDE = 4096
TIMES = ("single_ms", "batch_ms", "batch_cpu_ms")
QUERY_SEED = 2**20


def write_inputs(folder: Path, rows: int, dimensions: int) -> None:
    """Vectors, queries and their exact neighbours as NumPy files, and the same vectors as a table."""
    vectors_ND = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(rows, dimensions))
    table = Table.create(f"file://{folder}/table", recipe_file(dimensions))
    parts = []
    for start in range(0, rows, BLOCK_ROWS):
        block_BD = round_to_half(make_vectors(min(BLOCK_ROWS, rows - start), dimensions, 1 + start // BLOCK_ROWS))
        vectors_ND[start : start + len(block_BD)] = unit(block_BD)
        uris = [f"s3://photos/{start + at:08d}.jpg" for at in range(len(block_BD))]
        rows_of_part = make_rows(uris, "1", block_BD)
        parts.append(write_part(table.uri, rows_of_part, status="ok", stem="part", recipe_id=table.recipe_file.recipe_id))
    table.commit(Change(parts), app_id="bench", sequence=1, info={})
    queries_BD = unit(make_vectors(QUERIES, dimensions, QUERY_SEED))
    np.save(folder / "queries.npy", queries_BD)
    flat = faiss.IndexFlatL2(dimensions)
    exact: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, rows, BLOCK_ROWS):  # of which as few as may be are in memory
        flat.reset()
        flat.add(np.ascontiguousarray(vectors_ND[start : start + BLOCK_ROWS]))
        distances_BK, ids_BK = flat.search(queries_BD, K)
        exact.append((distances_BK, ids_BK + start))
    distances_BM, ids_BM = (np.concatenate(parts_, axis=1) for parts_ in zip(*exact, strict=True))
    order_BK = np.argsort(distances_BM, axis=1, kind="stable")[:, :K]
    np.save(folder / "truth.npy", np.take_along_axis(ids_BM, order_BK, axis=1))


def own_megabytes() -> float:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def recall(search: Search, queries_BD: np.ndarray, truth_BK: np.ndarray, width: int) -> float:
    found_BK = search(queries_BD, width)
    pairs = zip(found_BK.tolist(), truth_BK.tolist(), strict=True)
    return float(np.mean([len(set(one) & set(other)) / K for one, other in pairs]))


def least_width(recall_at: Callable[[int], float], target: float, most: int) -> int | None:
    """The least width that reaches a recall, to a sixteenth; None where none does."""
    low, high = 0, 1
    while recall_at(high) < target:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if recall_at(middle) >= target else (middle, high)
    return high


def searched(engine: Engine, folder: Path, path: Path, targets: list[float]) -> list[dict[str, Any]]:
    queries_BD, truth_BK = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    before = own_megabytes()
    search = engine.open(path)
    search(queries_BD[:1], K)
    megabytes = own_megabytes() - before
    recalls: dict[int, float] = {}

    def recall_at(width: int) -> float:
        if width not in recalls:
            recalls[width] = recall(search, queries_BD, truth_BK, width)
        return recalls[width]

    found = []
    for target in targets:
        width = least_width(recall_at, target, MOST_WIDE)
        row: dict[str, Any] = {"memory_megabytes": megabytes, "target": target, "width": width}
        if width is not None:
            singles = [queries_BD[at : at + 1] for at in range(SINGLES)] * ROUNDS
            one_by_one = [timed(partial(search, query_1D, width)) for query_1D in singles]
            began = time.process_time()
            at_once = [timed(partial(search, queries_BD, width)) for _ in range(ROUNDS)]
            cpu_seconds = time.process_time() - began
            row |= {
                "recall": recall_at(width),
                "single_ms": 1e3 * median(one_by_one),
                "batch_ms": 1e3 * median(at_once) / len(queries_BD),
                "batch_cpu_ms": 1e3 * cpu_seconds / ROUNDS / len(queries_BD),
            }
        found.append(row)
    return found


def to_fastest(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row its times over the fastest engine's of that target."""
    for target in {row["target"] for row in rows}:
        same = [row for row in rows if row["target"] == target and row.get("single_ms")]
        for kind in TIMES:
            fastest = min((row[kind] for row in same), default=None)
            for row in same:
                row[f"{kind.removesuffix('_ms')}_to_fastest"] = ratio(row[kind], fastest)


def step(arguments: argparse.Namespace) -> None:
    """What one of the processes of an engine does: build, or open and search."""
    folder = Path(arguments.folder)
    engine, path = engines(arguments.rows)[arguments.engine], folder / arguments.engine.replace(" ", "-")
    if arguments.step == "build":
        print_json(engine.build(folder, path) | {"cpu_seconds": time.process_time()})
    else:
        print_json({"found": searched(engine, folder, path, arguments.targets)})


def built(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the build of an engine took; the one that is there, if any."""
    noted = folder / f"{name.replace(' ', '-')}.json"
    if not noted.exists():
        noted.write_text(json.dumps(run_json(*own(name, arguments, folder), "--step", "build", seconds=BUILD_SECONDS)))
    seconds: dict[str, Any] = json.loads(noted.read_text())
    return seconds


def found(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What an engine's searches are like, one row a target."""
    targets = [str(target) for target in arguments.targets]
    rows: list[dict[str, Any]] = run_json(*own(name, arguments, folder), "--step", "search", "--targets", *targets)["found"]
    return rows


def own(name: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    return ["tests.bench.neighbours", "--engine", name, "--folder", str(folder), "--rows", str(arguments.rows)]


def fastest_of(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of several turns, with the fastest of each time, which other work on the machine disturbed least."""
    times = {kind: min(turn[kind] for turn in turns) for kind in TIMES if kind in turns[0]}
    return turns[0] | times


def measured(names: Sequence[str], arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The rows of all engines: built one after the other, searched in turns."""
    builds = {name: built(name, arguments, folder) for name in names}
    if arguments.build_only:
        return [{"engine": name, **builds[name]} for name in names]
    turns = [{name: found(name, arguments, folder) for name in names} for _ in range(arguments.turns)]
    return [
        {"engine": name, **builds[name], **fastest_of([turn[name][at] for turn in turns])}
        for name in names
        for at in range(len(arguments.targets))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--targets", nargs="+", type=float, default=[0.95, 0.99])
    parser.add_argument("--only", default="", help="engines whose names have this in them")
    parser.add_argument("--folder", help="for vectors and indexes, which are used again; default a temporary one")
    parser.add_argument("--build-only", action="store_true", help="build what is not there, search nothing")
    parser.add_argument("--turns", type=int, default=3, help="in which engines are searched; the fastest counts")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step(arguments)
        return
    if arguments.quick:
        arguments.rows, arguments.dimensions, arguments.turns = 5000, 32, 1
    names = [name for name in engines(arguments.rows) if arguments.only in name]
    missing = {package for name in names for package in engines(arguments.rows)[name].packages if find_spec(package) is None}
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
        folder = Path(arguments.folder or scratch).resolve()
        if not (folder / "truth.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_inputs(folder, arguments.rows, arguments.dimensions)
        here = [name for name in names if not missing.intersection(engines(arguments.rows)[name].packages)]
        rows = measured(here, arguments, folder)
    to_fastest([row for row in rows if "target" in row])
    finish({"rows": rows, "vectors": [arguments.rows, arguments.dimensions], "not_installed": sorted(missing)}, rows)


if __name__ == "__main__":
    main()

"""The table alone: writing parts, committing them and reading the vectors back, against plain pyarrow.

Plain pyarrow writes Parquet with the same compression and encoding and reads it as a dataset: no log, no hash, no recipe, and
nothing that tells a whole table from half of one. What it writes is in memory until the system finds time for the disk; ours is
on the disk before the log names it, so `write synced` is plain pyarrow with that added.
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

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.bench.harness import finish, ratio
from tests.factories import make_recipe_file
from tlray.lake.table.parts import Change, Part, vector_column, vectors_of, write_part
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table

COLUMNS = ["uri", "embedding"]


def make_rows(first: int, count: int, dimensions: int) -> pa.Table:
    """Rows as an encoder gives them: vectors after a ReLU and a mean, rounded for storage."""
    rng = np.random.default_rng(first)
    features_BD = np.abs(rng.standard_normal((count, dimensions), np.float32)) * np.float32(0.4)
    sides = pa.array(np.full(count, 500, np.int32))
    uris = pa.array([f"s3://photo-archive/uploads/2026/IMG_{first + number:09d}.jpg" for number in range(count)])
    etags = pa.array([f"{int(value):032x}" for value in rng.integers(2**62, size=count)])
    columns = [uris, etags, pa.nulls(count, pa.string()), sides, sides, vector_column(features_BD, "half")]
    names = [*(field.name for field in FIXED_FIELDS), "embedding", "error"]
    return pa.table([*columns, pa.nulls(count, pa.string())], names=names)


def ours(folder: Path, pieces: list[pa.Table]) -> dict[str, Callable[[], object]]:
    """Our stages, in order."""
    table = Table.create(f"file://{folder}/table", make_recipe_file())
    parts: list[Part] = []

    def write() -> None:
        parts.extend(
            write_part(table.uri, piece, status="ok", stem=f"{index}", recipe_id=table.recipe_file.recipe_id)
            for index, piece in enumerate(pieces)
        )

    def commit() -> None:
        table.commit(Change(parts), app_id="bench", sequence=1, info={})

    def read() -> np.ndarray:
        return vectors_of(Table.open(table.uri).read(COLUMNS)["embedding"])

    return {"write": write, "commit": commit, "read": read}


def pyarrow(folder: Path, pieces: list[pa.Table]) -> dict[str, Callable[[], object]]:
    """The stages of plain pyarrow."""
    place, synced_place = folder / "plain", folder / "synced"
    place.mkdir()
    synced_place.mkdir()

    def write(place: Path = place) -> None:
        for index, piece in enumerate(pieces):
            pq.write_table(
                piece,
                place / f"{index}.parquet",
                compression="zstd",
                use_dictionary=["label", "error"],
                use_byte_stream_split=["embedding.list.element"],
                write_statistics=["uri"],
                store_schema=False,
            )
            if place is synced_place:
                with (place / f"{index}.parquet").open("rb") as file:
                    os.fsync(file.fileno())

    def read() -> np.ndarray:
        return vectors_of(ds.dataset(place).to_table(COLUMNS)["embedding"])

    return {"write": write, "write synced": lambda: write(synced_place), "read": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, one repetition")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--part-rows", type=int, default=445, help="rows of a part, as a unit of 224 x 224 images has them")
    parser.add_argument("--dimensions", type=int, default=1280)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.repetitions = 2_000, 1
    starts = range(0, arguments.rows, arguments.part_rows)
    sizes = [min(arguments.part_rows, arguments.rows - start) for start in starts]
    pieces = [make_rows(start, size, arguments.dimensions) for start, size in zip(starts, sizes, strict=True)]
    seconds: dict[tuple[str, str], list[float]] = {}
    stored_bytes: dict[str, int] = {}
    for _ in range(arguments.repetitions):
        for name, engine in (("ours", ours), ("pyarrow", pyarrow)):
            folder = Path(tempfile.mkdtemp(prefix="tlray-bench-")).resolve()
            for stage, work in engine(folder, pieces).items():
                began = time.perf_counter()
                result = work()
                seconds.setdefault((name, stage), []).append(time.perf_counter() - began)
            assert isinstance(result, np.ndarray) and result.shape == (arguments.rows, arguments.dimensions)
            stored_bytes[name] = sum(path.stat().st_size for path in folder.rglob("*.parquet") if path.parent.name != "synced")
            shutil.rmtree(folder)
    raw_mb = arguments.rows * arguments.dimensions * 4 / 1e6
    rows: list[dict[str, Any]] = [
        {"engine": name, "stage": stage, "seconds": median(values), "raw_mb_per_second": raw_mb / median(values)}
        for (name, stage), values in seconds.items()
    ]
    result_json = {
        "parts": len(pieces),
        "write_ratio": ratio(median(seconds["pyarrow", "write"]), median(seconds["ours", "write"])),
        "write_ratio_synced": ratio(median(seconds["pyarrow", "write synced"]), median(seconds["ours", "write"])),
        "read_ratio": ratio(median(seconds["pyarrow", "read"]), median(seconds["ours", "read"])),
        "commit_seconds": median(seconds["ours", "commit"]),
        "stored_fraction": {name: round(size / raw_mb / 1e6, 3) for name, size in stored_bytes.items()},
        "rows": rows,
    }
    finish(result_json, rows)


if __name__ == "__main__":
    main()

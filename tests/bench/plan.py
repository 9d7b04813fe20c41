"""Planning alone: seconds and memory a key, against a table that is empty and against one that has everything already.

Each case runs in a process of its own; its memory is how much the process's peak grew. The source makes its pages up as it
goes, as S3 would send them, and the time that takes is not counted.
"""

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.bench.harness import finish, print_json, ratio, run_json
from tests.factories import make_recipe_file
from tlray.lake.compare import compare
from tlray.lake.parts import FIXED_FIELDS, vector_column, write_part
from tlray.lake.sources import PAGE_SCHEMA
from tlray.lake.table import Change, Table

PAGE_ROWS = 1000
"""Keys in an answer to ListObjectsV2."""

PART_ROWS = 65_536
UNIT_IMAGES = 445
"""A piece of 224 x 224 images (`FetchSpec.piece_images`)."""

DIMENSIONS = 8
BUDGET_MIB = 2560
"""Whatever the number of keys."""

CASES = ("first", "again", "changed")


@dataclass
class MadeUpSource:
    """A prefix with keys as they are in the wild, about 90 characters each, in order, as S3 lists them.

    Attributes:
        keys: how many.
        changed_every: each so manieth object is another one than in the table; 0 for none.
        seconds: spent on making pages.
    """

    keys: int
    changed_every: int = 0
    kind: str = "images"
    gives_labels: bool = False
    seconds: float = field(default=0.0, init=False)

    def pages(self) -> Iterator[pa.Table]:
        for start in range(0, self.keys, PAGE_ROWS):
            began = time.perf_counter()
            page = self.page(start, min(start + PAGE_ROWS, self.keys))
            self.seconds += time.perf_counter() - began
            yield page

    def page(self, start: int, end: int) -> pa.Table:
        numbers = range(start, end)
        digests = [hashlib.md5(b"%d" % number).hexdigest() for number in numbers]
        columns = {
            "uri": [
                f"s3://photo-archive-eu-west-1/uploads/2026/{number // 10**6:05d}/IMG_{number:09d}_{digest[:17]}.jpg"
                for number, digest in zip(numbers, digests, strict=True)
            ],
            "etag": [
                digest[::-1] if self.changed_every and number % self.changed_every == 0 else digest
                for number, digest in zip(numbers, digests, strict=True)
            ],
            "size_bytes": [60_000 + number % 1000 for number in numbers],
            "label": [None] * len(numbers),
        }
        return pa.table(columns, PAGE_SCHEMA)

    def covers(self, uris: pa.Array) -> np.ndarray:
        return np.ones(len(uris), bool)


def make_table(uri: str, keys: int) -> None:
    """A table that holds everything that the source has, in parts as large as `optimize` leaves them."""
    table = Table.create(uri, make_recipe_file())
    source = MadeUpSource(keys)
    parts = []
    for start in range(0, keys, PART_ROWS):
        page = source.page(start, min(start + PART_ROWS, keys))
        sides = pa.array(np.full(len(page), 500, np.int32))
        vectors = vector_column(np.ones((len(page), DIMENSIONS), np.float32), "half")
        columns = [page["uri"], page["etag"], page["label"], sides, sides, vectors, pa.nulls(len(page), pa.string())]
        rows = pa.table(columns, names=[*(field.name for field in FIXED_FIELDS), "embedding", "error"])
        parts.append(write_part(table.uri, rows, status="ok", stem="bench", recipe_id=table.recipe_file.recipe_id))
    table.commit(Change(parts), app_id="bench", sequence=1, info={})


def peak_bytes() -> int:
    """The most memory that this process ever had.

    Linux passes `ru_maxrss` on from parent to child (getrusage(2) counts it in KiB, macOS in bytes), VmHWM it does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plan(source: MadeUpSource, table: Table | None) -> tuple[int, int]:
    """Plan as a run does; the images to embed, and the bytes on local disk."""
    todo = scratch_bytes = 0
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
        for difference in compare(source, table, Path(scratch)):
            todo += difference.cut(unit_images=UNIT_IMAGES, slots=2).todo
            scratch_bytes = sum(path.stat().st_size for path in Path(scratch).iterdir())
    return todo, scratch_bytes


def measure(case: str, keys: int, table_uri: str) -> dict[str, Any]:
    """Plan once, in this process."""
    plan(MadeUpSource(PAGE_ROWS), None)  # what is only loaded when it is used
    table = None if case == "first" else Table.open(table_uri)
    source = MadeUpSource(keys, changed_every=100 if case == "changed" else 0)
    before, began = peak_bytes(), time.perf_counter()
    todo, scratch_bytes = plan(source, table)
    seconds = time.perf_counter() - began - source.seconds
    assert todo == {"first": keys, "again": 0, "changed": -(-keys // 100)}[case], todo
    mib = (peak_bytes() - before) / 2**20
    return {
        "case": case,
        "keys": keys,
        "microseconds_per_key": seconds / keys * 1e6,
        "mib": mib,
        "scratch_bytes_per_key": scratch_bytes / keys,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1e5 keys only")
    parser.add_argument("--keys", nargs="+", type=int, default=[10**6, 10**7], help="sizes")
    parser.add_argument("--case", choices=CASES, help="only this one, in this process, with --table")
    parser.add_argument("--table", default="")
    arguments = parser.parse_args()
    if arguments.case:
        print_json(measure(arguments.case, arguments.keys[0], arguments.table))
        return
    rows = []
    for keys in [10**5] if arguments.quick else arguments.keys:
        with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
            uri = f"file://{Path(folder).resolve()}/table"
            make_table(uri, keys)
            rows += [run_json("tests.bench.plan", "--case", case, "--keys", str(keys), "--table", uri) for case in CASES]
    largest, smallest = max(row["keys"] for row in rows), min(row["keys"] for row in rows)
    seconds = {(row["case"], row["keys"]): row["microseconds_per_key"] for row in rows}
    finish(
        {
            "rows": rows,
            "mib": max(row["mib"] for row in rows),
            "within_budget": max(row["mib"] for row in rows) <= BUDGET_MIB,
            "time_a_key_of_largest_to_smallest": {
                case: ratio(seconds[case, largest], seconds[case, smallest]) for case in CASES
            },
        },
        rows,
    )


if __name__ == "__main__":
    main()

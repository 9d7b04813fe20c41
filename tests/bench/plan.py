"""Planning alone: seconds and memory a key, against a table that is empty and against one that has everything already.

Each plan is made in a process of its own, as a run makes it; its memory is how much the process's peak grew. What the source
lists is made up beforehand and comes from a file, so next to nothing of the time is the source's, and nothing that planning
does hides behind a slow one. Only `listed` makes names up as it goes, ten times as fast as S3 lists them, and `manifest` is a
whole plan as `--dry_run` makes it, of a Parquet manifest whose images the table has. Sizes take turns, so that what else the
machine does falls on all of them.
"""

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.bench.harness import finish, print_json, ratio, run_json
from tests.factories import make_recipe_file
from tlray.config import SourceConfig
from tlray.extraction.plan.compare import Listed, find_backlogs
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.open import open_source
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.table.parts import Change, vector_column, write_part
from tlray.lake.table.row_identities.arrow_memory import keep_freed_buffers
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table

PAGE_ROWS = 1000
"""Keys in an answer to ListObjectsV2."""

PART_ROWS = 65_536
UNIT_IMAGES = 445
"""A piece of 224 x 224 images (`ReadSpec.batch_images`)."""

DIMENSIONS = 8
CHANGED_EVERY = 100
BUDGET_MIB = 2560
"""Whatever the number of keys."""

CASES = ("listed", "first", "again", "changed", "manifest")
LISTING = "keys.arrow"


@dataclass
class MadeUpSource:
    """A prefix with keys as they are in the wild, about 90 characters each, in order, as S3 lists them.

    Attributes:
        keys: how many.
    """

    keys: int
    kind: str = "images"
    gives_labels: bool = False
    page_schema = PAGE_SCHEMA

    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]:
        del report
        for start in range(0, self.keys, PAGE_ROWS):
            yield self.page(start, min(start + PAGE_ROWS, self.keys))

    def page(self, start: int, end: int) -> pa.Table:
        numbers = range(start, end)
        digests = [hashlib.md5(b"%d" % number).hexdigest() for number in numbers]
        columns = {
            "uri": [
                f"s3://photo-archive-eu-west-1/uploads/2026/{number // 10**6:05d}/IMG_{number:09d}_{digest[:17]}.jpg"
                for number, digest in zip(numbers, digests, strict=True)
            ],
            "etag": digests,
            "size_bytes": [60_000 + number % 1000 for number in numbers],
            "label": [None] * len(numbers),
        }
        return pa.table(columns, PAGE_SCHEMA)

    def covers(self, uris: pa.Array) -> np.ndarray:
        return np.ones(len(uris), bool)


@dataclass
class FiledSource(MadeUpSource):
    """The same keys out of a file that has at least as many.

    Attributes:
        path: Arrow stream with a page a batch.
        changed_every: each so manieth object is another one than in the table; 0 for none.
    """

    path: Path = Path()
    changed_every: int = 0

    def pages(self, report: ListingReport | None = None) -> Iterator[pa.Table]:
        del report
        left = self.keys
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as batches:
            while left:
                page = pa.Table.from_batches([batches.read_next_batch()]).slice(0, left)
                left -= len(page)
                yield self._changed(page) if self.changed_every else page

    def _changed(self, page: pa.Table) -> pa.Table:
        is_changed = pa.array(np.arange(len(page)) % self.changed_every == 0)
        etags = pc.if_else(is_changed, pc.ascii_reverse(page["etag"]), page["etag"])
        return page.set_column(1, "etag", etags)


def make_listing(path: Path, keys: int) -> None:
    """The file of `FiledSource`."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, PAGE_SCHEMA) as stream:
        for page in MadeUpSource(keys).pages():
            stream.write_table(page.combine_chunks())


def make_manifest(path: Path, source: FiledSource) -> None:
    """A manifest of everything that the source has."""
    columns = ["uri", "etag", "size_bytes"]
    with pq.ParquetWriter(path, pa.schema([PAGE_SCHEMA.field(name) for name in columns])) as file:
        pages = source.pages()
        while some := list(islice(pages, PART_ROWS // PAGE_ROWS)):
            file.write_table(pa.concat_tables(some).select(columns))


def make_table(uri: str, source: FiledSource) -> None:
    """A table that holds everything that the source has, in parts about as large as `optimize` leaves them."""
    table = Table.create(uri, make_recipe_file())
    pages = source.pages()
    parts = []
    while some := list(islice(pages, PART_ROWS // PAGE_ROWS)):
        keys = pa.concat_tables(some)
        sides = pa.array(np.full(len(keys), 500, np.int32))
        vectors = vector_column(np.ones((len(keys), DIMENSIONS), np.float32), "half")
        columns = [keys["uri"], keys["etag"], keys["label"], sides, sides, vectors, pa.nulls(len(keys), pa.string())]
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


def plan(source: Listed, table: Table | None) -> tuple[int, int]:
    """Plan as a run does; the images to embed, and the bytes on local disk."""
    keep_freed_buffers()  # as the command does
    todo = scratch_bytes = 0
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as scratch:
        for backlog in find_backlogs(source, table, Path(scratch)):
            todo += backlog.cut(unit_images=UNIT_IMAGES, slots=2).todo
            scratch_bytes = sum(path.stat().st_size for path in Path(scratch).iterdir())
    return todo, scratch_bytes


def measure(case: str, keys: int, folder: Path) -> dict[str, Any]:
    """Plan once, in this process."""
    listing = folder / LISTING
    plan(FiledSource(PAGE_ROWS, path=listing), None)  # what is only loaded when it is used
    table = None if case in ("listed", "first") else Table.open(table_uri(folder, keys))
    source: Listed = MadeUpSource(keys)
    if case == "manifest":
        source = open_source(SourceConfig(uri=str(manifest_path(folder, keys))))
    elif case != "listed":
        source = FiledSource(keys, path=listing, changed_every=CHANGED_EVERY if case == "changed" else 0)
    before, began, cpu_began = peak_bytes(), time.perf_counter(), time.process_time()
    todo, scratch_bytes = plan(source, table)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    assert todo == {"again": 0, "manifest": 0, "changed": -(-keys // CHANGED_EVERY)}.get(case, keys), todo
    return {
        "microseconds": seconds / keys * 1e6,
        "cpu_microseconds": cpu_seconds / keys * 1e6,
        "mib": (peak_bytes() - before) / 2**20,
        "scratch_bytes": scratch_bytes / keys,
    }


def table_uri(folder: Path, keys: int) -> str:
    """Where the table of so many keys is."""
    return f"file://{folder.resolve()}/table-{keys}"


def manifest_path(folder: Path, keys: int) -> Path:
    """Where the manifest of so many keys is."""
    return folder / f"manifest-{keys}.parquet"


def prepare(folder: Path, sizes: Sequence[int]) -> None:
    """Make the listing, the tables and the manifests that the folder does not have yet."""
    listing = folder / LISTING
    if not listing.exists():
        make_listing(listing, max(sizes))
    for keys in sizes:
        source = FiledSource(keys, path=listing)
        if not Path(f"{folder}/table-{keys}").exists():
            make_table(table_uri(folder, keys), source)
        if not manifest_path(folder, keys).exists():
            make_manifest(manifest_path(folder, keys), source)


def run(folder: Path, sizes: Sequence[int], repetitions: int) -> dict[str, Any]:
    """All cases of all sizes in turns: the result, with one row for each."""
    samples: dict[tuple[str, int], list[dict[str, float]]] = {(case, keys): [] for case in CASES for keys in sizes}
    for _ in range(repetitions):
        for (case, keys), measured in samples.items():
            arguments = ["--case", case, "--keys", str(keys), "--folder", str(folder)]
            measured.append(run_json("tests.bench.plan", *arguments))
            print(f"{case} {keys}: {measured[-1]}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [
        {
            "case": case,
            "keys": keys,
            "us_a_key": median(one["microseconds"] for one in measured),
            "least": min(one["microseconds"] for one in measured),
            "most": max(one["microseconds"] for one in measured),
            "cpu_us_a_key": median(one["cpu_microseconds"] for one in measured),
            "mib": max(one["mib"] for one in measured),
            "disk_bytes_a_key": median(one["scratch_bytes"] for one in measured),
        }
        for (case, keys), measured in samples.items()
    ]
    times = {(row["case"], row["keys"]): row for row in rows}
    *_, base, largest = [None, *sizes]
    return {
        "rows": rows,
        "mib": max(row["mib"] for row in rows),
        "within_budget": max(row["mib"] for row in rows) <= BUDGET_MIB,
    } | {
        f"ratio_of_{name}": {case: ratio(times[case, largest][name], times[case, base][name]) for case in CASES}
        for name in ("us_a_key", "cpu_us_a_key")
        if base is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1e5 keys only, once")
    parser.add_argument("--keys", nargs="+", type=int, default=[10**5, 10**6, 10**7], help="sizes, the largest last")
    parser.add_argument("--repetitions", type=int, default=3, help="of each case and size; 0 only fills the folder")
    parser.add_argument("--folder", type=Path, help="where what is made up is kept for the next time (2.2 GB for 1e7 keys)")
    parser.add_argument("--case", choices=CASES, help="only this one, once, in this process, with what the folder has")
    arguments = parser.parse_args()
    if arguments.case:
        print_json(measure(arguments.case, arguments.keys[0], arguments.folder))
        return
    if arguments.quick:
        arguments.keys, arguments.repetitions = [10**5], 1
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, arguments.keys)
        if arguments.repetitions:
            result = run(folder, arguments.keys, arguments.repetitions)
            finish(result, result["rows"])


if __name__ == "__main__":
    main()

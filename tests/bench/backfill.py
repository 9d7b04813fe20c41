"""What it costs to keep a table where its source is: runs with nothing to do, runs with little to do, and a long log.

`again`: a whole `tlray extract --local` over keys that the table has already, against listing them and nothing else. Both
list through the S3 store, from a server in another process that answers ListObjectsV2 with keys it makes up.
`changed`: the share of a table's bytes that is rewritten when 1 % of its rows change: in one folder, in ten, evenly spread;
beside the bytes that deletion vectors would take (roaring bitmaps, the new rows and the log's lines).
`commits`: opening a table after so many nights, each with one new image, against after ten.
"""

import argparse
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa

from tests.bench.harness import finish, print_table, ratio
from tests.bench.plan import PART_ROWS, MadeUpSource
from tests.factories import make_recipe_file
from tests.photos import RECIPE, result_of, tlray
from tlray.config import RecipeConfig, SourceConfig
from tlray.extraction.commit.committer import Committer
from tlray.extraction.plan.compare import find_backlogs
from tlray.extraction.plan.plan import Plan
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.source.open import open_source
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.storage.local_copy import local_copy
from tlray.lake.table.maintenance import optimize
from tlray.lake.table.parts import Change, Part, vector_column, write_part
from tlray.lake.table.schema import FIXED_FIELDS
from tlray.lake.table.table import Table

BUCKET, PREFIX = "photo-archive-eu-west-1", "uploads/2026/"
PAGE_KEYS = 1000
ROWS, DIMENSIONS, UNIT_IMAGES = 100_000, 512, 445
OPENINGS = 20


class Keys(BaseHTTPRequestHandler):
    """ListObjectsV2 over the keys of `tests.bench.plan.MadeUpSource`; no object can be had."""

    protocol_version = "HTTP/1.1"
    pages: list[bytes]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._answer(200, self.pages[int(query.get("continuation-token", ["0"])[0])])

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve_keys(keys: int, pipe: Connection) -> None:
    """Answer until the other end of the pipe says something."""
    source, pages = MadeUpSource(keys), []
    for start in range(0, keys, PAGE_KEYS):
        rows = source.page(start, min(start + PAGE_KEYS, keys)).to_pylist()
        items = "".join(
            f"<Contents><Key>{row['uri'].removeprefix(f's3://{BUCKET}/')}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{row['etag']}&quot;</ETag><Size>{row['size_bytes']}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for row in rows
        )
        more = f"<NextContinuationToken>{len(pages) + 1}</NextContinuationToken>" if start + PAGE_KEYS < keys else ""
        head = f"<Name>{BUCKET}</Name><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
        pages.append(f'<?xml version="1.0"?><ListBucketResult>{head}{items}</ListBucketResult>'.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Keys,), {"pages": pages, "disable_nagle_algorithm": True}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    pipe.recv()


@contextmanager
def key_server(keys: int) -> Iterator[None]:
    """The server in a process of its own, and an environment in which it is S3."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve_keys, args=(keys, theirs))
    process.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    yield
    ours.send("end")
    process.join()


def rows_of(page: pa.Table, vectors: np.ndarray) -> pa.Table:
    sides = pa.array(np.full(len(page), 500, np.int32))
    column = vector_column(vectors, "half")
    columns = [page["uri"], page["etag"], page["label"], sides, sides, column, pa.nulls(len(page), pa.string())]
    return pa.table(columns, names=[*(field.name for field in FIXED_FIELDS), "embedding", "error"])


def list_all(uri: str) -> float:
    """Seconds that listing takes, and nothing else."""
    began = time.perf_counter()
    count = sum(map(len, open_source(SourceConfig(uri=uri)).pages()))
    print(f"  listed {count} keys", flush=True)
    return time.perf_counter() - began


def again(keys: int) -> dict[str, Any]:
    """A run over keys that the table has, against listing them."""
    from tlray.models.backbones.images import resolve_backbone
    from tlray.models.encoder.golden import make_recipe_file as golden_recipe_file

    recipe = RecipeConfig(backbone="timm:test_resnet", weights="random:7", precision={"compute": "fp32"})
    with tempfile.TemporaryDirectory() as folder, key_server(keys):
        table = Table.create(f"file://{folder}/t", golden_recipe_file(resolve_backbone(recipe, local_copy)))
        fill(table, keys)
        uri = f"s3://{BUCKET}/{PREFIX}"
        alone_seconds = list_all(uri)
        result = result_of(tlray("extract", "--local", "--source.uri", uri, "--table", table.uri, *RECIPE))
        assert result["unchanged"] == keys, result
        return {
            "keys": keys,
            "listing_seconds": round(alone_seconds, 2),
            "again_seconds": result["seconds"],
            "again_to_listing": ratio(result["seconds"], alone_seconds),
        }


def fill(table: Table, keys: int) -> None:
    """All that the source has, in parts; their vectors are never read."""
    source, parts = MadeUpSource(keys), list[Part]()
    for start in range(0, keys, PART_ROWS):
        page = source.page(start, min(start + PART_ROWS, keys))
        rows = rows_of(page, np.ones((len(page), 8), np.float32))
        parts.append(write_part(table.uri, rows, status="ok", stem="bench", recipe_id=table.recipe_file.table_id))
    table.commit(Change(parts), app_id="bench", sequence=1, info={})


class Folders(MadeUpSource):
    """100 folders of 1,000 images; those whose numbers are in `changed` are other ones than they were."""

    changed: frozenset[int] = frozenset()

    def page(self, start: int, end: int) -> pa.Table:
        numbers = range(start, end)
        digests = [hashlib.md5(b"%d %d" % (number, number in self.changed)).hexdigest() for number in numbers]
        uris = [f"s3://{BUCKET}/{number // 1000:03d}/{number:09d}.jpg" for number in numbers]
        return pa.table([uris, digests, [60_000] * len(uris), pa.nulls(len(uris), pa.string())], schema=PAGE_SCHEMA)


def write_units(table: Table, plan: Plan, committer: Committer, rng: np.random.Generator) -> int:
    """Do a plan's work as workers do, with random vectors; the bytes written."""
    written = 0
    committer.start(plan.groups)
    for unit in plan.units:
        rows = rows_of(unit.items, rng.standard_normal((len(unit.items), DIMENSIONS), np.float32))
        part = write_part(table.uri, rows, status="ok", stem="run", recipe_id=table.recipe_file.table_id)
        written += part.size_bytes
        committer.add(Piece(unit.index, 0, True, WrittenParts((part,), {}), {}))
    committer.flush(now=True)
    return written


def run(table: Table, source: MadeUpSource, run_id: str) -> tuple[int, int]:
    """A run but for its pixels; bytes of new rows, and bytes of old rows that were written again."""
    rng = np.random.default_rng(0)
    before, written = {part.path: part for part in table.parts()}, 0
    with tempfile.TemporaryDirectory() as scratch:
        committer = Committer(table, run_id)
        for backlog in find_backlogs(source, table, Path(scratch)):
            plan = backlog.cut(unit_images=UNIT_IMAGES, slots=2)
            written += write_units(table, plan, committer, rng)
    rewritten = sum(part.size_bytes for part in table.parts() if part.path not in before) - written
    return written, rewritten


def changed() -> list[dict[str, Any]]:
    """1 % of the rows change: in one folder, in ten, everywhere."""
    one = range(42_000, 43_000)
    ten = [number for folder in range(5, 100, 10) for number in range(folder * 1000, folder * 1000 + 100)]
    rows = []
    for name, numbers in (("one folder", one), ("ten folders", ten), ("evenly", range(0, ROWS, 100))):
        with tempfile.TemporaryDirectory() as folder:
            table = Table.create(f"file://{folder}/t", make_recipe_file())
            run(table, Folders(ROWS), "first")
            optimize(table, only_if_many=True)
            parts = table.parts()
            table_bytes, held = sum(part.size_bytes for part in parts), {part.path for part in parts}
            source = Folders(ROWS)
            source.changed = frozenset(numbers)
            new_bytes, rewritten = run(table, source, "second")
            touched = len(held - {part.path for part in table.parts()})
            # Of one 16-bit number a row; each bitmap has some 60 bytes of headers, each part two lines of the log of some 400.
            vectors = 2 * len(source.changed) + touched * (60 + 800)
            rows.append(
                {
                    "1 % changed": name,
                    "parts": len(parts),
                    "touched": touched,
                    "new %": 100 * new_bytes / table_bytes,
                    "rewritten %": 100 * rewritten / table_bytes,
                    "by deletion vectors %": 100 * vectors / table_bytes,
                }
            )
    return rows


def commits(count: int) -> dict[str, Any]:
    """Nights with one new image each, small parts joined as `extract` does."""
    with tempfile.TemporaryDirectory() as folder:
        table = Table.create(f"file://{folder}/t", make_recipe_file())
        opening = {}
        for number in range(1, count + 1):
            page = MadeUpSource(count).page(number - 1, number)
            part = write_part(table.uri, rows_of(page, np.ones((1, 4), np.float32)), status="ok", stem="night", recipe_id="r")
            table.commit(Change([part]), app_id=f"night{number}", sequence=1, info={"run": number})
            optimize(table, only_if_many=True)
            if number in (10, count):
                opening[number] = median(_opening(table.uri) for _ in range(OPENINGS))
        versions = table.version
    return {
        "commits": versions,
        "open_ms_after_10": 1000 * opening[10],
        "open_ms": 1000 * opening[count],
        "open_to_10": ratio(opening[count], opening[10]),
    }


def _opening(uri: str) -> float:
    began = time.perf_counter()
    Table.open(uri).parts()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10**6)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--only", choices=("again", "changed", "commits"))
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.only in (None, "again"):
        results["again"] = again(options.keys)
    if options.only in (None, "changed"):
        results["changed"] = changed()
        print_table(results["changed"])
    if options.only in (None, "commits"):
        results["commits"] = commits(options.commits)
    finish(results, [value for value in results.values() if isinstance(value, dict)][:1] or results["changed"])


if __name__ == "__main__":
    main()

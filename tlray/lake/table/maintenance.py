"""What is done to a table between runs: show, verify, vacuum, optimize."""

import hashlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.columns.column import Column, fields_of
from tlray.errors import ObjectNotFoundError, TableCorruptError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.lake.table.log.delta_log import COMMIT_INTERVAL_SECONDS
from tlray.lake.table.parts import (
    READ_THREADS,
    RECIPE_KEY,
    Change,
    Part,
    first_uri,
    part_metadata,
    read_part,
    row_counts,
    rows_of,
    vectors_of,
)
from tlray.lake.table.rewrite import MANY_SMALL_PARTS, MOST_PART_BYTES, PART_ROWS, Submit, in_this_thread, join_parts
from tlray.lake.table.table import Table

LEAST_PART_BYTES = 2**19
PARTS = 256
"""`optimize` keeps a smaller table in about so many parts, few of them under a quarter of a MiB: a folder of changed images is
then a small share of it to rewrite, and so many files no engine is slow to open."""

JOINS_AHEAD = 16
"""Groups that are given to the workers before the first of them is back: enough for some nodes, and little memory."""


def show(table: Table) -> dict[str, Any]:
    """What a table is, from its log and its failed rows alone.

    Returns:
        uri, version, recipe, row counts, failures by code, number and bytes of parts, and what the last run that embedded
        something says of itself: where its time went and what bounded it (None where the log does not go back so far);
        of a table of predictions also the model, and of one with columns that travelled their types (`carried`).
    """
    parts, file = table.parts(), table.recipe_file
    failures: Counter[str] = Counter()
    for part in parts:
        if part.status == "failed":
            failures.update(read_part(table.uri, part.path, ["error"])["error"].to_pylist())
    return {
        "table": table.uri,
        "version": table.version,
        "recipe_id": file.recipe_id,
        **row_counts(parts),
        "failures": dict(failures.most_common()),
        "parts": len(parts),
        "size_bytes": sum(part.size_bytes for part in parts),
        "last_run": table.log.last_run(),
        "columns": {column: list(file.shapes.get(column, (length,))) for column, length in file.lengths.items()},
        "recipe": file.recipe.model_dump(mode="json"),
        **({"carried": {column.name: column.type for column in table.carried}} if table.carried else {}),
        **({"model_id": file.table_id, "output": file.output.describe()} if file.output else {}),
    }


def verify(table: Table) -> dict[str, Any]:
    """Read every live part again and hold it against the log.

    Checked: the file exists, its bytes have the sha256 of its name, it is of the table's recipe and of the log's row count,
    each URI has one live row, failed rows have an error and others a finite vector of the right length.

    Raises:
        TableCorruptError: names every damaged part.
    """
    began = time.monotonic()
    problems: list[str] = []
    keys: list[np.ndarray] = [np.empty(0, "S16")]
    parts = table.parts()
    for part in parts:
        try:
            rows = _verified_rows(table, part)
        except TableCorruptError as error:
            problems.append(f"{part.path}: {error}")
        else:
            keys.append(_digests(rows["uri"].to_pylist()))
    unique, counts = np.unique(np.concatenate(keys), return_counts=True)
    if len(unique) != counts.sum():
        problems.append(f"{int((counts > 1).sum())} images have more than one live row")
    if problems:
        raise TableCorruptError(
            f"{table.uri} version {table.version} is damaged: {'; '.join(problems)}. Restore these files from a backup, or "
            "delete the table and run extract again; an older version may be whole (`--version`)"
        )
    seconds = round(time.monotonic() - began, 3)
    return {"table": table.uri, "version": table.version, **row_counts(parts), "parts": len(parts), "seconds": seconds}


def _digests(texts: Sequence[str]) -> np.ndarray:
    """128-bit digests of strings, as fixed-width bytes that sort: two of a billion URIs collide with a chance of 1e-21."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, "S16")


def _verified_rows(table: Table, part: Part) -> pa.Table:
    uri = join(table.uri, part.path)
    try:
        data = open_store(uri).read(uri).data
    except ObjectNotFoundError as error:
        raise TableCorruptError("the file is gone") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != part.sha256:
        raise TableCorruptError(f"its bytes have the sha256 {digest[:12]}, expected {part.sha256[:12]}")
    recipe_id = part_metadata(data).get(RECIPE_KEY.encode(), b"").decode()
    if recipe_id != table.recipe_file.table_id:
        raise TableCorruptError(f"it belongs to recipe or model {recipe_id[:12] or '(none)'}")
    rows = rows_of(data)
    if len(rows) != part.rows:
        raise TableCorruptError(f"it has {len(rows)} rows, the log says {part.rows}")
    _verify_rows(rows, part.status, table.recipe_file.lengths)
    _verify_carried(rows, table.carried)
    return rows


def _verify_carried(rows: pa.Table, columns: Sequence[Column]) -> None:
    for column in columns:
        if column.name in rows.column_names and rows.schema.field(column.name).type != column.field.type:
            raise TableCorruptError(f"{column.name} is of type {rows.schema.field(column.name).type}, the table says {column}")


def _verify_rows(rows: pa.Table, status: str, lengths: dict[str, int]) -> None:
    errors = len(rows) - rows["error"].null_count
    if errors != (len(rows) if status == "failed" else 0):
        raise TableCorruptError(f"{errors} of its {len(rows)} rows have an error, though its status is {status}")
    for column, length in lengths.items():
        if status == "failed":
            if rows[column].null_count != len(rows):
                raise TableCorruptError(f"failed rows have values in {column}")
            continue
        features_BD = vectors_of(rows[column])
        if features_BD.shape[1] != length:
            raise TableCorruptError(f"{column} has {features_BD.shape[1]} floats a row, expected {length}")
        if not np.isfinite(features_BD).all():
            raise TableCorruptError(f"{column} has values that are not finite")


def vacuum(table: Table, *, retention_hours: int, delete: bool) -> dict[str, Any]:
    """Find files that no version within the retention needs: left by killed runs, or replaced since; and clean the log.

    Args:
        table: at its newest version.
        retention_hours: files written or replaced since are kept, for readers of older versions and for runs under way.
        delete: delete them, and the log's entries that are older than the table's own retention of its log.
    """
    orphans, log_files = table.log.unreferenced(retention_hours), 0
    if delete:
        open_store(table.uri).delete(join(table.uri, path) for path in orphans)
        log_files = table.log.clean_log()
    return {"table": table.uri, "orphans": len(orphans), "paths": orphans, "deleted": delete, "log_files_deleted": log_files}


def optimize(
    table: Table,
    *,
    only_if_many: bool = False,
    submit: Submit = in_this_thread,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Join small parts into larger ones; the rows stay as they are, and readers of older versions keep their files.

    Args:
        table: at its newest version; moves on with each commit.
        only_if_many: leave a table alone that has few small parts, and parts that a run has joined already.
        submit: has a worker join the parts of a group.
        tell: is told how it goes on, now and then.
    """
    parts = table.parts()
    target_bytes = min(MOST_PART_BYTES, max(LEAST_PART_BYTES, sum(part.size_bytes for part in parts) // PARTS))
    small = [part for part in parts if part.size_bytes < target_bytes // 2]
    if only_if_many:
        small = [part for part in small if part.rows < PART_ROWS // 2]
    if only_if_many and len(small) < MANY_SMALL_PARTS:
        return {"table": table.uri, "version": table.version, "parts_before": len(parts), "parts": len(parts)}
    groups = list(_joinable(_by_name(table, small), target_bytes))
    megabytes = sum(part.size_bytes for group in groups for part in group) / 1e6
    if groups:
        tell(f"joining {sum(map(len, groups))} small parts of {megabytes:.3g} MB into {len(groups)}")
    _join_groups(table, groups, submit, tell)
    return {"table": table.uri, "version": table.version, "parts_before": len(parts), "parts": len(table.parts())}


def _join_groups(table: Table, groups: Sequence[list[Part]], submit: Submit, tell: Callable[[str], None]) -> None:
    """Have each group joined, and commit those that are done every few seconds."""
    run_id, recipe_id, sequence = f"optimize-{time.time_ns()}", table.recipe_file.table_id, itertools.count(1)
    waiting, last, carried = deque(groups), time.monotonic(), fields_of(table.carried)
    under_way: dict[Future[Part], list[Part]] = {}
    done: list[tuple[Part, list[Part]]] = []
    finished = 0
    while waiting or under_way or done:
        while waiting and len(under_way) < JOINS_AHEAD:
            group = waiting.popleft()
            under_way[submit(join_parts, table.uri, group, stem="joined", recipe_id=recipe_id, carried=carried)] = group
        if under_way:
            ended, _ = wait(under_way, timeout=COMMIT_INTERVAL_SECONDS, return_when=FIRST_COMPLETED)
            done += [(future.result(), under_way.pop(future)) for future in ended]
        if done and (not under_way or time.monotonic() - last >= COMMIT_INTERVAL_SECONDS):
            change = Change([part for part, _ in done], [part for _, group in done for part in group], data_change=False)
            info = {"run": run_id, "joined": len(change.remove)}
            table.commit(change, app_id=run_id, sequence=next(sequence), info=info)
            finished, done, last = finished + len(done), [], time.monotonic()
            tell(f"joined {finished} of {len(groups)} groups of small parts, table version {table.version}")


def _by_name(table: Table, parts: Sequence[Part]) -> list[Part]:
    """Parts in the order of their first images' names, so that neighbours are joined, as their images change together."""
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="names") as threads:
        names = list(threads.map(lambda part: first_uri(table.uri, part.path), parts))
    return [part for _, part in sorted(zip(names, parts, strict=True), key=lambda pair: pair[0])]


def _joinable(parts: Sequence[Part], target_bytes: int) -> Iterator[list[Part]]:
    """Groups of at least two parts of one status, together at most the target."""
    for status in ("ok", "failed"):
        group: list[Part] = []
        for part in (part for part in parts if part.status == status):
            if sum(one.size_bytes for one in group) + part.size_bytes > target_bytes:
                if len(group) > 1:
                    yield group
                group = []
            group.append(part)
        if len(group) > 1:
            yield group

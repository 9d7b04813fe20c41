"""What differs between an index and its table, against dictionaries."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from tlray.search.build.row_changes import row_changes
from tlray.search.rows.row_table import PLACED_SCHEMA, with_ids

Row = tuple[str, str | None, str]
"""URI, etag and part."""


def table_of(rows: Sequence[Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    uris, etags, parts = columns
    return pa.table([uris, etags, [None] * len(rows), parts, range(len(rows))], schema=PLACED_SCHEMA)


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_kept_moved_added_and_removed_as_dictionaries_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    etags = [None, "", "1", "2"]

    def drawn(parts: Sequence[str]) -> list[Row]:
        numbers = np.sort(rng.choice(60, 40, replace=False))
        return [(f"s3://b/{number}", etags[rng.integers(4)], parts[rng.integers(len(parts))]) for number in numbers]

    before = drawn(["stays", "goes"])
    same = [row for row in before if row[2] == "stays"]
    taken = {uri for uri, _, _ in same}
    came = [row for row in drawn(["new", "newer"]) if row[0] not in taken] if seed else []
    ids = np.arange(len(before)) * 3
    changes = row_changes(
        with_ids(table_of(before), ids, ids + 1, np.arange(len(ids), dtype=np.uint64)),
        ["newer", "stays", "new"],
        lambda paths: table_of([row for path in paths for row in came if row[2] == path]),
    )

    gone = {(uri, etag or ""): int(at) for (uri, etag, part), at in zip(before, ids, strict=True) if part == "goes"}
    fresh = {(uri, etag or "") for uri, etag, _ in came}
    kept = {int(at): row for row, at in zip(before, ids, strict=True) if row[2] == "stays"}
    kept |= {gone[uri, etag or ""]: (uri, etag, part) for uri, etag, part in came if (uri, etag or "") in gone}
    found = changes.kept.select(["uri", "etag", "part"]).to_pylist()
    assert changes.kept["id"].to_pylist() == sorted(kept)
    assert [tuple(row.values()) for row in found] == [kept[at] for at in sorted(kept)]
    assert sorted(changes.removed["id"].to_pylist()) == sorted(at for key, at in gone.items() if key not in fresh)
    added = {(row["uri"], row["etag"] or "") for row in changes.added.to_pylist()}
    assert added == fresh - set(gone) and len(changes.added) == len(added)
    assert changes.moved == len(fresh & set(gone))

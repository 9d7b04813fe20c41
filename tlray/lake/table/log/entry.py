"""The entries of a table's log, one a commit, as the Delta protocol describes them.

delta-rs (1.6) writes them too, but looks through all parts of the table for each, and again when it moves on to the version
that it has made; so it would write the log of a table of a hundred thousand parts a hundred times as slowly as that of an
empty one. An entry is a few lines of JSON under a name that is written only if absent, which is what a store is for.

Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Delta Log Entries" and "Actions"; the fields are those
that delta-rs writes.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema

from tlray.errors import TableError
from tlray.lake.place.occupant import LOG
from tlray.lake.storage.uri import join
from tlray.lake.table.parts import Change, Part
from tlray.version import __version__

_LAST_PLAIN_WRITER = 2
_HARMLESS_FEATURES = {"appendOnly", "invariants"}
"""What tables demand of their writers without having it used; whether the first is in use, the table's configuration says."""


def entry_uri(table_uri: str, version: int) -> str:
    """Where the entry of a version is."""
    return join(table_uri, LOG, f"{version:020}.json")


def log_entry(
    change: Change,
    *,
    app_id: str,
    sequence: int,
    info: dict[str, Any],
    time_ms: int,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """An entry: what a commit does, and who made it.

    Args:
        change: parts to add and to remove.
        app_id: of the writer's run.
        sequence: of this commit within the run.
        info: kept beside the commit.
        time_ms: when it is made, milliseconds since 1970.
        metadata: of the table from now on (`metadata_with`); None where it stays as it is.
    """
    actions: list[dict[str, Any]] = [
        {"commitInfo": _commit_info(info, time_ms)},
        *([{"metaData": metadata}] if metadata else []),
        {"txn": {"appId": app_id, "version": sequence, "lastUpdated": time_ms}},
        *({"add": action} for action in _additions(change, time_ms)),
        *({"remove": action} for action in _removals(change, time_ms)),
    ]
    return b"".join(json.dumps(action, separators=(",", ":")).encode() + b"\n" for action in actions)


def metadata_with(delta: DeltaTable, fields: Sequence[pa.Field]) -> dict[str, Any]:
    """The metadata of a table whose schema has some fields more.

    Args:
        delta: the table as it is.
        fields: that come behind those that it has.
    """
    metadata = delta.metadata()
    schema = json.loads(delta.schema().to_json())
    schema["fields"] += json.loads(Schema.from_arrow(pa.schema(fields)).to_json())["fields"]
    named = {"name": metadata.name, "description": metadata.description, "createdTime": metadata.created_time}
    return {
        "id": str(metadata.id),
        **{name: value for name, value in named.items() if value is not None},
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps(schema, separators=(",", ":")),
        "partitionColumns": metadata.partition_columns,
        "configuration": metadata.configuration,
    }


def _commit_info(info: dict[str, Any], time_ms: int) -> dict[str, Any]:
    return {
        "timestamp": time_ms,
        "operation": "WRITE",
        "operationParameters": {"mode": "Append", "partitionBy": '["status"]'},
        "engineInfo": f"tlray:{__version__}",
        "tlray": info,
    }


def _additions(change: Change, time_ms: int) -> Iterator[dict[str, Any]]:
    """The actions that add parts; of statistics they have the row count alone.

    delta-rs (1.6) takes a column whose minimum is not given for one without matching rows, and filters on `error` or `label`
    would silently find nothing. The file's own footer has the range of `uri`, which is what readers prune by.
    """
    for part in change.add:
        stats = json.dumps({"numRecords": part.rows})
        yield {**_file(part), "modificationTime": time_ms, "dataChange": change.data_change, "stats": stats}


def _removals(change: Change, time_ms: int) -> Iterator[dict[str, Any]]:
    for part in change.remove:
        yield {
            **_file(part),
            "deletionTimestamp": time_ms,
            "dataChange": change.data_change,
            "extendedFileMetadata": True,
        }


def _file(part: Part) -> dict[str, Any]:
    return {"path": part.path, "partitionValues": {"status": part.status}, "size": part.size_bytes}


def check_plain(delta: DeltaTable, uri: str) -> None:
    """Make sure that a table asks nothing of its writers that entries made here do not give.

    Raises:
        TableError: another program has switched a feature of Delta on.
    """
    protocol = delta.protocol()
    demanded = set(protocol.writer_features or ()) - _HARMLESS_FEATURES
    is_plain = protocol.min_writer_version <= _LAST_PLAIN_WRITER or (protocol.writer_features is not None and not demanded)
    is_append_only = delta.metadata().configuration.get("delta.appendOnly") == "true"
    if not is_plain or is_append_only:
        asks = ", ".join(sorted(demanded)) or f"writer version {protocol.min_writer_version}"
        raise TableError(
            f"{uri} asks of its writers what tlray does not write ({'appendOnly' if is_append_only else asks}), which another "
            "program has switched on; switch it off, or extract to a new table"
        )

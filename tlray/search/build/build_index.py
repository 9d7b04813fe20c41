"""`tlray index`: build an index, or bring it to where its table is."""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from tlray.config import IndexConfig
from tlray.lake.place.occupant import require_place
from tlray.lake.storage.uri import to_uri
from tlray.lake.table.table import Table
from tlray.progress import say
from tlray.search.build.build import build, choice_for
from tlray.search.build.row_changes import check_same, live_parts, row_changes
from tlray.search.build.update import update
from tlray.search.rows.from_table import read_rows
from tlray.search.versions.card import Card, newest_version, read_card
from tlray.search.versions.load import load_rows
from tlray.search.versions.prune import prune


def index(config: IndexConfig) -> dict[str, Any]:
    """Bring an index to where its table is.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong, or the index there is of another recipe or kind; nothing was written.
        IndexCorruptError: a file of the index is damaged.
        ConcurrentWriteError: another run published a version in the meantime.
    """
    began = time.monotonic()
    index_uri = to_uri(config.out)
    table = Table.open(to_uri(config.table))
    table.column_of(config.column)
    newest = newest_version(index_uri)
    if newest is None:
        require_place(index_uri, "index")
    with tempfile.TemporaryDirectory(prefix="tlray-index-") as folder:
        scratch = Path(folder)
        if config.dry_run:
            return _plan(table, config, index_uri, newest, scratch)
        action, counts, card = _bring_up_to_date(table, config, index_uri, newest, scratch)
    prune(index_uri, config.keep_versions)
    if card.quality.recall_at_10 < card.recall_target:
        say(
            f"recall at 10 is {card.quality.recall_at_10}, under the target of {card.recall_target}: allow re-ranking, "
            "give more memory, or name another factory"
        )
    return {
        "index": index_uri,
        "version": card.version,
        "table": table.uri,
        "table_version": card.table_version,
        "recipe_id": card.recipe_id,
        "action": action,
        **counts,
        "rows": card.rows,
        "factory": card.factory,
        "parameters": card.parameters.model_dump(exclude_none=True),
        "recall_at_10": card.quality.recall_at_10,
        "measured_version": card.measured_version,
        "milliseconds_single": card.quality.milliseconds_single,
        "size_bytes": card.size_bytes,
        "seconds": round(time.monotonic() - began, 3),
    }


def _bring_up_to_date(
    table: Table, config: IndexConfig, index_uri: str, newest: int | None, scratch: Path
) -> tuple[str, dict[str, int], Card]:
    if newest is None:
        card = build(table, config, index_uri, 1, scratch)
        return "built", {"added": card.rows, "removed": 0, "moved": 0}, card
    counts: dict[str, int] = {}
    if not config.rebuild:
        card = read_card(index_uri, newest)
        check_same(card, table, config, index_uri)
        shown = (card.table, card.table_id, card.table_version, card.recall_target)
        if shown == (table.uri, table.id, table.version, config.recall_target):
            return "unchanged", {"added": 0, "removed": 0, "moved": 0}, card
        updated, counts, reason = update(table, config, index_uri, card, scratch)
        if updated is not None:
            return "updated", counts, updated
        say(f"building anew: {reason}")
    card = build(table, config, index_uri, newest + 1, scratch)
    return "rebuilt", counts or {"added": card.rows, "removed": 0, "moved": 0}, card


def _plan(table: Table, config: IndexConfig, index_uri: str, newest: int | None, scratch: Path) -> dict[str, Any]:
    plan: dict[str, Any] = {"index": index_uri, "table": table.uri, "table_version": table.version, "dry_run": True}
    if newest is None or config.rebuild:
        rows = sum(part.rows for part in table.parts("ok"))
        dimensions = math.prod(table.recipe_file.shapes[table.column_of(config.column)])
        choice = choice_for(config, rows, dimensions)
        return plan | {"action": "build", "rows": rows, "factory": choice.factory, "reasons": list(choice.reasons)}
    card = read_card(index_uri, newest)
    check_same(card, table, config, index_uri)
    rows_now, _ = load_rows(index_uri, card, scratch)
    changes = row_changes(rows_now.table, live_parts(table), lambda paths: read_rows(table, paths))
    return plan | {"action": "update", "factory": card.factory, **changes.counts}

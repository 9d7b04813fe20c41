"""The commands that look after a table: show, alias, verify, vacuum, optimize."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

from tlray.config import AliasConfig, OptimizeConfig, ShowConfig, VacuumConfig, VerifyConfig
from tlray.errors import TableError
from tlray.lake.place import alias as aliases
from tlray.lake.place.lease import hold
from tlray.lake.place.occupant import occupant_of, read_card
from tlray.lake.storage.uri import to_uri
from tlray.lake.table import maintenance
from tlray.lake.table.row_identities import diff as contrast
from tlray.lake.table.row_identities.arrow_memory import keep_freed_buffers
from tlray.lake.table.table import Table
from tlray.machine.capacity import usable_cores
from tlray.progress import say


def show(config: ShowConfig) -> dict[str, Any]:
    """What a table, an index or a model is, or how two tables differ."""
    uri = to_uri(config.table)
    try:
        table = Table.open(uri, config.version)
    except TableError:
        found = occupant_of(uri)
        if found is None or found.kind not in ("index", "model") or config.other is not None or config.version is not None:
            raise
        kind: Literal["index", "model"] = "index" if found.kind == "index" else "model"
        return {kind: uri, **read_card(uri, kind)}
    if config.other is None:
        return maintenance.show(table)
    other = Table.open(to_uri(config.other))
    keep_freed_buffers()
    sides = {"first": table, "second": other}
    described = {name: {"table": one.uri, "version": one.version} for name, one in sides.items()}
    return {**described, **contrast.contrast(table, other)}


def alias(config: AliasConfig) -> dict[str, Any]:
    """Which table an alias names, after making it name one where that is given."""
    uri, before = to_uri(config.alias), None
    if config.table is not None:
        table = Table.open(to_uri(config.table))
        now, before = aliases.point(uri, table.uri, if_version=config.if_version)
    else:
        found = aliases.read_alias(uri)
        if found is None:
            raise TableError(f"no alias at {uri}; `tlray alias {config.alias} TABLE` makes one")
        now, table = found[0], Table.open(found[0].table)
    result = {"alias": uri, "version": now.version, "table": now.table, "recipe_id": table.recipe_file.recipe_id}
    return result | ({"before": before.table} if before else {})


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Whether a table holds what its log says."""
    return maintenance.verify(Table.open(to_uri(config.table), config.version))


def vacuum(config: VacuumConfig) -> dict[str, Any]:
    """List or delete the files that no version needs."""
    table = Table.open(to_uri(config.table))
    with hold(table.uri, "vacuum") if config.delete else nullcontext():
        table.refresh()
        return maintenance.vacuum(table, retention_hours=config.retention_hours, delete=config.delete)


def optimize(config: OptimizeConfig) -> dict[str, Any]:
    """Join small parts of a table into larger ones, on all cores of this machine."""
    table = Table.open(to_uri(config.table))
    with hold(table.uri, "optimize", tell=say), ThreadPoolExecutor(usable_cores(), thread_name_prefix="join") as threads:
        table.refresh()
        return maintenance.optimize(table, submit=threads.submit, tell=say)

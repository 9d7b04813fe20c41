"""The commands that look after a table: show, verify, vacuum, optimize."""

from contextlib import nullcontext
from typing import Any

from tlray.config import OptimizeConfig, ShowConfig, VacuumConfig, VerifyConfig
from tlray.lake import maintenance
from tlray.lake.lease import hold
from tlray.lake.storage import to_uri
from tlray.lake.table import Table


def show(config: ShowConfig) -> dict[str, Any]:
    """What a table is."""
    return maintenance.show(Table.open(to_uri(config.table), config.version))


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Whether a table holds what its log says."""
    return maintenance.verify(Table.open(to_uri(config.table), config.version))


def vacuum(config: VacuumConfig) -> dict[str, Any]:
    """List or delete the files that no version needs."""
    uri = to_uri(config.table)
    table = Table.open(uri)
    with hold(uri, "vacuum") if config.delete else nullcontext():
        table.refresh()
        return maintenance.vacuum(table, retention_hours=config.retention_hours, delete=config.delete)


def optimize(config: OptimizeConfig) -> dict[str, Any]:
    """Join small parts."""
    uri = to_uri(config.table)
    table = Table.open(uri)
    with hold(uri, "optimize"):
        table.refresh()
        return maintenance.optimize(table)

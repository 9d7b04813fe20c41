"""The commands that look after a table: show, verify, vacuum, optimize."""

from typing import Any

from tlray.config import OptimizeConfig, ShowConfig, VacuumConfig, VerifyConfig
from tlray.lake import maintenance
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
    table = Table.open(to_uri(config.table))
    return maintenance.vacuum(table, retention_hours=config.retention_hours, delete=config.delete)


def optimize(config: OptimizeConfig) -> dict[str, Any]:
    """Join small parts."""
    return maintenance.optimize(Table.open(to_uri(config.table)))

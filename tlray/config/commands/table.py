"""The configs of the commands that look after tables: show, alias, verify, vacuum, optimize."""

from pydantic import Field

from tlray.config.sections.stores import WithStores


class ShowConfig(WithStores):
    """`tlray show URI [OTHER]`: what a table is: recipe, counts, failures, size; or how two tables differ."""

    table: str = Field(description="URI or path of the table")
    other: str | None = Field(None, description="a second table, to be compared with the first")
    version: int | None = Field(None, ge=0, description="of the first table; default the newest")


class AliasConfig(WithStores):
    """`tlray alias URI [TABLE]`: make an alias name a table, or say which it names."""

    alias: str = Field(description="URI or path of the alias")
    table: str | None = Field(None, description="table that it is to name from now on")
    if_version: int | None = Field(None, ge=0, description="only where the alias is at this version; 0: only if it is new")


class VerifyConfig(WithStores):
    """`tlray verify URI`: read every part again and hold it against the log; exit code 1 where it is damaged."""

    table: str = Field(description="URI or path of the table")
    version: int | None = Field(None, ge=0, description="default the newest")


class VacuumConfig(WithStores):
    """`tlray vacuum URI`: list the files that no version within the retention needs; delete them only when told to."""

    table: str = Field(description="URI or path of the table")
    retention_hours: int = Field(
        168, ge=0, le=1_000_000, description="keep what is younger: runs under way, readers of old versions"
    )
    delete: bool = Field(False, description="delete them")


class OptimizeConfig(WithStores):
    """`tlray optimize URI`: join small parts into larger ones."""

    table: str = Field(description="URI or path of the table")

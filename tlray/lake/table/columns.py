"""Which embedding column of a table is meant."""

from tlray.errors import ConfigError, TableError
from tlray.lake.table.table import Table


def column_of(table: Table, name: str | None) -> str:
    """The embedding column that is meant.

    Raises:
        TableError: a table of predictions, with no embeddings in it.
        ConfigError: there is none of that name, or there are several and none was named.
    """
    if not table.columns:
        raise TableError(
            f"{table.uri} is a table of predictions without embeddings; expected a table of embeddings: name one that `tlray "
            "extract` made, or run `tlray predict` with --embeddings and another --out, which keeps them"
        )
    if name is None and len(table.columns) == 1:
        return table.columns[0]
    if name not in table.columns:
        given = "not given, and the table has several" if name is None else f"{name}"
        raise ConfigError(f"column is {given}; expected one of {table.uri}'s: {', '.join(table.columns)}")
    return str(name)

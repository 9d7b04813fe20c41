"""Aliases: one small object that names a table, so that all readers move to another table at one moment.

Readers open an alias as they would open the table (`tlray.lake.table.table.Table.open`). It is swapped by one
conditional put: of two
who swap the same version exactly one succeeds. Writers name tables themselves.
"""

import uuid

from pydantic import BaseModel, ConfigDict, ValidationError

from tlray.errors import ConcurrentWriteError, ObjectNotFoundError, PlaceTakenError, TableError
from tlray.lake.storage.open import is_folder, open_store

MAX_BYTES = 64 * 1024
"""An object that is larger is no alias, and not read."""


class Alias(BaseModel):
    """The content of an alias: the table that it names, and how often it was swapped.

    Attributes:
        table: URI of the table.
        version: of the alias: 1 when it was made, one more with each swap.
        token: that no other write of it has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    version: int
    token: str


def read_alias(uri: str) -> tuple[Alias, str] | None:
    """An alias and its etag; None where no object is there.

    Raises:
        TableError: there is one, and it is no alias.
        AccessError, StorageError: the store refused or failed.
    """
    store = open_store(uri)
    info = store.stat(uri)
    if info is None:
        return None
    try:
        if info.size_bytes > MAX_BYTES:
            raise TableError(f"{uri} is an object of {info.size_bytes} bytes, neither a table nor an alias of one")
        blob = store.read(uri)
        return Alias.model_validate_json(blob.data), blob.etag
    except ObjectNotFoundError:
        return None
    except ValidationError as error:
        raise TableError(
            f"{uri} is a file, neither a table nor an alias of one: a table is a folder, and `tlray alias` writes aliases; "
            "name another place"
        ) from error


def point(uri: str, table_uri: str, *, if_version: int | None = None) -> tuple[Alias, Alias | None]:
    """Make an alias name a table.

    Args:
        uri: of the alias.
        table_uri: of the table; the caller has seen that it is one.
        if_version: only where the alias is at this version; 0: only where there is none.

    Returns:
        The alias as it is now, and as it was.

    Raises:
        ConcurrentWriteError: it is at another version, or somebody else swapped it at the same moment.
        TableError: another kind of object is there.
        PlaceTakenError: a folder is there; an alias is an object.
    """
    found = read_alias(uri)
    before = found[0] if found else None
    version = before.version if before else 0
    if if_version not in (None, version):
        said = f"names {before.table}" if before else "is not there"
        raise ConcurrentWriteError(f"{uri} is at version {version}, not at {if_version}: it {said}; look what has changed")
    if found is None and is_folder(uri):
        raise PlaceTakenError(f"{uri} is a folder, so no alias can be there: an alias is one small object; name another place")
    alias = Alias(table=table_uri, version=version + 1, token=uuid.uuid4().hex)
    data = alias.model_dump_json(indent=2).encode()
    done = (
        open_store(uri).write(uri, data, if_absent=True)
        if found is None
        else open_store(uri).write(uri, data, if_match=found[1])
    )
    if not done:  # or it was ours, and the answer was lost
        now = read_alias(uri)
        if now is None or now[0] != alias:
            raise ConcurrentWriteError(f"{uri} was swapped by somebody else at this moment; look what it names, and run again")
    return alias, before

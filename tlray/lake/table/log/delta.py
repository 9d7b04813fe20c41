"""Delta tables as delta-rs opens them, and what it says, in tlray's words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from tlray.errors import AccessError, StorageError, TableError
from tlray.lake.storage.open import delta_environment, delta_options
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts
from tlray.lake.storage.uri import to_path

_DENIED = ("403", "Forbidden", "AccessDenied", "PermissionDenied", "Permission denied")
_BROKEN_BODY = "response body"
"""In what delta-rs says of a listing that broke off, the one request that it does not repeat by itself."""

_ABORTS = frozenset("[]^|\\")
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def delta_uri(uri: str) -> str:
    """A URI as delta-rs takes it: local ones as paths, others escaped, as it reads them as URLs.

    Raises:
        TableError: there is a percent sign in it, which delta-rs 1.6 writes to one place and reads from another; or, in a local
            one, a character at which it aborts.
    """
    if uri.startswith("file://"):
        if odd := sorted(_ABORTS.intersection(uri)):
            raise TableError(
                f"{uri}: Delta's log cannot be kept below a name with {' '.join(odd)}; give the table another place"
            )
        return str(to_path(uri))
    scheme, _, rest = uri.partition("://")
    if "%" in rest:
        raise TableError(f"{uri}: Delta's log cannot be kept below a name with a percent sign; give the table another place")
    return f"{scheme}://{quote(rest, safe='/')}"


def open_delta(uri: str, version: int | None) -> DeltaTable | None:
    """A table's snapshot; None where there is no table.

    Args:
        uri: of the table.
        version: None for the newest.

    Raises:
        TableError: there is no such version.
        AccessError, StorageError: the store refused or failed.
    """
    attempts, is_renewed = Attempts(BODY_ATTEMPTS), False
    while True:
        try:
            options = delta_options(uri)
            with delta_environment(uri):
                return DeltaTable(delta_uri(uri), version=version, storage_options=options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            text = one_line(error)
            if version is not None and "version" in text.lower():
                raise TableError(f"{uri} has no version {version} any more: {text}") from error
            if any(word in text for word in _DENIED):
                if is_renewed:
                    raise AccessError(f"no permission to read the table at {uri}: {text}; check the credentials") from error
                is_renewed = True  # credentials may just have expired: the options are made anew, of those of this moment
            elif _BROKEN_BODY not in text or not attempts.pause():
                raise StorageError(f"cannot read the log of {uri}: {text}") from error


@contextmanager
def delta_errors(what: str) -> Iterator[None]:
    """Raise what delta-rs raises as an error of ours.

    Args:
        what: could not be done, for the message.

    Raises:
        StorageError: with the text of delta-rs.
    """
    try:
        yield
    except (DeltaError, OSError) as error:
        raise StorageError(f"{what}: {one_line(error)}; run again") from error


def one_line(error: BaseException | None) -> str:
    """A message of delta-rs, whose cause is in one of several coloured lines."""
    text = " ".join(_ANSI_COLOUR.sub("", str(error)).split()) or type(error).__name__
    return f"the disk is full: {text}" if "No space left" in text else text

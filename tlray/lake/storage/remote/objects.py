"""The store of `gs://` and `az://` (see `tlray.lake.storage.store.Store`), on obstore; only read.

Credentials are found where obstore looks for them (https://developmentseed.org/obstore/latest/authentication/): for Google its
application default credentials, the `GOOGLE_...` variables and the machine's own account; for Azure the `AZURE_...` variables,
which also name the storage account, a managed identity and the workload identity. They are never in a URI or a config.
"""

import functools
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, cast

import obstore
import pyarrow as pa
from obstore import exceptions as said
from obstore.store import AzureStore, GCSStore

from tlray.errors import (
    GO_ON,
    AccessError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
    StoreAwayError,
    TlrayError,
)
from tlray.lake.storage.remote.ranges import STREAM_BYTES, RangeReader
from tlray.lake.storage.remote.read_only import ReadOnlyStore
from tlray.lake.storage.store import READ_BUFFER_BYTES, Blob, ObjectInfo, Walk, pages_of

_PAGE_ROWS = 1000
_NOT_THERE = (said.NotFoundError, FileNotFoundError)

_QUERY = re.compile(r"\?\S+")
_LOG_IN = "check the credentials of Google or Azure (environment, files, the machine's own account)"


class ObjectStore(ReadOnlyStore):
    """Objects of Google Cloud Storage and Azure Blob Storage."""

    def list(
        self,
        uri: str,
        *,
        first: str | None = None,
        end: str | None = None,
        walk: Walk | None = None,  # noqa: ARG002 - these stores have no folders
    ) -> Iterator[pa.Table]:
        """List the objects below a folder (see `Store.list`).

        obstore tells no marker of a folder (`photos/`) from an empty object, so each empty one is asked for by its name.
        """
        bucket, key = _split(uri)
        info = None if uri.endswith("/") or not key else self.stat(uri)
        root = uri[: len(uri) - len(key)]
        root = root if root.endswith("/") else f"{root}/"
        if info is not None:
            yield from pages_of([info], first, end)
        with _errors(uri):
            pages = iter(obstore.list(_client(bucket), key.rstrip("/") or None, chunk_size=_PAGE_ROWS))
        while True:
            with _errors(uri):
                page = next(pages, None)
            if page is None:
                return
            found = [ObjectInfo(f"{root}{one['path']}", _etag(cast("Any", one)), one["size"]) for one in page]
            there = [one for one in found if one.size_bytes or self.stat(one.uri) is not None]
            yield from pages_of(there, first, end)

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell an object's etag and size (see `Store.stat`)."""
        bucket, key = _split(uri)
        if not key or key.endswith("/"):
            return None
        try:
            with _errors(uri):
                meta = obstore.head(_client(bucket), key)
        except ObjectNotFoundError:
            return None
        return ObjectInfo(uri, _etag(cast("Any", meta)), meta["size"], meta["last_modified"].timestamp())

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole object (see `Store.read`)."""
        bucket, key = _split(uri)
        with _errors(uri):
            answer = obstore.get(_client(bucket), key)
            info = ObjectInfo(uri, _etag(cast("Any", answer.meta)), answer.meta["size"])
            _require(info, if_match)
            if max_bytes is not None and info.size_bytes > max_bytes:
                raise ObjectTooLargeError(f"{uri} has {info.size_bytes} bytes, more than the limit of {max_bytes}")
            return Blob(bytes(answer.bytes()), info.etag)

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open an object for reading parts of it (see `Store.open`)."""
        return self._reader(uri, if_match, READ_BUFFER_BYTES)[0]

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open an object for reading it from front to back (see `Store.stream`), in large ranges."""
        return self._reader(uri, if_match, STREAM_BYTES)

    def _reader(self, uri: str, if_match: str | None, buffer_bytes: int) -> tuple[BinaryIO, str]:
        info = self.stat(uri)
        if info is None:
            raise ObjectNotFoundError(f"{uri} does not exist")
        _require(info, if_match)
        return io.BufferedReader(RangeReader(info.size_bytes, partial(_range, info)), buffer_bytes), info.etag


def _range(info: ObjectInfo, start: int, end: int) -> bytes:
    """Bytes of one version of an object."""
    bucket, key = _split(info.uri)
    with _errors(info.uri):
        answer = obstore.get(_client(bucket), key, options={"range": (start, end)})
        _require(ObjectInfo(info.uri, _etag(cast("Any", answer.meta)), end - start), info.etag)
        return bytes(answer.bytes())


def _client(bucket: str) -> GCSStore | AzureStore:
    """What makes requests to a bucket (`gs://b`) or container; one for each process and its settings."""
    settings = frozenset(item for item in os.environ.items() if item[0].startswith(("GOOGLE_", "AZURE_")))
    return _new_client(bucket, os.getpid(), settings)


@functools.lru_cache(maxsize=64)
def _new_client(bucket: str, process: int, settings: frozenset[tuple[str, str]]) -> GCSStore | AzureStore:  # noqa: ARG001 - the key
    scheme, _, name = bucket.partition("://")
    return GCSStore(name) if scheme == "gs" else AzureStore(name)


def _split(uri: str) -> tuple[str, str]:
    """Bucket with its scheme, and key."""
    scheme, _, rest = uri.partition("://")
    name, _, key = rest.partition("/")
    return f"{scheme}://{name}", key


def _etag(meta: dict[str, Any]) -> str:
    """The store's etag, without its quotation marks; for the few that have none, when it was written."""
    etag = (meta.get("e_tag") or "").replace('"', "")
    return etag or f"modified {meta['last_modified'].isoformat()}"


def _require(info: ObjectInfo, if_match: str | None) -> None:
    if if_match not in (None, info.etag):
        raise ObjectChangedError(f"{info.uri} has the etag {info.etag}, expected {if_match}: it changed since it was listed")


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Raise what obstore raises as one of tlray's errors; it has repeated what may pass."""
    try:
        yield
    except TlrayError:
        raise
    except _NOT_THERE as error:
        raise _translated(uri, error) or ObjectNotFoundError(f"{uri} does not exist") from error
    except said.UnauthenticatedError as error:
        raise CredentialsError(f"{uri}: {_line(error)}; {_LOG_IN}") from error
    except (said.PermissionDeniedError, PermissionError) as error:
        raise _translated(uri, error) or AccessError(f"{uri}: {_line(error)}; check that the credentials allow this") from error
    except (said.BaseError, OSError, ValueError) as error:
        raise _translated(uri, error) or StorageError(f"{uri}: {_line(error)}") from error


def _translated(uri: str, error: Exception) -> TlrayError | None:
    """What obstore says in its message alone, by the stores' own codes; None where it is nothing of these."""
    message = str(error)
    if any(code in message for code in ("NoSuchBucket", "ContainerNotFound")):
        return SourceError(f"{uri}: there is no bucket or container {uri.split('/')[2]!r}; check its name and the account")
    if any(code in message for code in ("AuthenticationFailed", "ExpiredAuthenticationToken", "token request")):
        return CredentialsError(f"{uri}: {_line(error)}; {_LOG_IN}")
    if "Account must be specified" in message:
        return SourceError(f"{uri}: the storage account is not known; name it in AZURE_STORAGE_ACCOUNT_NAME")
    if "error sending request" in message:
        return StoreAwayError(f"{uri}: {_line(error)}; look after the store or the network, then {GO_ON}")
    return None


def _line(error: Exception) -> str:
    """The line of a long message that says something to people.

    How the error is made inside follows in obstore's; and the query of a URL may hold a signature.
    """
    shown = _QUERY.sub("", str(error).partition("Debug source:")[0])
    return " ".join(shown.split())[:300].rstrip(" .")

"""Which store a URI belongs to, and what the delta log needs to reach the same place."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from tlray.extras import require
from tlray.lake.storage.remote.read_only import READ_ONLY, refuse_to_write
from tlray.lake.storage.store import Store
from tlray.lake.storage.uri import to_path, to_uri

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem


def open_store(uri: str) -> Store:
    """The store of a URI's scheme; it serves every URI of that scheme, and costs nothing to open.

    Raises:
        SourceError: the scheme is none of them.
        ConfigError: its package is not installed.
    """
    normal = to_uri(uri)
    if normal.startswith("s3://"):
        from tlray.lake.storage.s3.store import S3Store  # local work does not pay for importing boto3

        return S3Store()
    if normal.startswith(("https://", "http://")):
        from tlray.lake.storage.remote.web import WebStore

        return WebStore()
    if normal.startswith(("gs://", "az://")):
        require("stores", "obstore", what=normal.partition("/")[0] + "//")
        from tlray.lake.storage.remote.objects import ObjectStore

        return ObjectStore()
    if normal.startswith("hf://"):
        require("hub", "huggingface_hub", "httpx2", what="hf://")
        from tlray.lake.storage.remote.hub import HubStore

        return HubStore()
    from tlray.lake.storage.local import LocalStore

    return LocalStore()


def require_writable(uri: str) -> None:
    """Make sure that results may be written to a place.

    Raises:
        StoreUnfitError: the store of its scheme is only read.
    """
    if to_uri(uri).partition("://")[0] in READ_ONLY:
        refuse_to_write(uri)


def is_folder(uri: str) -> bool:
    """Whether anything is below `<uri>/`; locally also whether it is an empty folder."""
    folder = uri if uri.endswith("/") else uri + "/"
    is_there = uri.startswith("file://") and to_path(uri).is_dir()
    return is_there or next(iter(open_store(uri).list(folder)), None) is not None


def delta_options(uri: str) -> dict[str, str]:
    """What the `deltalake` package needs as `storage_options` to reach `uri` as boto3 does.

    Credentials that expire are a snapshot: ask again for each commit.

    Returns:
        Nothing for a local URI.

    Raises:
        AccessError: there are no AWS credentials.
        SourceError: the bucket does not exist.
        StorageError: S3 cannot be reached.
    """
    if not to_uri(uri).startswith("s3://"):
        return {}
    from tlray.lake.storage.s3.store import delta_options as of_s3

    return of_s3(uri)


def arrow_filesystem(uri: str) -> "S3FileSystem | None":
    """What libraries that write by `pyarrow.fs` need to reach `uri` as boto3 does; None for a local URI.

    Credentials that expire are a snapshot.

    Raises:
        AccessError, SourceError, StorageError: as `delta_options`.
    """
    if not to_uri(uri).startswith("s3://"):
        return None
    from tlray.lake.storage.s3.store import arrow_filesystem as of_s3

    return of_s3(uri)


def delta_environment(uri: str) -> AbstractContextManager[None]:
    """What surrounds each call of `deltalake` that makes a client of a store, so that it trusts whom boto3 trusts."""
    if not to_uri(uri).startswith("s3://"):
        return nullcontext()
    from tlray.lake.storage.s3.store import delta_environment as of_s3

    return of_s3(uri)

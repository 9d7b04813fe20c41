"""The S3 store (see `tlray.lake.storage.store.Store`), on boto3; for AWS and for servers that speak its protocol."""

import contextlib
import functools
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa

from tlray.config.sections.stores import StoreAccess, access_of
from tlray.errors import (
    AccessError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
)
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts
from tlray.lake.storage.s3 import delta
from tlray.lake.storage.s3.client import Connection, call, connection
from tlray.lake.storage.s3.conditions import require_condition
from tlray.lake.storage.s3.errors import BROKEN_BODY, LOG_IN, NOT_FOUND, s3_errors
from tlray.lake.storage.s3.reader import Body, S3Reader, pause_or_raise
from tlray.lake.storage.s3.upload import put
from tlray.lake.storage.store import LISTING_SCHEMA, READ_BUFFER_BYTES, Blob, ObjectInfo, Walk, in_range
from tlray.lake.storage.uri import split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteObjectsOutputTypeDef, GetObjectOutputTypeDef
    from pyarrow.fs import S3FileSystem

_DELETE_BATCH = 1000
"""S3's limit for one DeleteObjects (https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html)."""


class S3Store:
    """Objects in S3. All stores of a process share one connection."""

    def list(
        self,
        uri: str,
        *,
        first: str | None = None,
        end: str | None = None,
        walk: Walk | None = None,  # noqa: ARG002 - S3 has no folders
    ) -> Iterator[pa.Table]:
        """List the objects below a folder (see `Store.list`), 1000 keys a request, in the order of their names."""
        bucket, key = split_s3(uri)
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": key if not key or key.endswith("/") else key + "/"}
        if first is not None and first > f"s3://{bucket}/{query['Prefix']}":
            query["StartAfter"] = _before(split_s3(first)[1])
        info = self.stat(uri)
        if info is not None:
            yield from _not_empty(in_range(_page([info.uri], [info.etag], [info.size_bytes]), first, end))
        while True:
            answer = call(uri, lambda client: client.list_objects_v2(**query))
            found = [one for one in answer.get("Contents", ()) if not one["Key"].endswith("/")]
            uris = [f"s3://{bucket}/{one['Key']}" for one in found]
            page = _page(uris, [_bare(one["ETag"]) for one in found], [one["Size"] for one in found])
            yield from _not_empty(in_range(page, first, end))
            if not answer["IsTruncated"] or (end is not None and uris and uris[-1] >= end):
                return
            query["ContinuationToken"] = answer["NextContinuationToken"]

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell an object's etag and size (see `Store.stat`)."""
        try:
            where = _where(uri)
            answer = call(uri, lambda client: client.head_object(**where))
        except ObjectNotFoundError:
            return None
        return ObjectInfo(uri, _bare(answer["ETag"]), answer["ContentLength"], answer["LastModified"].timestamp())

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole object (see `Store.read`); a body that breaks off is asked for again."""
        attempts = Attempts(BODY_ATTEMPTS)
        while True:
            answer = self.get(uri, if_match)
            with contextlib.closing(answer["Body"]) as body:
                size_bytes = answer["ContentLength"]
                if max_bytes is not None and size_bytes > max_bytes:
                    raise ObjectTooLargeError(f"{uri} has {size_bytes} bytes, more than the limit of {max_bytes}")
                try:
                    return Blob(body.read(), _bare(answer["ETag"]))
                except BROKEN_BODY as error:
                    pause_or_raise(uri, attempts, error)

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open an object for reading parts of it (see `Store.open`)."""
        info = self.stat(uri)
        if info is None:
            raise ObjectNotFoundError(f"{uri} does not exist")
        if if_match not in (None, info.etag):
            raise ObjectChangedError(f"{uri} has the etag {info.etag}, expected {if_match}: it changed since it was listed")
        return self._reader(info)

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open an object for reading it from front to back (see `Store.stream`)."""
        answer = self.get(uri, if_match)
        info = ObjectInfo(uri, _bare(answer["ETag"]), answer["ContentLength"])
        return self._reader(info, answer["Body"]), info.etag

    def write(self, uri: str, data: bytes | memoryview, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        """Write an object whole or not at all (see `Store.write`).

        Both conditions are S3's own, and tried out before the first use.
        """
        condition: dict[str, Any] = {}
        if if_absent:
            require_condition(uri, "IfNoneMatch")
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            require_condition(uri, "IfMatch")
            condition["IfMatch"] = f'"{if_match}"'
        try:
            put(uri, _where(uri), data, condition)
        except ObjectChangedError:
            return False
        except ObjectNotFoundError:
            if if_match is not None:  # there is none any more
                return False
            raise
        return True

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects (see `Store.delete`), 1000 keys a request."""
        keys: defaultdict[tuple[str, StoreAccess | None], list[str]] = defaultdict(list)
        for uri in uris:
            where = _where(uri)
            keys[where["Bucket"], access_of(uri)].append(where["Key"])
        failed = []
        for (bucket, _), of_bucket in keys.items():
            for start in range(0, len(of_bucket), _DELETE_BATCH):
                query: dict[str, Any] = {
                    "Bucket": bucket,
                    "Delete": {"Objects": [{"Key": key} for key in of_bucket[start : start + _DELETE_BATCH]], "Quiet": True},
                }
                answer = call(f"s3://{bucket}/{of_bucket[0]}", functools.partial(_delete_objects, query))
                errors = [one for one in answer.get("Errors", ()) if one.get("Code") not in NOT_FOUND]
                failed += [f"s3://{bucket}/{one.get('Key')}: {one.get('Code')} {one.get('Message')}" for one in errors]
        if failed:
            raise StorageError(f"{len(failed)} objects could not be deleted; the first: {failed[0]}")

    def get(self, uri: str, if_match: str | None, first: int = 0, last: int | None = None) -> "GetObjectOutputTypeDef":
        """GET an object, or its bytes from `first` to `last` (both included)."""
        condition: dict[str, Any] = {} if if_match is None else {"IfMatch": f'"{if_match}"'}
        if first or last is not None:
            condition["Range"] = f"bytes={first}-{'' if last is None else last}"
        where = _where(uri)
        return call(uri, lambda client: client.get_object(**where, **condition))

    def _reader(self, info: ObjectInfo, body: Body | None = None) -> BinaryIO:
        raw = S3Reader(lambda first, last: self.get(info.uri, info.etag, first, last)["Body"], info, body)
        return cast("BinaryIO", io.BufferedReader(raw, READ_BUFFER_BYTES))


def _delete_objects(query: dict[str, Any], client: "S3Client") -> "DeleteObjectsOutputTypeDef":
    return client.delete_objects(**query)


def delta_options(uri: str) -> dict[str, str]:
    """Tell delta-rs how to reach a bucket (see `tlray.lake.storage.open.delta_options`)."""
    bucket, _ = split_s3(uri)
    try:
        # The bucket may be in another region than the profile's: boto3 follows by itself, delta-rs has to be told.
        answer = call(uri, lambda client: client.head_bucket(Bucket=bucket))
    except ObjectNotFoundError as error:
        raise SourceError(f"{uri}: there is no bucket {bucket!r}; check the name and the endpoint") from error
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    current = connection(uri)
    region = headers.get("x-amz-bucket-region") or current.client.meta.region_name
    return {
        **_credentials(uri, current),
        "AWS_REGION": region,
        "AWS_CONDITIONAL_PUT": "etag",
        **delta.address_options(current.client, bucket, region),
        **delta.RETRIES,
    }


def _credentials(uri: str, current: Connection) -> dict[str, str]:
    access = access_of(uri)
    if access is not None and access.anonymous:
        return {"AWS_SKIP_SIGNATURE": "true"}
    with s3_errors(uri):
        found = current.session.get_credentials()
        if found is None:
            raise AccessError(f"{uri}: there are no credentials; {LOG_IN}")
        credentials = found.get_frozen_credentials()
    return {
        "AWS_ACCESS_KEY_ID": str(credentials.access_key),
        "AWS_SECRET_ACCESS_KEY": str(credentials.secret_key),
        **({"AWS_SESSION_TOKEN": credentials.token} if credentials.token else {}),
        **({"AWS_REQUEST_PAYER": "true"} if access is not None and access.requester_pays else {}),
    }


def delta_environment(uri: str) -> AbstractContextManager[None]:
    """Have delta-rs trust whom boto3 trusts (see `tlray.lake.storage.open.delta_environment`)."""
    return delta.trusting(connection(uri).ca_bundle)


def arrow_filesystem(uri: str) -> "S3FileSystem":
    """Tell pyarrow how to reach a bucket (see `tlray.lake.storage.open.arrow_filesystem`)."""
    from tlray.lake.storage.s3.arrow import filesystem_of  # loads AWS's client for C++, which few commands need

    return filesystem_of(delta_options(uri), split_s3(uri)[0], connection(uri).ca_bundle)


def _page(uris: list[str], etags: list[str], sizes: list[int]) -> pa.Table:
    return pa.table([uris, etags, sizes], schema=LISTING_SCHEMA)


def _before(key: str) -> str:
    """A key not far before another one.

    S3 begins after a key, not at it; and SeaweedFS (4.48) leaves out all that is below a folder of that very name.
    """
    last = ord(key[-1])
    return key[:-1] if last in (0, 0xE000) else key[:-1] + chr(last - 1) + "~"  # U+E000 follows the surrogates


def _not_empty(page: pa.Table) -> Iterator[pa.Table]:
    if len(page):
        yield page


def _where(uri: str) -> dict[str, Any]:
    """The bucket and key of a request for one object."""
    bucket, key = split_s3(uri)
    if not key or key.endswith("/"):
        raise ObjectNotFoundError(f"{uri} is a folder, not an object")
    return {"Bucket": bucket, "Key": key}


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')

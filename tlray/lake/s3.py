"""The S3 store (see `tlray.lake.storage.Store`), on boto3; for AWS and for servers that speak its protocol."""

import contextlib
import functools
import io
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
import pyarrow as pa
import urllib3
from botocore import exceptions as boto
from botocore.config import Config

from tlray.errors import (
    AccessError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
)
from tlray.lake.s3_errors import LOG_IN, NOT_FOUND, ConflictError, s3_errors
from tlray.lake.storage import LISTING_SCHEMA, READ_BUFFER_BYTES, Blob, ObjectInfo, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

MAX_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""

_DELETE_BATCH = 1000
"""S3's limit for one DeleteObjects (https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html)."""

_ATTEMPTS = 5
_CLIENT_LOCK = threading.Lock()
_CONFIG = Config(
    # With the standard mode's backoff (up to 20 s) eight attempts outlast about half a minute of a server's absence.
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=64,
    tcp_keepalive=True,
    # Servers other than AWS's often know nothing of the checksum trailers that boto3 would send by default.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)

_BROKEN_BODY = (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError)


def new_client(**settings: str) -> "S3Client":
    """A client with tlray's retries and timeouts; `settings` are boto3's, by default all comes from AWS's own sources."""
    # A session of its own: boto3's default one must not be used by two threads at once.
    return boto3.Session().client("s3", config=_CONFIG, **cast("Any", settings))


@functools.lru_cache(maxsize=4)
def _client_of(process_id: int, environment: frozenset[tuple[str, str]]) -> "S3Client":
    del process_id, environment  # the key: connections do not outlive a fork, nor a client the variables that made it
    return new_client()


class S3Store:
    """Objects in S3. All stores of a process share one client, and so one pool of connections."""

    @property
    def _client(self) -> "S3Client":
        environment = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
        with _CLIENT_LOCK:  # else threads that start together would each make one
            return _client_of(os.getpid(), environment)

    def list(self, uri: str) -> Iterator[pa.Table]:
        """See `Store.list`: a page of at most 1000 keys for each request."""
        bucket, key = split_s3(uri)
        info = self.stat(uri)
        if info is not None:
            yield pa.table([[info.uri], [info.etag], [info.size_bytes]], schema=LISTING_SCHEMA)
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": key if not key or key.endswith("/") else key + "/"}
        while True:
            with s3_errors(uri):
                answer = self._client.list_objects_v2(**query)
            found = [one for one in answer.get("Contents", ()) if not one["Key"].endswith("/")]
            if found:
                uris = [f"s3://{bucket}/{one['Key']}" for one in found]
                etags = [_bare(one["ETag"]) for one in found]
                yield pa.table([uris, etags, [one["Size"] for one in found]], schema=LISTING_SCHEMA)
            if not answer["IsTruncated"]:
                return
            query["ContinuationToken"] = answer["NextContinuationToken"]

    def stat(self, uri: str) -> ObjectInfo | None:
        """See `Store.stat`."""
        try:
            where = _where(uri)
            with s3_errors(uri):
                answer = self._client.head_object(**where)
        except ObjectNotFoundError:
            return None
        return ObjectInfo(uri, _bare(answer["ETag"]), answer["ContentLength"])

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """See `Store.read`; a body that breaks off is asked for again."""
        attempt = 0
        while True:
            attempt += 1
            answer = self.get(uri, if_match)
            with contextlib.closing(answer["Body"]) as body:
                size_bytes = answer["ContentLength"]
                if max_bytes is not None and size_bytes > max_bytes:
                    raise ObjectTooLargeError(f"{uri} has {size_bytes} bytes, more than the limit of {max_bytes}")
                try:
                    return Blob(body.read(), _bare(answer["ETag"]))
                except _BROKEN_BODY as error:
                    _pause(uri, attempt, error)

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """See `Store.open`."""
        info = self.stat(uri)
        if info is None:
            raise ObjectNotFoundError(f"{uri} does not exist")
        if if_match not in (None, info.etag):
            raise ObjectChangedError(f"{uri} has the etag {info.etag}, expected {if_match}: it changed since it was listed")
        return cast("BinaryIO", io.BufferedReader(_Reader(self, info), READ_BUFFER_BYTES))

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """See `Store.stream`."""
        answer = self.get(uri, if_match)
        info = ObjectInfo(uri, _bare(answer["ETag"]), answer["ContentLength"])
        return cast("BinaryIO", io.BufferedReader(_Reader(self, info, answer), READ_BUFFER_BYTES)), info.etag

    def write(self, uri: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """See `Store.write`; `if_absent` is a conditional PUT."""
        size_bytes = memoryview(data).nbytes
        if size_bytes > MAX_PUT_BYTES:
            raise StorageError(f"{uri} would have {size_bytes} bytes, but one PUT takes at most {MAX_PUT_BYTES}; write less")
        where = _where(uri)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        attempt = 0
        while True:
            attempt += 1
            try:
                with s3_errors(uri):
                    self._client.put_object(**where, Body=bytes(data), **condition)
                return True
            except ObjectChangedError:
                return False
            except ConflictError as error:  # two conditional PUTs at once, of which neither has won
                _pause(uri, attempt, error)

    def delete(self, uris: Iterable[str]) -> None:
        """See `Store.delete`; a request for each 1000 keys."""
        keys: defaultdict[str, list[str]] = defaultdict(list)
        for uri in uris:
            where = _where(uri)
            keys[where["Bucket"]].append(where["Key"])
        failed = []
        for bucket, of_bucket in keys.items():
            for start in range(0, len(of_bucket), _DELETE_BATCH):
                batch = of_bucket[start : start + _DELETE_BATCH]
                with s3_errors(f"s3://{bucket}"):
                    answer = self._client.delete_objects(
                        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                    )
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
        with s3_errors(uri):
            return self._client.get_object(**where, **condition)


class _Reader(io.RawIOBase):
    """One object's bytes: in ranges as they are asked for, or, given the answer to a GET, from that one connection.

    Every request carries the etag, so all bytes are of the same version; what breaks off is asked for again from there.
    """

    def __init__(self, store: S3Store, info: ObjectInfo, answer: "GetObjectOutputTypeDef | None" = None) -> None:
        self._store, self._info, self._position = store, info, 0
        self._streams = answer is not None
        self._body = answer["Body"] if answer else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._streams

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if self._streams:
            raise io.UnsupportedOperation("seek in a stream")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # typeshed's Buffer has no length
        wanted = min(len(buffer), self._info.size_bytes - self._position)
        if wanted <= 0:
            return 0
        attempt = 0
        while True:
            attempt += 1
            try:
                data = self._next(wanted)
                break
            except _BROKEN_BODY as error:
                self._drop()
                _pause(self._info.uri, attempt, error)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _next(self, wanted: int) -> bytes:
        if self._body is None:
            last = None if self._streams else self._position + wanted - 1
            self._body = self._store.get(self._info.uri, self._info.etag, self._position, last)["Body"]
        data = self._body.read(wanted)
        if not self._streams:
            self._drop()
        return data

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def delta_options(uri: str) -> dict[str, str]:
    """See `tlray.lake.storage.delta_options`."""
    bucket, _ = split_s3(uri)
    with s3_errors(uri):
        session = boto3.Session()
        found = session.get_credentials()
        if found is None:
            raise AccessError(f"{uri}: there are no credentials; {LOG_IN}")
        credentials = found.get_frozen_credentials()
        client = session.client("s3", config=_CONFIG)
        try:
            # The bucket may be in another region than the profile's: boto3 follows by itself, delta-rs has to be told.
            headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            raise SourceError(f"{uri}: there is no bucket {bucket!r}; check the name and the endpoint") from error
    options: dict[str, str] = {
        "AWS_ACCESS_KEY_ID": str(credentials.access_key),
        "AWS_SECRET_ACCESS_KEY": str(credentials.secret_key),
        "AWS_REGION": headers.get("x-amz-bucket-region") or session.region_name or "us-east-1",
        "AWS_CONDITIONAL_PUT": "etag",
    }
    if credentials.token:
        options["AWS_SESSION_TOKEN"] = credentials.token
    endpoint = client.meta.endpoint_url
    if re.fullmatch(r"https://s3\.([a-z0-9-]+\.)?amazonaws\.com", endpoint) is None:
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    return options


def _where(uri: str) -> dict[str, Any]:
    """The bucket and key of a request for one object."""
    bucket, key = split_s3(uri)
    if not key or key.endswith("/"):
        raise ObjectNotFoundError(f"{uri} is a folder, not an object")
    return {"Bucket": bucket, "Key": key}


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _pause(uri: str, attempt: int, error: Exception) -> None:
    """Wait before the next attempt, longer each time; after the last one raise."""
    if attempt == _ATTEMPTS:
        raise StorageError(f"{uri}: {attempt} attempts failed, the last one with: {error}; run again") from error
    time.sleep(0.1 * 2**attempt)

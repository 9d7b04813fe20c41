"""Writing an object to S3: by one PUT, or, where it is large, as parts that become an object together or not at all.

What a killed process had uploaded of one stays, unseen and paid for, until a lifecycle rule of the bucket removes it
(`AbortIncompleteMultipartUpload`). Of several writers at the same moment a condition lets one through on AWS; SeaweedFS (4.48)
was seen to let two, so what must be decided between writers, as commits are, stays far below `LARGE_BYTES`.
"""

import base64
import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from tlray.errors import ObjectNotFoundError, StorageError, TlrayError
from tlray.lake.storage.s3.client import call

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedMultipartUploadTypeDef

LARGE_BYTES = 100 * 2**20
"""From which on AWS advises parts (https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html); one PUT ends at
5 GiB."""

PART_BYTES = 64 * 2**20
"""A part is what is sent again after a failure, and a copy of it is in memory for each thread; S3 takes 5 MiB to 5 GiB."""

MAX_PARTS = 10_000
"""The most parts of one object (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""

_THREADS = 4


def put(uri: str, where: dict[str, Any], data: bytes | memoryview, condition: dict[str, Any]) -> None:
    """Write an object whole or not at all.

    Args:
        uri: for messages.
        where: bucket and key.
        data: all of it.
        condition: `IfMatch` or `IfNoneMatch`, or nothing.

    Raises:
        ObjectChangedError: the condition does not hold.
        ObjectNotFoundError: `IfMatch`, and there is none.
        TlrayError: what else `call` says.
    """
    view = memoryview(data).cast("B")
    if view.nbytes >= LARGE_BYTES:
        _put_in_parts(uri, where, view, condition)
        return
    md5 = _base64(_md5(data))
    call(uri, lambda client: client.put_object(**where, Body=bytes(data), ContentMD5=md5, **condition))


def _put_in_parts(uri: str, where: dict[str, Any], view: memoryview, condition: dict[str, Any]) -> None:
    upload = {**where, "UploadId": call(uri, lambda client: client.create_multipart_upload(**where))["UploadId"]}
    part_bytes = max(PART_BYTES, -(-view.nbytes // MAX_PARTS))

    def send(start: int) -> _Part:
        body, number = bytes(view[start : start + part_bytes]), start // part_bytes + 1
        md5 = _md5(body)
        about = {**upload, "PartNumber": number, "ContentMD5": _base64(md5)}
        answer = call(uri, lambda client: client.upload_part(**about, Body=body))
        return _Part(number, answer["ETag"], md5)

    try:
        with ThreadPoolExecutor(_THREADS, "upload") as threads:
            parts = list(threads.map(send, range(0, view.nbytes, part_bytes)))  # a failure cancels those that wait
        _complete(uri, where, upload, parts, condition)
    except BaseException:
        with contextlib.suppress(TlrayError):
            call(uri, lambda client: client.abort_multipart_upload(**upload))
        raise


class _Part(NamedTuple):
    number: int
    etag: str
    md5: bytes


def _complete(
    uri: str, where: dict[str, Any], upload: dict[str, Any], parts: Sequence[_Part], condition: dict[str, Any]
) -> None:
    listed: CompletedMultipartUploadTypeDef = {"Parts": [{"PartNumber": part.number, "ETag": part.etag} for part in parts]}
    try:
        call(uri, lambda client: client.complete_multipart_upload(**upload, **condition, MultipartUpload=listed))
    except ObjectNotFoundError as error:
        if _etag(uri, where) == f"{_md5(b''.join(part.md5 for part in parts)).hex()}-{len(parts)}":
            return  # an answer was lost, and the request, sent again, found no upload any more
        if "IfMatch" in condition:
            raise
        raise StorageError(f"{uri}: its parts were removed before they became an object; run again") from error


def _etag(uri: str, where: dict[str, Any]) -> str | None:
    try:
        return call(uri, lambda client: client.head_object(**where))["ETag"].strip('"')
    except ObjectNotFoundError:
        return None


def _md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(md5: bytes) -> str:
    # Sent along, as without it SeaweedFS (4.48) keeps an empty object where an upload ends before its first byte.
    return base64.b64encode(md5).decode()

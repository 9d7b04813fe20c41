"""Whether a store keeps the conditions of a PUT, tried out before anything relies on it.

Leases, commits and aliases rest on `If-None-Match` and `If-Match`: of several writers at one moment exactly one must win. Many
servers and gateways take these headers and pass over them, so that every writer is told that it won.
"""

import contextlib
import uuid
from typing import Any, Literal

from tlray.errors import ObjectChangedError, StoreUnfitError, TlrayError
from tlray.lake.storage.s3.client import Connection, call, connection
from tlray.lake.storage.s3.errors import UnsupportedRequestError
from tlray.lake.storage.s3.upload import put
from tlray.lake.storage.uri import split_s3

Condition = Literal["IfNoneMatch", "IfMatch"]

_HEADERS: dict[Condition, str] = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}
_FAILING: dict[Condition, str] = {"IfNoneMatch": "*", "IfMatch": '"00000000000000000000000000000000"'}
"""What must fail for an object that is there."""


def require_condition(uri: str, condition: Condition) -> None:
    """Make sure that a bucket's store keeps a condition; it is tried once in a process.

    A small object is written beside `uri`, under a hidden name that nobody else has, then once more on a condition that does
    not hold.

    Raises:
        StoreUnfitError: it was written all the same, or the store does not know the condition.
        TlrayError: as `call`.
    """
    current = connection(uri)
    bucket, key = split_s3(uri)
    with current.lock:
        if (bucket, condition) not in current.kept_conditions:
            _try_out(uri, {"Bucket": bucket, "Key": f"{key[: key.rfind('/') + 1]}_tlray-probe-{uuid.uuid4().hex}"}, condition)
            current.kept_conditions.add((bucket, condition))


def _try_out(uri: str, where: dict[str, Any], condition: Condition) -> None:
    put(uri, where, b"tlray", {})
    try:
        put(uri, where, b"tlray", {condition: _FAILING[condition]})
    except ObjectChangedError:
        return
    except UnsupportedRequestError as error:
        raise _unfit(connection(uri), where, condition, "does not know it") from error
    finally:
        with contextlib.suppress(TlrayError):  # may write and not delete: the object stays, 5 bytes of a hidden name
            call(uri, lambda client: client.delete_object(**where))
    raise _unfit(connection(uri), where, condition, "passes over it")


def _unfit(current: Connection, where: dict[str, Any], condition: Condition, does: str) -> StoreUnfitError:
    return StoreUnfitError(
        f"the store at {current.client.meta.endpoint_url} (bucket {where['Bucket']}) lacks conditional PUT: it {does} "
        f"({_HEADERS[condition]}), and two runs at once would overwrite each other's commits; upgrade it, as newer versions of "
        "MinIO, Ceph and SeaweedFS have it, or name a place elsewhere"
    )

"""The connection to S3: boto3's client, where its credentials come from, and requests that are repeated."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.utils import parse_timestamp

from tlray.config.sections.stores import StoreAccess, access_of
from tlray.errors import GO_ON, CredentialsError, StorageError, StoreAwayError, TlrayError
from tlray.lake.storage.retry import Attempts, Pace
from tlray.lake.storage.s3.errors import AgainError, ThrottledError, UnexplainedError, s3_errors
from tlray.lake.storage.uri import split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10
READ_SECONDS = 30
"""How long an answer may go without a byte; a stall is waited out, a connection that died without a word is not."""

_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 1},  # `tlray.lake.storage.retry` repeats
    connect_timeout=CONNECT_SECONDS,
    read_timeout=READ_SECONDS,
    max_pool_connections=64,
    tcp_keepalive=True,
    # Servers other than AWS's often know nothing of the checksum trailers that boto3 would send by default.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


@dataclass(frozen=True, eq=False)
class Connection:
    """What a process's requests share: one client, and so one pool of connections; one source of credentials; one pace.

    Attributes:
        session: where credentials come from.
        client: of S3.
        pace: of its requests.
        ca_bundle: file of the certificates that boto3 trusts, where it was told of one.
        kept_conditions: buckets and the conditions that their store keeps (`tlray.lake.storage.s3.conditions`).
        lock: of `kept_conditions`.
    """

    session: boto3.Session
    client: "S3Client"
    pace: Pace
    ca_bundle: str | None
    kept_conditions: set[tuple[str, str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def new_client(**settings: str) -> "S3Client":
    """A client with tlray's time-outs; `settings` are boto3's, by default all comes from AWS's own sources."""
    return _new_session(botocore.session.Session()).client("s3", config=_CONFIG, **cast("Any", settings))


def connection(uri: str) -> Connection:
    """The connection that this process's requests for a place share: one for each entry of `stores`, and one for the rest."""
    return _CONNECTIONS.current(access_of(uri))


def call(uri: str, request: "Callable[[S3Client], Answer]") -> Answer:
    """One request, repeated while S3 is away or busy, and once with credentials that were looked for anew.

    Args:
        uri: what it is about.
        request: makes it.

    Raises:
        StoreAwayError: S3 answers nothing any more.
        StorageError: it answers, but not this request.
        TlrayError: what else `s3_errors` says.
    """
    with s3_errors(uri):
        current = connection(uri)
    attempts, renewed, last = Attempts(), False, False
    while True:
        current.pace.wait()
        began = time.monotonic()
        try:
            with s3_errors(uri):
                return request(current.client)
        except AgainError as error:
            if isinstance(error, ThrottledError):
                current.pace.slow_down(began, time.monotonic())
            if last:
                raise StorageError(f"{uri}: {attempts} failed, the last one with: {error}; run again") from error
            if not attempts.pause():
                _check_answers(uri, current, f"{attempts} failed, the last one with: {error}")
                last = True
        except (CredentialsError, UnexplainedError):
            if renewed:
                raise
            current, renewed = _CONNECTIONS.renewed(access_of(uri), current), True


def _check_answers(uri: str, current: Connection, failure: str) -> None:
    """Tell an object that cannot be had from a store that is away, by asking for something else.

    Raises:
        StoreAwayError: it is away.
    """
    try:
        with s3_errors(uri):
            current.client.head_bucket(Bucket=split_s3(uri)[0])
    except AgainError as error:
        raise StoreAwayError(
            f"{failure}; nothing else is answered either: look after the store or the network, then {GO_ON}"
        ) from error
    except TlrayError:  # a refusal is an answer
        return


class _Connections:
    """Holds the connection of this process and of the variables that say where it leads.

    Connections do not outlive a fork, nor a client the variables that made it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # else threads that start together would each make one
        self._key: object = None
        self._connections: dict[StoreAccess | None, Connection] = {}

    def current(self, access: StoreAccess | None) -> Connection:
        """The connection, made where there is none yet."""
        key = os.getpid(), frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
        with self._lock:
            if key != self._key:
                self._connections, self._key = {}, key
            if access not in self._connections:
                self._connections[access] = _connect(access, Pace())
            return self._connections[access]

    def renewed(self, access: StoreAccess | None, failed: Connection) -> Connection:
        """Another connection than `failed`, whose credentials were looked for again: in files, on the instance, at the SSO."""
        with self._lock:
            if self._connections.get(access) is failed:  # else another thread was quicker
                self._connections[access] = _connect(access, failed.pace)
                self._connections[access].kept_conditions.update(failed.kept_conditions)
        return self.current(access)


def _connect(access: StoreAccess | None, pace: Pace) -> Connection:
    said = access or StoreAccess("")
    core = botocore.session.Session(profile=said.profile)
    session = _new_session(core)
    # In the order in which botocore looks for it.
    ca_bundle = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    config = _CONFIG.merge(Config(signature_version=UNSIGNED)) if said.anonymous else _CONFIG
    client = session.client("s3", config=config, endpoint_url=said.endpoint_url, region_name=said.region)
    if said.requester_pays:
        client.meta.events.register("provide-client-params.s3", cast("Any", _with_requester_pays))
    return Connection(session, client, pace, ca_bundle)


def _with_requester_pays(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
    """Botocore's hook before a request: the parameter, where the operation has it."""
    return {**params, "RequestPayer": "requester"} if "RequestPayer" in model.input_shape.members else params


_CONNECTIONS = _Connections()


def _new_session(core: botocore.session.Session) -> boto3.Session:
    """A session of its own (boto3's default one must not be used by two threads at once) that lists faster.

    botocore tries dateutil first on each key's time, which takes most of a listing's time; `fromisoformat` reads the same.
    """
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    return boto3.Session(botocore_session=core)


def _parse_time(value: Any) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return parse_timestamp(value)

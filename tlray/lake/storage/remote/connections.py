"""Connections to web servers, which by default lead to no address that the public cannot reach.

Whoever writes a list of images could else have this machine ask its neighbours on their behalf. A name is looked up once, what
it resolves to is judged, and the connection goes to that very address: so a name that resolves to another one a moment later
(DNS rebinding) gains nothing.
"""

import ipaddress
import os
import socket
import threading

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from tlray.config.sections.stores import StoreAccess, access_of
from tlray.errors import AccessError
from tlray.version import __version__

CONNECT_SECONDS = 10
READ_SECONDS = 30
"""How long an answer may go without a byte."""

_MOST_HOSTS = 1000
"""Hosts whose connections are kept; the one that was not used for longest is forgotten."""

_HEADERS = {"User-Agent": f"tlray/{__version__}", "Accept-Encoding": "identity"}

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052, section 2.1)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Whether the public can reach an address: it is not private, loopback, link-local, shared, reserved or multicast.

    An IPv6 address that stands for an IPv4 address is judged by that one, too.

    Args:
        text: of the address, as `getaddrinfo` has it.
    """
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    return all(each.is_global and not each.is_multicast for each in _meant(address))


def _meant(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    inner: list[Address] = [address.sixtofour] if address.sixtofour else []
    inner += [address.teredo[1]] if address.teredo else []
    inner += [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in _NAT64 else []
    return [address, *inner]


def _connect(connection: HTTPConnection) -> socket.socket:
    """A connection to the host's address, which was judged; in place of urllib3's own, and failing as that does."""
    try:
        found = socket.getaddrinfo(connection.host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise NameResolutionError(connection.host, connection, socket.gaierror(str(error))) from error
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for address in addresses:
        if not is_public(address):
            how = "https://{} private" if isinstance(connection, HTTPSConnection) else "http://{} private unencrypted"
            place = (
                f"{connection.host}/" if connection.port == connection.default_port else f"{connection.host}:{connection.port}/"
            )
            raise AccessError(
                f"{connection.host} is {address}, which is no public address, so it is not asked; where that is meant, say "
                f'--stores "{how.format(place)}"'
            )
    failure: OSError | None = None
    for address in addresses:
        try:
            return create_connection(
                (address, connection.port), connection.timeout, connection.source_address, connection.socket_options
            )
        except OSError as error:
            failure = error
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, f"{connection.host} did not take a connection in time") from failure
    raise NewConnectionError(connection, f"no connection to {connection.host}: {failure}") from failure


class _PublicConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _PublicTlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _PublicPool(HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicTlsPool(HTTPSConnectionPool):
    ConnectionCls = _PublicTlsConnection


class Connections:
    """A process's connections to web servers: at most so many at once to each, kept open between requests.

    Those that may lead to private addresses are apart from those that may not. None outlives a fork.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = 0
        self._pools: dict[tuple[bool, int], PoolManager] = {}

    def of(self, url: str) -> PoolManager:
        """What makes requests for a URL, by what `stores` says of it."""
        access = access_of(url) or StoreAccess("")
        key = access.private, access.connections
        with self._lock:
            if self._process != os.getpid():
                self._pools, self._process = {}, os.getpid()
            if key not in self._pools:
                self._pools[key] = _new_pools(*key)
            return self._pools[key]


def _new_pools(private: bool, connections: int) -> PoolManager:
    pools = PoolManager(
        num_pools=_MOST_HOSTS,
        headers=_HEADERS,
        maxsize=connections,
        block=True,  # the next request to a host waits for one of its connections
        retries=False,
        timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
    )
    if not private:
        pools.pool_classes_by_scheme = {"http": _PublicPool, "https": _PublicTlsPool}
    return pools

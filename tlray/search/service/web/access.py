"""Who may ask: by the bearer token, and by the names under which the service is asked."""

import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from tlray.errors import ConfigError

Refusal = tuple[int, str]
"""A status and what to say."""


def read_token(token_file: str | None, host: str) -> str | None:
    """The bearer token, or None where there is none.

    Args:
        token_file: whose first line it is.
        host: address that the service listens on.

    Raises:
        ConfigError: the file cannot be read or is empty, or others than this machine could reach a service without one.
    """
    if token_file is None:
        if not is_loopback(host):
            raise ConfigError(f"host {host} is not loopback, so everybody could search; give --token-file")
        return None
    try:
        lines = Path(token_file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --token-file {token_file}: {error}") from error
    token = lines[0].strip()
    if not token or not token.isascii():
        raise ConfigError(f"the first line of {token_file} is no token; expected ASCII characters")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def host_of(header: bytes) -> str:
    """The name or address in a Host header, without port, brackets and a final dot, in lower case."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


class Access:
    """Decides by a request's headers alone.

    Args:
        token: None lets everybody in.
        host: address that the service listens on. Where it is loopback, a request must name this machine: a page elsewhere
            that makes a browser talk to this machine under its own name (DNS rebinding) is refused.
    """

    def __init__(self, token: str | None, host: str) -> None:
        self._token = token
        self._own_name = host.lower() if is_loopback(host) else None

    def refusal(self, headers: Mapping[bytes, bytes], *, needs_token: bool) -> Refusal | None:
        """Why a request is not answered; None lets it pass.

        Args:
            headers: names in lower case.
            needs_token: False for what everybody may see.
        """
        if self._own_name is not None:
            name = host_of(headers.get(b"host", b""))
            if not is_loopback(name) and name != self._own_name:
                return 421, "this service does not go by that name"
        if needs_token and self._token is not None and not self._has_token(headers.get(b"authorization", b"")):
            return 401, "a bearer token is needed: Authorization: Bearer <token>"
        return None

    def _has_token(self, authorization: bytes) -> bool:
        # RFC 9110, 11.1: the scheme's case does not matter, and more than one space may follow it.
        scheme, _, given = authorization.strip().partition(b" ")
        assert self._token is not None
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token.encode())

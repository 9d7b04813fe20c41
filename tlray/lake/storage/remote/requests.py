"""Requests to web servers: redirects that are judged anew at each hop, refusals as tlray's errors, and repeats."""

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3 import exceptions as web

from tlray.config.sections.stores import access_of
from tlray.errors import AccessError, ObjectNotFoundError, StorageError
from tlray.lake.storage.remote.connections import Connections
from tlray.lake.storage.remote.hosts import Host, Hosts
from tlray.lake.storage.retry import Attempts

MOST_REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}

BROKEN_ATTEMPTS = 4
"""At a request that ends without an answer, or with one that says the server failed."""

_CONNECTIONS, _HOSTS = Connections(), Hosts()


class AgainError(StorageError):
    """The server failed or the connection broke: the same request may work in a moment."""


class BusyError(AgainError):
    """The server says that it is asked too often."""


class AwayError(AgainError):
    """The server takes no connection at the moment."""

    host: Host | None = None


class NoHeadError(StorageError):
    """The server refuses HEAD; many give by GET what they refuse by HEAD."""


@contextlib.contextmanager
def answer_to(method: str, uri: str) -> Iterator[BaseHTTPResponse]:
    """The answer to a request, its body not read yet; repeated while the server fails or is busy, redirects followed.

    Raises:
        AccessError: the server refuses, it or one that it redirects to must not be asked, or its certificate is not trusted.
        ObjectNotFoundError: there is nothing.
        StorageError: all else.
    """
    patient, brief = Attempts(), Attempts(BROKEN_ATTEMPTS)
    while True:
        try:
            answer = _follow(method, uri)
            break
        except AgainError as error:
            attempts = patient if _passes(error) else brief
            if not attempts.pause():
                if isinstance(error, AwayError) and error.host is not None:
                    error.host.is_away()
                raise StorageError(f"{uri}: {attempts} failed, the last one with: {error}") from error
    try:
        yield answer
    finally:
        _end(answer)


def _passes(error: AgainError) -> bool:
    """Whether it is worth to wait: for a server that is busy, and for one that answered before and may be starting anew."""
    return isinstance(error, BusyError) or (isinstance(error, AwayError) and error.host is not None and error.host.has_answered)


def _follow(method: str, uri: str) -> BaseHTTPResponse:
    url = uri
    for _ in range(MOST_REDIRECTS + 1):
        _check_scheme(url, asked=uri)
        answer = _one(method, url)
        if answer.status not in _REDIRECTS:
            return answer
        target = answer.headers.get("Location")
        _end(answer)
        if target is None:
            raise StorageError(f"{uri}: HTTP {answer.status} without a Location")
        url = urljoin(url, target)
    raise StorageError(f"{uri} redirects more than {MOST_REDIRECTS} times")


def _one(method: str, url: str) -> BaseHTTPResponse:
    """One request, no redirect followed: its answer if that is a good one, or a redirect."""
    host = _HOSTS.of(url)
    host.wait(url)
    began = time.monotonic()
    try:
        with _web_errors(url):
            answer = _CONNECTIONS.of(url).request(method, url, redirect=False, preload_content=False)
    except AwayError as error:
        error.host = host
        raise
    host.has_answered = True
    if answer.status == 200 or answer.status in _REDIRECTS:
        return answer
    _end(answer)
    if answer.status in (429, 503):
        host.pace.slow_down(began, time.monotonic())
        host.rest(answer.headers.get("Retry-After"))
    if method == "HEAD" and answer.status in (403, 405, 501):
        raise NoHeadError(f"{url}: HTTP {answer.status}")
    raise _refusal(url, answer.status)


def _check_scheme(url: str, *, asked: str) -> None:
    scheme = url.partition("://")[0].lower()
    if scheme == "https":
        return
    if scheme != "http":
        raise AccessError(
            f"{url}{'' if url == asked else f', to which {asked} redirects,'} is no address of the web; expected https://"
        )
    access = access_of(url)
    if access is None or not access.unencrypted:
        raise AccessError(
            f"{url} is not encrypted, so anybody on the way could change it; where that is fine, say "
            '--stores "http:// unencrypted", or the same of a longer prefix'
        )


def _refusal(url: str, status: int) -> StorageError | AccessError:
    said = f"{url}: HTTP {status}"
    if status in (404, 410):
        return ObjectNotFoundError(said)
    if status in (401, 403, 407, 451):
        return AccessError(f"{said}: the server does not give it to everybody")
    if status in (429, 503):
        return BusyError(said)
    return AgainError(said) if status >= 500 or status in (408, 425) else StorageError(said)


@contextlib.contextmanager
def _web_errors(url: str) -> Iterator[None]:
    try:
        yield
    except web.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise AccessError(f"{url}: {error}; its certificate is not one that this machine trusts") from error
        raise AgainError(f"{url}: {error}") from error
    except (web.NewConnectionError, web.ConnectTimeoutError) as error:
        raise AwayError(f"{url}: {str(error).partition('): ')[2] or error}") from error  # without the connection's class
    except (web.LocationValueError, web.LocationParseError, UnicodeError) as error:
        raise ObjectNotFoundError(f"{url} is no URL of the web: {error}") from error
    except (web.HTTPError, OSError) as error:
        raise AgainError(f"{url}: {error}") from error


def _end(answer: BaseHTTPResponse) -> None:
    """Give the connection back; it is closed where the body was not read to its end."""
    answer.close()
    answer.release_conn()

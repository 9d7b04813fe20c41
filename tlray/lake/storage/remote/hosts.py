"""Manners towards web servers: each host is asked as fast as it likes, and left alone when it says so or is away."""

import threading
import time

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry, parse_url

from tlray.errors import StorageError
from tlray.lake.storage.retry import Pace

MOST_WAIT_SECONDS = 60.0
"""How long a host's `Retry-After` is waited out; one that asks for longer fails what is asked of it until then."""

AWAY_SECONDS = 60.0
"""How long nothing is asked of a host that took no connection in several attempts: a list of a million images on a server
that is no more would else take weeks to fail."""


class Host:
    """What a process knows of one web server.

    Attributes:
        pace: of the requests to it.
        has_answered: ever, whatever it said.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self.has_answered = False
        self._lock = threading.Lock()
        self._rests_until = self._away_until = 0.0

    def wait(self, url: str) -> None:
        """Sleep until the host may be asked.

        Raises:
            StorageError: that is too long, or it was away a moment ago.
        """
        with self._lock:
            now = time.monotonic()
            rest_seconds, away = self._rests_until - now, now < self._away_until
        if away:
            raise StorageError(f"{url}: its host could not be reached a moment ago; not asked")
        if rest_seconds > MOST_WAIT_SECONDS:
            raise StorageError(f"{url}: its host asks to be left alone for {rest_seconds:.0f} s (Retry-After); run again later")
        if rest_seconds > 0:
            time.sleep(rest_seconds)
        self.pace.wait()

    def rest(self, retry_after: str | None) -> None:
        """Leave the host alone as long as the value of its `Retry-After` says: seconds, or a time (RFC 9110, 10.2.3)."""
        if retry_after is None:
            return
        try:
            seconds = Retry().parse_retry_after(retry_after)
        except (InvalidHeader, ValueError, OverflowError):
            return
        with self._lock:
            self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    def is_away(self) -> None:
        """Note that the host took no connection, again and again."""
        with self._lock:
            self._away_until = time.monotonic() + AWAY_SECONDS


class Hosts:
    """The web servers that this process asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[tuple[str | None, int | None], Host] = {}

    def of(self, url: str) -> Host:
        """What is known of the host of a URL."""
        parts = parse_url(url)
        with self._lock:
            return self._hosts.setdefault((parts.host, parts.port), Host())

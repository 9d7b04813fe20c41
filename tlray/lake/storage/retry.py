"""How requests to a store are repeated: one policy for all of them, on the monotonic clock alone.

A request that failed in a passing way is repeated after a pause, longer each time, until it was tried both often enough and
for long enough: often, so that requests that only fail by a time-out are repeated too; long, so that the restart of a server
is outlasted. A store that says it is asked too often is asked more slowly by the whole process.
"""

import math
import random
import threading
import time
from collections import deque

PATIENCE_SECONDS = 60.0
"""For how long at least a request is repeated: the restart of a server or a failover, not the loss of one."""

LEAST_ATTEMPTS = 4
"""One more than AWS's tools make in all (https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html)."""

BODY_ATTEMPTS = 5
"""At a body that breaks off while the store answers each request for it: the object's or a network device's fault."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0

_LEAST_RATE = 0.5
_FEW = 10
"""Who sent no more than so many requests in a second is not taken for the one that sends too many, unless it is told again."""

_NO_LIMIT_RATE = 1000.0
"""Requests a second of a process. S3 takes 3,500 writes a second of one prefix, and 5,500 reads
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html)."""

_KEPT_FRACTION = 0.7
_CUBIC = 0.4
"""The constants of CUBIC congestion control: what a refusal leaves of the rate, and how fast it comes back (RFC 9438, section
4). boto3's "adaptive" retries steer by the same curve and the same two numbers."""

_WINDOW_SECONDS = 1.0
"""Refusals within it count as one, as they are answers to the same rate; and rates are measured over it."""


class Pace:
    """How fast a process's requests to a store follow each other; learnt from what the store says to them.

    When the store says "slow down", the rate falls under the one that was too fast, soon comes back close to it, stays there
    for a while, and then grows faster and faster: from any rate it takes 15 seconds to no limit at all. boto3 has such a
    limiter, but it counts by the wall clock, and a clock that is set back by an hour would stop it for one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused_rate: float | None = None
        self._refused_at = self._next_start = 0.0
        self._starts: deque[float] = deque()

    def wait(self) -> None:
        """Sleep until the next request may start."""
        now = time.monotonic()
        start = self.reserve(now)
        if start > now:
            time.sleep(start - now)

    def reserve(self, now: float) -> float:
        """When a request may start that is ready now; on the monotonic clock, as all times here."""
        with self._lock:
            rate = self._rate(now)
            start = now
            if rate is not None:
                start = max(now, self._next_start)
                self._next_start = start + 1 / rate
            self._starts.append(start)
            self._forget(now)
            return start

    def slow_down(self, began: float, now: float) -> None:
        """The store said so just now to a request that began then."""
        with self._lock:
            if self._refused_rate is not None and (began < self._refused_at or now < self._refused_at + _WINDOW_SECONDS):
                return
            self._forget(now)
            measured_rate = sum(start <= now for start in self._starts) / _WINDOW_SECONDS
            rate = min(self._rate(now) or _NO_LIMIT_RATE, max(measured_rate, _FEW))
            self._refused_rate, self._refused_at = max(rate, _LEAST_RATE), now

    def _rate(self, now: float) -> float | None:
        """Requests a second that may start; None where there is no limit (any more)."""
        if self._refused_rate is None:
            return None
        back_seconds = math.cbrt(self._refused_rate * (1 - _KEPT_FRACTION) / _CUBIC)
        rate = self._refused_rate + _CUBIC * (now - self._refused_at - back_seconds) ** 3
        if rate > _NO_LIMIT_RATE:
            self._refused_rate = None
            return None
        return max(rate, _LEAST_RATE)

    def _forget(self, now: float) -> None:
        while self._starts and self._starts[0] <= now - _WINDOW_SECONDS:
            self._starts.popleft()


class Attempts:
    """The attempts at one request, made or about to be made.

    Args:
        most: end after so many, instead of by number and time.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._count, self._began = 1, time.monotonic()

    def __str__(self) -> str:
        return f"{self._count} attempts in {time.monotonic() - self._began:.0f} s"

    def pause(self) -> bool:
        """Sleep before the next attempt, a little longer each time.

        Returns:
            False at once where it has been tried often and long enough.
        """
        pause_seconds = draw_pause(self._count)
        if self._is_enough(time.monotonic() - self._began + pause_seconds):
            return False
        time.sleep(pause_seconds)
        self._count += 1
        return True

    def _is_enough(self, seconds: float) -> bool:
        if self._most is not None:
            return self._count >= self._most
        return self._count >= LEAST_ATTEMPTS and seconds > PATIENCE_SECONDS


def draw_pause(attempts: int) -> float:
    """Seconds to wait after so many attempts that failed.

    Drawn from zero up to a bound that doubles, so that many that failed together do not come back together ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    bound_seconds = min(FIRST_PAUSE_SECONDS * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
    return random.uniform(0, bound_seconds)  # noqa: S311  # not a secret

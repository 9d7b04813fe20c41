"""How requests to a store are repeated: one policy for all of them, on the monotonic clock alone.

A request that failed in a passing way is repeated after a pause, longer each time, until it was tried both often enough and
for long enough: often, so that requests that only fail by a time-out are repeated too; long, so that the restart of a server
is outlasted. A store that says it is asked too often is asked more slowly by the whole process.
"""

import math
import random
import threading
import time

PATIENCE_SECONDS = 60.0
"""For how long at least a request is repeated: the restart of a server or a failover, not the loss of one."""

LEAST_ATTEMPTS = 4
"""One more than AWS's tools make in all (https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html)."""

BODY_ATTEMPTS = 5
"""At a body that breaks off while the store answers each request for it: the object's or a network device's fault."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0

_LEAST_RATE = 1.0
_NO_LIMIT_RATE = 1000.0
"""Requests a second of a process. S3 takes 3,500 writes a second of one prefix, and 5,500 reads
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html)."""

_GROWTH = 1.2
"""Of the rate in a second without a refusal: it has doubled after four, and from one to no limit takes 38."""

_WINDOW_SECONDS = 1.0
"""Refusals within it count as one, as they are answers to the same rate; and rates are measured over it."""


class Pace:
    """How fast a process's requests to a store follow each other; learnt from what the store says to them.

    When the store says "slow down", the rate is halved, and grows again from then on. boto3 has such a limiter ("adaptive"),
    but it counts by the wall clock, and a clock that is set back by an hour would stop it for one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slowed_rate: float | None = None
        self._slowed_at = self._next_start = 0.0
        self._window_began, self._window_count, self._measured_rate = time.monotonic(), 0, _NO_LIMIT_RATE

    def wait(self) -> None:
        """Until the next request may start."""
        with self._lock:
            now = time.monotonic()
            self._measure(now)
            rate = self._rate(now)
            start = now
            if rate is not None:
                start = max(now, self._next_start)
                self._next_start = start + 1 / rate
        if start > now:
            time.sleep(start - now)

    def slow_down(self, began: float) -> None:
        """The store said so to a request that began at this monotonic time."""
        with self._lock:
            now = time.monotonic()
            if self._slowed_rate is not None and (began < self._slowed_at or now < self._slowed_at + _WINDOW_SECONDS):
                return
            rate = min(self._rate(now) or _NO_LIMIT_RATE, self._measured_rate)
            self._slowed_rate, self._slowed_at = max(rate / 2, _LEAST_RATE), now

    def _rate(self, now: float) -> float | None:
        """Requests a second that may start; None where there is no limit (any more)."""
        if self._slowed_rate is None:
            return None
        seconds = min(now - self._slowed_at, 100.0)  # else the power overflows one day
        rate = self._slowed_rate * math.pow(_GROWTH, seconds)
        if rate > _NO_LIMIT_RATE:
            self._slowed_rate = None
            return None
        return rate

    def _measure(self, now: float) -> None:
        """Count a request."""
        seconds = now - self._window_began
        if seconds >= _WINDOW_SECONDS:
            self._measured_rate = self._window_count / seconds
            self._window_began, self._window_count = now, 0
        self._window_count += 1


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
        """Wait before the next attempt.

        Pauses are drawn from zero up to a bound that doubles, so that many that failed together do not come back together
        ("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

        Returns:
            False at once where it has been tried often and long enough.
        """
        bound_seconds = min(FIRST_PAUSE_SECONDS * 2 ** (self._count - 1), LONGEST_PAUSE_SECONDS)
        pause_seconds = random.uniform(0, bound_seconds)  # noqa: S311  # not a secret
        if self._is_enough(time.monotonic() - self._began + pause_seconds):
            return False
        time.sleep(pause_seconds)
        self._count += 1
        return True

    def _is_enough(self, seconds: float) -> bool:
        if self._most is not None:
            return self._count >= self._most
        return self._count >= LEAST_ATTEMPTS and seconds > PATIENCE_SECONDS

"""The time by which a run is to be done: named at its start, held against its pace, and kept.

From then on workers begin no more units. What is under way may end; what is not done GRACE_SECONDS later is dropped, as SIGTERM
drops it.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tlray.config.commands.extraction import moment_of
from tlray.errors import GO_ON, ConfigError, StoppedError, StorageError, TlrayError
from tlray.extraction.run.stop import Stop, stopped
from tlray.machine.timers import repeated
from tlray.progress import readable_seconds, say

GRACE_SECONDS = 30.0
"""For units under way; Kubernetes, too, grants 30 s to what it ends."""

WATCH_SECONDS = 0.5

PACE_SECONDS = 300.0
"""The last minutes tell a run's pace: workers come and go."""

SETTLED_SECONDS = 20.0
"""Seconds of work before anything is foretold."""

MOST_DIFFERENCE_SECONDS = 60.0
"""Between a worker's clock and the driver's, which each keep the time by themselves."""

MARGIN = 0.05
"""Share of the time that is left: a verdict changes only where it is as much off, or it would change with every line."""


def closes_at(by: str | None, budget_hours: float | None, now: float | None = None) -> float | None:
    """When a run is to be done, in seconds since 1970; None where nobody says.

    Args:
        by: a time of the day, or a date with one; by this machine's clock where it names no time zone.
        budget_hours: from now on.
        now: seconds since 1970; default this moment.

    Raises:
        ConfigError: that time is over.
    """
    now = time.time() if now is None else now
    ends = [] if by is None else [_next(by, now)]
    if budget_hours is not None:
        ends.append(now + 3600 * budget_hours)
    return min(ends, default=None)


def _next(by: str, now: float) -> float:
    """The next moment of that name: by the rules of the time zone on that day, as a clock may be put forward until then."""
    at = moment_of(by)
    if isinstance(at, datetime):
        if at.timestamp() <= now:
            raise ConfigError(f"by is {by}, which is over; expected a time to come, or one of the day such as 06:00")
        return at.timestamp()
    today = datetime.combine(datetime.fromtimestamp(now, at.tzinfo), at)
    return (today if today.timestamp() > now else today + timedelta(days=1)).timestamp()


@dataclass
class Deadline:
    """What a run does about the time by which it is to be done.

    Attributes:
        closes: that time, in seconds since 1970.
        clock: returns these seconds.
    """

    closes: float
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._done = self._left = 0
        self._is_known = False
        self._pace: deque[tuple[float, int]] = deque()
        self._is_in_time: bool | None = None
        say(f"to be done by {stamp(self.closes)}, in {readable_seconds(self.closes - self.clock())}")

    @property
    def is_over(self) -> bool:
        """Whether no more units are to be begun."""
        return self.clock() >= self.closes

    def expect(self, items: int) -> None:
        """Note that so many items are left to do, as far as one knows now.

        Raises:
            StoppedError: there is no time for them.
        """
        self._left, self._is_known = items, True
        if self.is_over:
            raise self.error()

    def has_done(self, items: int) -> None:
        """So many more are done; says whether the rest will be in time, when that can first be told and as it changes."""
        now = self.clock()
        if self._pace:
            self._done += items  # what the first workers did before anybody looked at the clock tells no pace
        self._left = max(0, self._left - items)
        self._pace.append((now, self._done))
        while now - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()
        since, done_before = self._pace[0]
        if now - since >= SETTLED_SECONDS and self._done > done_before and not self.is_over:
            self._judge((self._done - done_before) / (now - since), now)

    def _judge(self, rate: float, now: float) -> None:
        needed_seconds, seconds = self._left / rate, self.closes - now
        slack = 0.0 if self._is_in_time is None else MARGIN * needed_seconds * (1 if self._is_in_time else -1)
        is_in_time = needed_seconds <= seconds + slack
        if is_in_time is self._is_in_time:
            return
        self._is_in_time = is_in_time
        if is_in_time:
            spare = readable_seconds(seconds - needed_seconds)
            say(f"at {rate:.3g} a second this will be done at {stamp(now + needed_seconds)}, {spare} before its time")
        else:
            beyond, end = round(self._left - rate * seconds), stamp(self.closes)
            say(
                f"at {rate:.3g} a second this will NOT be done by {end}: about {beyond} of the {self._left} that are "
                f"left will not; {self._left / seconds:.3g} a second would do"
            )

    def error(self) -> StoppedError:
        """What ends a run that is not done in time."""
        left = f"{self._left} are left to do" if self._is_known else "how many are left to do was not known yet"
        return stopped(f"its time is over ({stamp(self.closes)}), and {left}")

    def undone(self) -> TlrayError:
        """What ends a run whose workers began no more units: its time is over, or they think so by clocks that are wrong."""
        early_seconds = self.closes - self.clock()
        if early_seconds <= MOST_DIFFERENCE_SECONDS:
            return self.error()
        return StorageError(
            f"workers began no more units, as by their clocks it is {stamp(self.closes)} already, which is in "
            f"{readable_seconds(early_seconds)} by the clock of {socket.gethostname()}; {self._left} are left to do: set the "
            f"clock that is wrong, then {GO_ON}"
        )

    def result(self) -> dict[str, Any]:
        """What a run that was done in time says of it."""
        return {"by": stamp(self.closes), "spare_seconds": round(self.closes - self.clock(), 1)}


@contextlib.contextmanager
def kept(deadline: Deadline | None, stop: Stop) -> Iterator[None]:
    """Within it, a run is asked to stop when its time, and that for units under way, is over."""
    if deadline is None:
        yield
        return

    def watch() -> None:
        if deadline.clock() >= deadline.closes + GRACE_SECONDS:
            stop.ask(deadline.error())

    with repeated(watch, WATCH_SECONDS, name="deadline"):
        yield


def stamp(seconds: float) -> str:
    """A time as the log writes it, such as "2026-12-01T05:00:00Z"."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"

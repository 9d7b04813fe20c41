"""What is said while a run goes on: log records of the logger `tlray`, and on a terminal a progress bar on stderr.

Nothing here configures logging: the command shows the records as plain lines (`Lines`), a program that imports tlray shows
them as it likes, and without any configuration Python shows warnings alone.
"""

import logging
import sys
import time
from datetime import UTC, datetime

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 10.0

_log = logging.getLogger("tlray")


def say(text: str) -> None:
    """Log a line about how the run goes on, at level INFO."""
    _log.info("%s", text)


class Lines(logging.Handler):
    """Shows each log record as a line with its time on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record above the progress bar."""
        tqdm.write(stamped(self.format(record), record.created), file=sys.stderr)


def stamped(text: str, seconds: float | None = None) -> str:
    """A line of a log with its time in front, such as "2026-11-30T03:12:05Z": a job's log is read next to others.

    Args:
        text: of the line.
        seconds: since 1970; default now.
    """
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return f"{when:%Y-%m-%dT%H:%M:%SZ} {text}"


def readable_size(size_bytes: int, *, unknown: int = 0) -> str:
    """A size for people, such as "1.2 MB".

    Args:
        size_bytes: of all things whose size is known.
        unknown: how many more things there are.
    """
    if unknown and not size_bytes:
        return "of unknown size"
    size, units = float(size_bytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    text = f"{size:.3g} {units[0]}"
    return f"{text} and {unknown} of unknown size" if unknown else text


def readable_seconds(seconds: float) -> str:
    """A time for people, such as "0.4 s", "12 s" or "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Counts the images or texts of a run: as a bar where stderr is a terminal, else as a line now and then.

    Its rate is that of the work: the time until the first images are done, in which workers start, does not count.

    Args:
        total: of them, or shards' worth of them if `total_is_known` is False.
        total_is_known: False for shards, whose members are counted as they come.
        things: what is counted, as lines call it.
    """

    def __init__(self, total: int, *, total_is_known: bool, things: str = "images") -> None:
        self._total = total if total_is_known else None
        self._things = things
        self._done = self._failed = 0
        self._first = 0
        self._first_time: float | None = None
        self._last_line = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=self._total, unit=f" {things}", file=sys.stderr, smoothing=0.05) if terminal else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, failed: int, version: int) -> None:
        """Add finished images to what is shown.

        Args:
            done: finished since the last call, failed ones included.
            failed: those of them that failed.
            version: the table's, so that one sees commits happen.
        """
        now = time.monotonic()
        self._done += done
        self._failed += failed
        is_first = self._first_time is None
        if is_first:
            self._first, self._first_time = self._done, now
        if self._bar is not None:
            self._bar.set_postfix(failed=self._failed, version=version, refresh=False)
            if is_first:
                self._bar.initial = self._bar.n = self._bar.last_print_n = done
                self._bar.unpause()  # its clock begins now
                self._bar.refresh()
            else:
                self._bar.update(done)
        elif now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            of = f" of {self._total}" if self._total is not None else ""
            say(f"{self._done}{of} {self._things}, {self._failed} failed{self._outlook(now)}, table version {version}")

    def _outlook(self, now: float) -> str:
        """The rate and the time that is left; nothing before they can be told."""
        if self._first_time is None or now <= self._first_time or self._done == self._first:
            return ""
        rate = (self._done - self._first) / (now - self._first_time)
        left = "" if self._total is None else f", {readable_seconds((self._total - self._done) / rate)} left"
        return f", {rate:.3g} {self._things}/s{left}"

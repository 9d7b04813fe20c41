"""What a person sees while a run goes on: a bar on a terminal, plain lines in a job's log. All on stderr."""

import sys
import time

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 10.0


def say(text: str) -> None:
    """A line of the log."""
    tqdm.write(text, file=sys.stderr)


class Progress:
    """Counts images.

    Args:
        total: images, or shards' worth of them if `total_is_known` is False.
        total_is_known: False for shards, whose members are counted as they come.
    """

    def __init__(self, total: int, *, total_is_known: bool) -> None:
        self._total = total if total_is_known else None
        self._done = self._failed = 0
        self._started = self._last_line = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=self._total, unit=" images", file=sys.stderr, smoothing=0.05) if terminal else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, failed: int, version: int) -> None:
        """Add finished images.

        Args:
            done: finished since the last call, failed ones included.
            failed: those of them that failed.
            version: the table's, so that one sees commits happen.
        """
        self._done += done
        self._failed += failed
        if self._bar is not None:
            self._bar.set_postfix(failed=self._failed, version=version, refresh=False)
            self._bar.update(done)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            of = f" of {self._total}" if self._total is not None else ""
            rate = self._done / (now - self._started)
            left = f", {(self._total - self._done) / rate:.0f} s left" if self._total is not None and rate > 0 else ""
            say(f"{self._done}{of} images, {self._failed} failed, {rate:.1f} images/s{left}, table version {version}")

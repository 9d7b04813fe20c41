"""The graceful end of a run that is asked for it.

Kubernetes, `ray job stop`, systemd, batch systems and the notices of spot machines that these pass on: all arrive as SIGTERM.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from tlray.errors import GO_ON, StoppedError


def stopped(why: str) -> StoppedError:
    """What ends a run that was asked to end."""
    return StoppedError(f"{why}; finished units are committed: {GO_ON}")


class Stop:
    """Turns SIGTERM into a StoppedError in the main thread, wherever the run is, but not while it is held.

    A context manager: what the signal did before, it does again afterwards. Outside the main thread, where Python knows no
    signals, and outside its `with` block, where a program of somebody else's may have a handler, it does nothing.
    """

    def __init__(self) -> None:
        self._requested = False
        self._error = stopped("asked to stop (SIGTERM)")
        self._holders = 0
        self._is_listening = False

    def __enter__(self) -> Self:
        self._is_listening = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_listening:
            signal.signal(signal.SIGTERM, self._before)
            self._is_listening = False

    def listen(self) -> None:
        """Take the signal, or take it back: joining a Ray cluster sets another handler, which would end the process."""
        if self._is_listening:
            signal.signal(signal.SIGTERM, self._take)

    def ask(self, error: StoppedError) -> None:
        """Ask the run to stop, from any thread; where signals are listened to, it is interrupted in its main thread.

        Args:
            error: that it is to end with.
        """
        if self._requested:
            return
        self._error = error
        if self._is_listening:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            self._requested = True

    def check(self) -> None:
        """Raise if the run was asked to stop.

        Raises:
            StoppedError: it was.
        """
        if self._requested:
            raise self._error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a block end, a commit say, before the signal counts."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        self.check()

    def _take(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        is_first, self._requested = not self._requested, True
        if is_first and not self._holders:  # `timeout` sends two; the second must not break what the first one cleans up
            self.check()

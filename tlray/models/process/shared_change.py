"""Changes of the process that several threads need at the same time."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType


class SharedChange:
    """A change that is there while any thread needs it: the first one makes it, the last one takes it back.

    Where each thread made and took back its own, the first one to leave would take it from the others, and the last one would
    leave behind what it found: the change.

    Args:
        change: makes it, and takes it back.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._made = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._made.enter_context(self._change())
            self._users += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._made.close()

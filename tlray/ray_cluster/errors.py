"""What Ray's errors mean: the error of ours that one wraps, or a StorageError that says what failed."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

from tlray.errors import GO_ON, StorageError, TlrayError

_ADVICE = "\nFailed to apply UDF transform after "
"""Begins what Ray Data adds to the message of whatever a worker raises: lines on its settings, none of which is in use here."""


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise our own error in place of a Ray error that wraps it.

    Raises:
        TlrayError: what a task or worker raised, as itself.
        StorageError: the workers failed in another way; it carries the text.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        raise own_error(error) from error


def own_error(error: BaseException) -> TlrayError:
    """The error of ours that an error of Ray or Ray Train wraps, or else a StorageError with its last line."""
    for candidate in _wrapped(error):
        if isinstance(candidate, TlrayError):
            return _without_advice(candidate)
    if isinstance(error, (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)):
        return StorageError(
            f"a node's object store or the disk that it spills to is full: {last_line(error).rstrip(' .')}; free room there, "
            f"or start Ray with a larger --object-store-memory; {GO_ON}"
        )
    return StorageError(f"the workers failed: {last_line(error)}; {GO_ON}")


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """An error and what it wraps, the innermost meaning first.

    The cause comes before its wrapper: Ray's own wrapper counts as an instance of what it wraps, and carries the whole remote
    traceback. Ray Train's are told by their attributes, as importing it takes a second.
    """
    seen: BaseException | None = error
    while seen is not None:
        causes = (getattr(seen, "cause", None), getattr(seen, "controller_failure", None))
        yield from (cause for cause in causes if isinstance(cause, BaseException))
        yield from getattr(seen, "worker_failures", {}).values()
        yield seen
        seen = seen.__cause__ or seen.__context__


def _without_advice(error: TlrayError) -> TlrayError:
    if error.args and isinstance(error.args[0], str):
        error.args = (error.args[0].partition(_ADVICE)[0], *error.args[1:])
    return error


def last_line(error: BaseException) -> str:
    """What an error of Ray's comes to, which carries a remote traceback."""
    return (str(error).partition(_ADVICE)[0].strip().splitlines() or [type(error).__name__])[-1]

"""The run lock: one run at a time writes to a table, and a dead one's hold runs out.

A lease is a row of small objects, `<table>/_lease/<number>.json`; the highest number counts, and says who holds the table.
Its holder renews it by writing the next number, only if absent, and then removes the ones below. Nobody's clock is compared
with anybody else's: who finds the table held watches the number, and takes over by writing the next one itself when, for
the lease's time by its own clock, it did not change. So of all who write one number exactly one wins; and as a number is
removed only after a higher one is there, who wrote a removed one again sees the higher one and has lost.

A holder that could not renew for the lease's time counts as having lost it, and does not commit any more. The commit itself
checks that nobody else's came in between (`Table.commit`): the last guard, should a machine have slept in the wrong moment.
"""

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from tlray.errors import GO_ON, ObjectNotFoundError, StorageError, TableLockedError, TlrayError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Store
from tlray.lake.storage.uri import join
from tlray.machine.timers import repeated

LEASE_SECONDS = 30.0
"""How long a dead run keeps others out; a store that is away for less does not cost a run its table."""

RENEWALS = 6
"""How often a live run renews its lease in the time that a dead one keeps others out."""

TELL_SECONDS = 60.0
"""How often one that waits says so."""

LEASE_FOLDER = "_lease"
_DIGITS = 20


class Holder(BaseModel):
    """What an object of the lease says.

    Attributes:
        run_id: of the holder's run, or a command's name; None once it has let go.
        was: of the holder's run, once it has let go.
        host: where it runs.
        process: its id there.
        token: that no other holder has.
        since: when it began, by its own clock; for people only.
        seconds: after how long without a renewal it counts as dead.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str | None
    was: str | None = None
    host: str
    process: int
    token: str
    since: str
    seconds: float

    def __str__(self) -> str:
        if self.run_id is None:
            return f"run {self.was or 'of an older tlray'} (process {self.process} on {self.host}), which has ended since,"
        return f"run {self.run_id} (process {self.process} on {self.host}, since {self.since})"


@dataclass(frozen=True)
class _Seen:
    """The highest number there is, and what it says; 0 and None where there is none."""

    number: int
    holder: Holder | None


class Lease:
    """A hold on a table. `hold` makes one.

    Attributes:
        holder: who we are.
    """

    def __init__(self, table_uri: str, holder: Holder, number: int, renewed: float) -> None:
        self.holder = holder
        self._table_uri = table_uri
        self._store = open_store(table_uri)
        self._number = number
        self._renewed = renewed
        self._lost: str | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Make sure that we still hold the table; called before each commit.

        Raises:
            TableLockedError: somebody took it over, or may have.
            StorageError: the lease is old, and the store does not answer.
        """
        with self._lock:
            if self._lost is None and time.monotonic() - self._renewed > self.holder.seconds / RENEWALS * 2:
                self._renew()
            if self._lost is not None:
                raise TableLockedError(f"this run lost its hold on {self._table_uri}: {self._lost}; {GO_ON}")

    def heartbeat(self) -> None:
        """Renew now; failures of the store are left to the next time."""
        with contextlib.suppress(TlrayError), self._lock:
            if self._lost is None:
                self._renew()

    def release(self) -> None:
        """Let go, so that the next run need not wait."""
        with contextlib.suppress(TlrayError), self._lock:
            if self._lost is None:
                gone = {"run_id": None, "was": self.holder.run_id}
                _write(self._store, self._table_uri, self._number + 1, self.holder.model_copy(update=gone))
                self._store.delete([_uri(self._table_uri, self._number)])

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed > self.holder.seconds:
            seen = _look(self._store, self._table_uri)
            if seen.holder is None or seen.holder.token != self.holder.token:
                self._lost = f"it could not be renewed in time, and {_successor(seen)} took over"
                return
        if not _take(self._store, self._table_uri, self._number + 1, self.holder):
            self._lost = f"{_successor(_look(self._store, self._table_uri))} took over"
            return
        self._number += 1
        self._renewed = now
        self._store.delete([_uri(self._table_uri, self._number - 1)])


def _successor(seen: _Seen) -> str:
    return str(seen.holder or "a run that has taken its lease away since")


@contextlib.contextmanager
def hold(
    table_uri: str,
    run_id: str,
    *,
    wait: bool = False,
    seconds: float = LEASE_SECONDS,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:
    """Hold a table for a run, and let go at the end, whatever ended it.

    Args:
        table_uri: the table, or where one is to be.
        run_id: of the run.
        wait: until it is free; otherwise only as long as it takes to see whether its holder is alive.
        seconds: the lease's time.
        tell: is told for whom it waits, and that it still does, now and then.

    Raises:
        TableLockedError: another run holds it.
        StorageError, AccessError: the store failed or refused.
    """
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    token, host = uuid.uuid4().hex, socket.gethostname()
    holder = Holder(run_id=run_id, host=host, process=os.getpid(), token=token, since=since, seconds=seconds)
    lease = _acquire(table_uri, holder, wait=wait, tell=tell)
    try:
        with repeated(lease.heartbeat, seconds / RENEWALS, name="lease"):
            yield lease
    finally:
        lease.release()


def _acquire(table_uri: str, holder: Holder, *, wait: bool, tell: Callable[[str], None]) -> Lease:
    store = open_store(table_uri)
    first: _Seen | None = None
    seen, since = _look(store, table_uri), time.monotonic()
    told = -math.inf
    while True:
        now = time.monotonic()
        is_free = seen.holder is None or seen.holder.run_id is None or now - since > seen.holder.seconds
        if is_free and _take(store, table_uri, seen.number + 1, holder):
            store.delete([_uri(table_uri, seen.number)] if seen.number else [])
            return Lease(table_uri, holder, seen.number + 1, now)
        if not is_free:
            assert seen.holder is not None
            first = first or seen
            if not wait and seen.number != first.number:
                raise TableLockedError(
                    f"{table_uri} is held by {seen.holder}, which is alive; wait for its end (--wait does), "
                    "or end it and run the same command again"
                )
            if now - told > TELL_SECONDS:
                told = now
                tell(f"waiting for {table_uri}: {seen.holder} holds it" + ("" if wait else ", or has died holding it"))
            time.sleep(min(1.0, seen.holder.seconds / RENEWALS / 2))
        before, seen = seen, _look(store, table_uri)
        if seen != before:
            since = time.monotonic()


def _take(store: Store, table_uri: str, number: int, holder: Holder) -> bool:
    """Write a number that is nobody's yet; whether it is ours and the highest."""
    if not _write(store, table_uri, number, holder):
        # An answer may have been lost, and the repeated request found our own object.
        seen = _look(store, table_uri)
        return seen.number == number and seen.holder == holder
    if _look(store, table_uri).number == number:
        return True
    store.delete([_uri(table_uri, number)])
    return False


def _write(store: Store, table_uri: str, number: int, holder: Holder) -> bool:
    return store.write(_uri(table_uri, number), holder.model_dump_json().encode(), if_absent=True)


def _look(store: Store, table_uri: str) -> _Seen:
    while True:
        uris = [uri for page in store.list(join(table_uri, LEASE_FOLDER)) for uri in page["uri"].to_pylist()]
        numbers = {int(name): uri for uri in uris if (name := uri.rpartition("/")[2].removesuffix(".json")).isdigit()}
        if not numbers:
            return _Seen(0, None)
        highest = max(numbers)
        try:
            return _Seen(highest, Holder.model_validate_json(store.read(numbers[highest]).data))
        except ObjectNotFoundError:
            continue  # renewed since it was listed
        except (ValidationError, json.JSONDecodeError) as error:
            raise StorageError(f"{numbers[highest]} is no lease of tlray's; if no run is under way, remove it") from error


def _uri(table_uri: str, number: int) -> str:
    return join(table_uri, LEASE_FOLDER, f"{number:0{_DIGITS}d}.json")

"""What a run has done so far, for its result and for the table's log."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from tlray.extraction.run.report import Resources, report
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.lake.source.listing.report import ListingReport
from tlray.machine.capacity import usable_cores
from tlray.progress import say

NOTES_SHOWN = 10


@dataclass
class Totals:
    """What a run has done since it began, which is when this is made.

    Attributes:
        images: embedded or failed.
        unlabelled: of the embedded ones, those without a label.
        listing: what the source's listing left out; and files that hold no image, as they are read.
        counts: items of the source by what the run found them to be: listed, new, changed, deleted, unchanged.
        failures: failed images by error code.
        unfit: by column that travels, values that were not of its type.
        seconds: by stage, summed over all workers.
        computed_by: images by the engine that embedded them, where there is a choice.
        trials: what machines found where they chose one.
        resources: of its workers.
        commits: made by the run.
        committed_rows: that these added, of images that it worked on.
        written_bytes: of the parts that workers wrote.
        units_left: that are planned and not finished.
        waiting_units: returns how many units are finished and not committed yet.
        clock: seconds.
        lock: held while images and failures are counted, so that another thread sees both or neither.
    """

    images: int = 0
    unlabelled: int = 0
    listing: ListingReport = field(default_factory=ListingReport)
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    unfit: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    computed_by: Counter[str] = field(default_factory=Counter)
    trials: set[str] = field(default_factory=set)
    resources: Resources = field(default_factory=lambda: Resources(usable_cores(), 0))
    commits: int = 0
    committed_rows: int = 0
    written_bytes: int = 0
    units_left: int = 0
    waiting_units: Callable[[], int] = lambda: 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.began = self.clock()
        self._start_seconds: float | None = None
        self._notes_shown = 0
        self.lock = Lock()
        self._uncommitted_since: float | None = None

    @property
    def has_changes(self) -> bool:
        """Whether the source and the table differed."""
        return any(self.counts[name] for name in ("new", "changed", "rewritten", "deleted"))

    @property
    def todo(self) -> int:
        """Items that were found to be embedded."""
        return self.counts["new"] + self.counts["changed"]

    @property
    def failed(self) -> int:
        """How many images of the run failed so far."""
        return self.failures.total()

    @property
    def run_seconds(self) -> float:
        """Seconds that have passed since the run began."""
        return self.clock() - self.began

    @property
    def start_seconds(self) -> float:
        """Seconds until work on the first images began, listing apart: imports, weights, workers."""
        return self._so_far() if self._start_seconds is None else self._start_seconds

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block as that of a stage."""
        began = self.clock()
        try:
            yield
        finally:
            self.seconds.update({stage: self.clock() - began})

    def has_started(self) -> None:
        """Workers begin on the first images now; where nobody says so, the first piece tells when that was."""
        if self._start_seconds is None:
            self._start_seconds = self._so_far()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """There is work in a block, whose results are to be committed."""
        self._uncommitted_since = self.clock()
        try:
            yield
        finally:
            self._uncommitted_since, self.units_left = None, 0

    @property
    def seconds_since_commit(self) -> float:
        """Seconds since the last commit, or since there is work, whichever is later; 0 while there is none, as in a listing."""
        since = self._uncommitted_since
        return 0.0 if since is None else self.clock() - since

    def has_committed(self, rows: int) -> None:
        """The run made a commit now, which added so many rows of images that it worked on."""
        self.commits += 1
        self.committed_rows += rows
        if self._uncommitted_since is not None:
            self._uncommitted_since = self.clock()

    def _so_far(self) -> float:
        return max(0.0, self.run_seconds - self.seconds["list"])

    def add(self, piece: Piece[WrittenParts]) -> None:
        """Count what was written, and tell of some of its failures."""
        if self._start_seconds is None:
            self._start_seconds = max(0.0, self._so_far() - sum(piece.seconds.values()))
        with self.lock:
            self.images += piece.content.images
            self.failures.update(piece.content.failures)
        self.units_left -= piece.is_last
        self.written_bytes += sum(part.size_bytes for part in piece.content.parts)
        self.unlabelled += piece.content.unlabelled
        self.unfit.update(piece.unfit)
        if piece.computed_by:
            self.computed_by[piece.computed_by] += piece.content.images
        if piece.trial:
            self.trials.add(piece.trial)
        for uri in piece.content.without_images:
            self.listing.leave_out("no_images", uri)
            if self.listing.left_out["no_images"] <= NOTES_SHOWN:
                say(f"no image is in {uri}")
        self.seconds.update(piece.seconds)
        for note in piece.notes[: max(0, NOTES_SHOWN - self._notes_shown)]:
            say(f"failed: {note}")
            self._notes_shown += 1

    def report(self) -> dict[str, Any]:
        """Tell what took the time (`tlray.extraction.run.report.report`)."""
        return report(
            self.seconds,
            images=self.images,
            start_seconds=self.start_seconds,
            run_seconds=self.run_seconds,
            resources=self.resources,
        )

    def describe(self) -> dict[str, Any]:
        """What the log keeps of a run, for `tlray show`."""
        seconds = round(self.run_seconds, 3)
        return {"images": self.images, "failed": self.failed, "seconds": seconds, **self.listing.origin, **self.report()}

    def result(self) -> dict[str, Any]:
        """What the command's result says of all this."""
        seconds = self.run_seconds
        return {
            "ok": self.images - self.failed,
            "failed": self.failed,
            "failures": dict(self.failures),
            "seconds": round(seconds, 3),
            "images_per_second": round(self.images / seconds, 3),
            "computed_by": dict(self.computed_by),
            "engine_trials": sorted(self.trials),
            **self.report(),
        }

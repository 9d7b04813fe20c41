"""What a run has done so far, for its result and for the table's log."""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tlray.extraction.report import Resources, report
from tlray.extraction.worker.pieces import Piece, WrittenParts
from tlray.progress import say

NOTES_SHOWN = 10


@dataclass
class Totals:
    """What a run has done so far."""

    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    commit_seconds: float = 0.0
    start_seconds: float = 0.0
    run_seconds: float = 0.0
    resources: Resources = field(default_factory=lambda: Resources(os.cpu_count() or 1, 0))
    notes_shown: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.counts["new"] or self.counts["changed"] or self.counts["deleted"])

    @property
    def failed(self) -> int:
        """Images that failed."""
        return self.failures.total()

    def report(self) -> dict[str, Any]:
        """See `tlray.extraction.report.report`."""
        return report(
            {**self.seconds, "commit": self.commit_seconds},
            images=self.images,
            start_seconds=self.start_seconds,
            run_seconds=self.run_seconds,
            resources=self.resources,
        )

    def describe(self) -> dict[str, Any]:
        """What the log keeps of a run, for `tlray show`."""
        return {"images": self.images, "failed": self.failed, "seconds": round(self.run_seconds, 3), **self.report()}

    def add(self, piece: Piece[WrittenParts]) -> None:
        """Count what was written, and tell of some of its failures."""
        self.images += piece.content.images
        self.failures.update(piece.content.failures)
        self.seconds.update(piece.seconds)
        for note in piece.notes[: max(0, NOTES_SHOWN - self.notes_shown)]:
            say(f"failed: {note}")
            self.notes_shown += 1

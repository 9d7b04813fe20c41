"""What a listing is of, and what it leaves out, counted and said: no name that a user might miss goes without a word."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tlray.lake.storage.store import NoObject

LeftOutReason = (
    NoObject
    | Literal["hidden", "underscore", "ending", "other_format", "exclude", "include", "outside", "repeated", "no_images"]
)

_SAID: dict[str, str] = {
    "hidden": "begin with a dot, or are in a folder that does (--source.also hidden takes them)",
    "underscore": "begin with an underscore, or are in a folder that does (--source.also underscore takes them)",
    "ending": "have an ending that {things} do not have (--source.also any_ending takes them)",
    "other_format": "are of another format than the one that is read here (source.format)",
    "exclude": "match source.exclude",
    "include": "match no pattern of source.include",
    "outside": "are in the listing but not below source.uri",
    "repeated": "were named before in the same source, of which the first row counts",
    "path_too_long": "have a path that is longer than the operating system takes",
    "no_images": "are files in which no {things} were found",
    "broken_link": "are links to nothing",
    "not_a_file": "are sockets, pipes or devices",
}


@dataclass
class ListingReport:
    """What one pass over a source found: how many names it left out, and why.

    Attributes:
        commit: that was listed, in a store that keeps commits: the last one, where several files were named.
        left_out: names by reason (`LeftOutReason`). A folder that is not entered counts once.
        examples: the first name of each reason.
        unlabelled: different images that are listed without a label, where labels were asked for and the listing has them.
        notes: further lines to say once all is listed.
        things: what is listed, as lines call it.
    """

    commit: str | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    notes: list[str] = field(default_factory=list)
    things: str = "images"

    def is_of(self, commit: str) -> None:
        """Note the commit that is listed."""
        self.commit = commit

    @property
    def origin(self) -> dict[str, str]:
        """What results and the table's log say of the commit; nothing where there is none."""
        return {"source_commit": self.commit} if self.commit else {}

    def leave_out(self, reason: LeftOutReason, example: str, count: int = 1) -> None:
        """Count names that are left out for one reason."""
        self.left_out[reason] += count
        self.examples.setdefault(reason, example)

    def lines(self) -> list[str]:
        """What there is to say once all is listed: its commit, a line for each reason, the most frequent first, and the notes.

        Repeated names are not known yet.
        """
        lines = [f"listed as of the commit {self.commit}"] if self.commit else []
        lines += (self._line(reason) for reason, _ in self.left_out.most_common() if reason != "repeated")
        return [*lines, *self.notes]

    def closing_lines(self) -> list[str]:
        """What there is to say of names that came twice and of images without a label, once all is held against the table."""
        lines = [self._line("repeated")] if self.left_out["repeated"] else []
        return [*lines, f"{self.unlabelled} listed {self.things} have no label"] if self.unlabelled else lines

    def _line(self, reason: str) -> str:
        said = _SAID[reason].format(things=self.things)
        return f"left out: {self.left_out[reason]} names that {said}, as {self.examples[reason]}"

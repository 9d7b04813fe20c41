"""How many images of a run may fail: judged when all are done, and over a least number of them.

An image that failed has its row, which says why, whatever becomes of the run; so nothing is won by ending early for a few.
Only a run of which most images fail, for lack of permissions say, ends as soon as its verdict is certain.
"""

from tlray.errors import TooManyFailuresError
from tlray.extraction.run.totals import Totals

LEAST_IMAGES = 100
"""A smaller run is judged as if it had so many: one bad file among ten is not one percent, and not a failed run either."""

HOPELESS_FRACTION = 0.5
"""The share of the images tried so far that ends a run early, where so many have failed."""


def check_failures(totals: Totals, max_fraction: float, table_uri: str, total: int | None = None, *, things: str) -> None:
    """Judge a run by the images that failed.

    Args:
        totals: of the run.
        max_fraction: of its images that may fail.
        table_uri: for the message.
        total: images that it has in all, where it is not at its end.
        things: what they are, as the message calls them.

    Raises:
        TooManyFailuresError: more failed, or every single one.
    """
    total = totals.images if total is None else total
    if not _is_over(totals, max_fraction, total):
        return
    codes = ", ".join(f"{count} {code}" for code, count in totals.failures.most_common())
    raise TooManyFailuresError(
        f"{totals.failed} of {total} {things} failed ({codes}), more than max_failed_fraction={max_fraction}; "
        f"their rows in {table_uri} (status=failed) say why. Mend or exclude them, or give a larger --max-failed-fraction, "
        "and run the same command again: it goes on from here"
    )


def is_hopeless(totals: Totals, max_fraction: float, total: int) -> bool:
    """Whether a run will be judged badly whatever comes, and most of what it tried has failed."""
    return totals.failed > HOPELESS_FRACTION * totals.images and totals.failed > _allowed(max_fraction, total)


def _is_over(totals: Totals, max_fraction: float, total: int) -> bool:
    all_failed = 0 < totals.failed == total and max_fraction < 1
    return all_failed or totals.failed > _allowed(max_fraction, total)


def _allowed(max_fraction: float, total: int) -> float:
    return max_fraction * max(total, LEAST_IMAGES)

"""What the result of a run says of its source, beside the counts."""

from typing import Any

from tlray.extraction.run.inputs import Inputs
from tlray.extraction.run.totals import Totals
from tlray.lake.source.source import Source


def columns_in(inputs: Inputs, totals: Totals) -> dict[str, Any]:
    """What a result says of columns that travel.

    That is their types, rows that were written again, values that did not fit, and files of which all rows stay without one.
    """
    if not inputs.source.config.columns:
        return {}
    types = {column.name: column.type for column in inputs.source.columns}
    unfilled = dict.fromkeys(inputs.late_columns, totals.counts["unchanged"])
    return {"columns": types, "rewritten": totals.counts["rewritten"], "unfit": dict(totals.unfit), "unfilled": unfilled}


def left_out_of(source: Source, totals: Totals) -> dict[str, Any]:
    """What a result says of names that were left out, by reason, and of images without the label that was asked for.

    Beside these the commit that was listed, in a store that keeps commits.

    A source that knows labels before it reads files counts all that it lists; of tar and Parquet files, those of the images
    that were embedded.
    """
    unlabelled = totals.listing.unlabelled if source.gives_labels else totals.unlabelled
    unlabelled = 0 if source.config.labels == "none" else unlabelled
    return {**totals.listing.origin, "left_out": dict(totals.listing.left_out), "unlabelled": unlabelled}

"""The images of a source, listed whole: what examples are chosen from before any of them is read."""

import pyarrow as pa

from tlray.config import SourceConfig
from tlray.errors import ConfigError
from tlray.lake.source.listing.report import ListingReport
from tlray.lake.source.open import check_names_lead_somewhere, open_images
from tlray.lake.source.source import Source
from tlray.progress import say


def list_images(config: SourceConfig, *, refusal: str) -> tuple[Source, pa.Table]:
    """List a source whose images can be read in any order, and say what was left out.

    Args:
        config: of the source.
        refusal: why files that hold many images cannot be used, and what to give instead.

    Returns:
        The source, and all its items.

    Raises:
        ConfigError: it is of files that hold many images.
        SourceError: it holds texts, or nothing that its names lead to.
    """
    source = open_images(config)
    if source.kind != "images":
        raise ConfigError(f"{source.uri} is of format {source.format}, {refusal}")
    check_names_lead_somewhere(source)
    report = ListingReport()
    items = source.items(report)
    for line in (*report.lines(), *report.closing_lines()):
        say(line)
    return source, items

"""Whether the nodes of a cluster see the same files as the driver: asked before anything is written for them to find."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence

from tlray.errors import SourceError, TlrayError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_path
from tlray.ray_cluster.nodes import NOBODY, on_each


def check_reach(nodes: Sequence[str], *, source_uri: str | None, table_uri: str | None) -> None:
    """Make sure that the nodes that work see local files as this process does.

    Args:
        nodes: Ray's ids of them.
        source_uri: of a file of the source; None where that is in no local folder.
        table_uri: of the table or where it is to be; None likewise.

    Raises:
        SourceError: some do not, and which.
    """
    if source_uri is not None:
        _require(source_uri, seen_size(source_uri), nodes)
    if table_uri is not None:
        with _left_beside(table_uri) as (probe_uri, size_bytes):
            _require(probe_uri, size_bytes, nodes, said=table_uri)


def _require(uri: str, size_bytes: int | None, nodes: Sequence[str], *, said: str = "") -> None:
    answers = on_each(nodes, seen_size, uri)
    blind = [node for node, answer in answers.items() if answer not in (size_bytes, NOBODY)]
    if blind:
        raise SourceError(
            f"{said or uri} is on this machine alone: {len(blind)} of the cluster's {len(nodes)} nodes that work do not see it "
            f"({', '.join(blind[:3])}); expected s3:// or a folder that all nodes share; --local does all the work here"
        )


def seen_size(uri: str) -> int | None:
    """The size of a file as this node sees it; None where it does not."""
    try:
        info = open_store(uri).stat(uri)
    except TlrayError:
        return None
    return None if info is None else info.size_bytes


@contextlib.contextmanager
def _left_beside(table_uri: str) -> Iterator[tuple[str, int]]:
    """A small file in the nearest folder above a table, or in the table's own, and its size; it is gone afterwards."""
    folder = to_path(table_uri)
    while not folder.is_dir():
        folder = folder.parent
    name = f".tlray-{uuid.uuid4().hex}.tmp"  # which nobody takes for an image or a part
    store, uri = open_store(table_uri), f"file://{folder / name}"
    store.write(uri, name.encode())
    try:
        yield uri, len(name)
    finally:
        store.delete([uri])

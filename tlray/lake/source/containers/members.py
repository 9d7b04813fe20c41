"""Files that hold many images: their members as they are read, one after the other, in bounded memory.

A member's URI is its file's, `#`, and its name (tar) or row index (Parquet); its etag is the file's, so a file that is
replaced makes all its members new. Where a tar repeats a name, the later ones get `#2`, `#3`: every URI is there once.

What is wrong with a file as a whole becomes one failed image of the file's own URI, so that the table knows that it was read:
a broken file yields what came before and then `truncated` or `corrupt`, one without a column of images `unsupported`, and one
in which no image is `no_images`. The next run finds its etag unchanged and leaves it alone.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from tlray.columns.column import Column
from tlray.config import SourceConfig
from tlray.errors import SourceError
from tlray.lake.source.containers.fetched_image import FetchedImage
from tlray.lake.source.containers.parquet import parquet_members
from tlray.lake.source.containers.tar import tar_members

ContainerKind = Literal["webdataset", "parquet"]

SUFFIXES: dict[ContainerKind, str] = {"webdataset": ".tar", "parquet": ".parquet"}


def kind_of_container(uri: str) -> ContainerKind:
    """The kind of a file that holds images, by the ending of its name in any case.

    Raises:
        SourceError: it is a table of texts.
    """
    for kind, suffix in SUFFIXES.items():
        if uri.lower().endswith(suffix):
            return kind
    raise SourceError(f"{uri} holds no images")


def read_members(
    kind: ContainerKind, uri: str, etag: str | None, config: SourceConfig, columns: Sequence[Column] = ()
) -> Iterator[FetchedImage]:
    """The images of a container, streamed; at least one, which may be an error of the container's own URI.

    Args:
        kind: of the container.
        uri: of the file.
        etag: of the file as it was listed; None takes it as it is.
        config: of the source (labels, column, limits).
        columns: that travel.

    Raises:
        ObjectNotFoundError: the file is not there.
        ObjectChangedError: the file is not the one that was listed, or was replaced while it was read.
        StorageError: the store failed.
    """
    read = tar_members if kind == "webdataset" else parquet_members
    return read(uri, etag, config, columns)

"""Every error that tlray raises on purpose, as one tree.

::

    TlrayError                    exit code 1
    ├── ConfigError               exit code 2: the input was wrong; raised before any worker starts
    │   ├── SourceError           the source is missing, empty or of a form that cannot be read
    │   ├── AccessError           the credentials do not allow it
    │   │   └── CredentialsError  there are none, or the store does not take them (any more)
    │   ├── StoreUnfitError       a store lacks what tlray relies on, such as conditional PUT
    │   ├── BackboneError         unknown backbone or layer
    │   ├── WeightsError          weights missing, of other keys or shapes, or of another hash
    │   ├── RecipeMismatchError   the table belongs to another recipe
    │   ├── TableError            no table there, or not one of ours
    │   ├── PlaceTakenError       something else is where a table, index, model or alias was to be made
    │   ├── IndexMissingError     no index there, or no such version
    │   ├── ModelMissingError     no model there
    │   ├── ExamplesError         labels, images and splits do not fit together
    │   └── QueryError            a search that names what is not there, or a vector of another length
    │       └── WhereError        a condition on columns that cannot be read, or names what is not there
    ├── StorageError              a store failed in the middle of the work; running again goes on
    │   ├── StoreAwayError        it answers nothing any more, retries included
    │   ├── ObjectNotFoundError   there is no object of that name
    │   ├── ObjectTooLargeError   the object is larger than the caller's limit; its body was not read
    │   └── ObjectChangedError    the object is not the one that was listed, or was replaced while it was read
    ├── GoldenMismatchError       this machine computes other numbers than the table holds
    ├── ConcurrentWriteError      another writer committed to the table during the run
    │   └── TableLockedError      another run holds the table, or took it over from this one
    ├── TableCorruptError         verify found damage
    ├── IndexCorruptError         a file of an index is not what its card says
    ├── ModelCorruptError         a file of a model is not what its card says
    ├── ServiceBusyError      the service has as many requests at work or waiting as it takes; ask again
    ├── ServiceUnavailableError  a part of the service could not be loaded; its log says why
    ├── TooManyFailuresError      exit code 3: more images failed than max_failed_fraction allows
    ├── StoppedError              exit code 4: asked to end (SIGTERM); running again goes on
    └── ImageError                one image or text could not be used; becomes its row's `error`

Every one takes its message as its only positional argument (`ImageError` its code and a detail), so all of them
can be pickled: they cross process borders inside Ray.
"""

import errno
from enum import StrEnum

GO_ON = "run the same command again: it goes on from the last commit"
"""The end of a message of an error in the middle of the work, whatever it was."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""How an operating system says that there is no room, or none for this user."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class TlrayError(Exception):
    """Base of all; its message says what was given, what was expected and what to do."""

    exit_code = 1


class ConfigError(TlrayError):
    """The configuration or what it points at is wrong; nothing was started."""

    exit_code = 2


class SourceError(ConfigError):
    """The source is missing, empty or of a form that cannot be read."""


class AccessError(ConfigError):
    """The credentials at hand do not allow what was asked."""


class CredentialsError(AccessError):
    """There are no credentials, or the store does not take them; no object's permissions are to blame."""


class StoreUnfitError(ConfigError):
    """A store lacks what tlray relies on: conditional PUT in S3, hard links and locks in a file system."""


class BackboneError(ConfigError):
    """No backbone or no layer of that name."""


class WeightsError(ConfigError):
    """The weights are missing, do not fit the backbone, or have another hash than the recipe says."""


class RecipeMismatchError(ConfigError):
    """The table, head or index was made with another recipe."""


class TableError(ConfigError):
    """There is no table at that place, or it is not one that tlray made."""


class PlaceTakenError(ConfigError):
    """Something else is at the place where a table, an index, a model or an alias was to be made."""


class IndexMissingError(ConfigError):
    """There is no index at that place, or no such version of it."""


class ModelMissingError(ConfigError):
    """There is no model at that place."""


class ExamplesError(ConfigError):
    """Labels, images, vectors and splits do not fit together; the message counts what is wrong."""


class QueryError(ConfigError):
    """A search names an image, URI or label that is not there, or a vector that does not fit."""


class WhereError(QueryError):
    """A condition on columns cannot be read, names a column that is not there, or compares what cannot be compared."""


class StorageError(TlrayError):
    """A store failed while the work was going on; the same command goes on from the last commit."""


class StoreAwayError(StorageError):
    """Nothing that the store was asked was answered, retries included; no object is to blame."""


class ObjectNotFoundError(StorageError):
    """There is no object of that name."""


class ObjectTooLargeError(StorageError):
    """The object is larger than the caller's limit; its body was not read."""


class ObjectChangedError(StorageError):
    """The object is not the one that was listed, or was replaced while it was read."""


class GoldenMismatchError(TlrayError):
    """This machine's embeddings of the golden images differ from those that the table was made with."""


class ConcurrentWriteError(TlrayError):
    """Another writer committed to the table while this run was going on."""


class TableLockedError(ConcurrentWriteError):
    """Another run holds the table's lease; the message says who, and since when."""


class TableCorruptError(TlrayError):
    """`verify` found that the table does not hold what its log says."""


class IndexCorruptError(TlrayError):
    """A file of an index does not hold what the index's card says."""


class ModelCorruptError(TlrayError):
    """A file of a model does not hold what the model's card says."""


class ServiceBusyError(TlrayError):
    """The service has as many requests at work or waiting as it takes; the same one may be answered in a moment."""


class ServiceUnavailableError(TlrayError):
    """A part of the service could not be loaded, so what needs it cannot be answered; the service's log says why."""


class TooManyFailuresError(TlrayError):
    """More images failed than `max_failed_fraction` allows; their rows say why."""

    exit_code = 3


class StoppedError(TlrayError):
    """The run was asked to end before it was done; finished units are committed, and the same command goes on."""

    exit_code = 4


class ImageErrorCode(StrEnum):
    """The closed set of reasons for which an image has no embedding.

    `no_images` alone is none of an image: it stands for a tar or Parquet file that was read to its end and holds none.
    """

    NOT_FOUND = "not_found"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    BOMB = "bomb"
    FETCH_FAILED = "fetch_failed"
    NON_FINITE = "non_finite"
    NO_IMAGES = "no_images"
    UNKNOWN_WORDS = "unknown_words"


class ImageError(TlrayError):
    """One image or text could not be used.

    Attributes:
        code: why, out of the closed set.
        detail: what the decoder or the store said.
    """

    def __init__(self, code: ImageErrorCode, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else str(self.code)

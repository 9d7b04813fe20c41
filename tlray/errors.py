"""Every error that tlray raises on purpose, as one tree.

::

    TlrayError                    exit code 1
    ├── ConfigError               exit code 2: the input was wrong; raised before any worker starts
    │   ├── SourceError           the source is missing, empty or of a form that cannot be read
    │   ├── AccessError           the credentials do not allow it
    │   ├── BackboneError         unknown backbone or layer
    │   ├── WeightsError          weights missing, of other keys or shapes, or of another hash
    │   ├── RecipeMismatchError   the table belongs to another recipe
    │   └── TableError            no table there, or not one of ours
    ├── StorageError              a store failed in the middle of the work; running again goes on
    │   ├── ObjectNotFoundError   there is no object of that name
    │   ├── ObjectTooLargeError   the object is larger than the caller's limit; its body was not read
    │   └── ObjectChangedError    the object is not the one that was listed, or was replaced while it was read
    ├── GoldenMismatchError       this machine computes other numbers than the table holds
    ├── ConcurrentWriteError      another writer committed to the table during the run
    ├── TableCorruptError         verify found damage
    ├── TooManyFailuresError      exit code 3: more images failed than max_failed_fraction allows
    └── ImageError                one image could not be used; becomes its row's `error`

Every one takes its message as its only positional argument (`ImageError` its code and a detail), so all of them
can be pickled: they cross process borders inside Ray.
"""

from enum import StrEnum


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


class BackboneError(ConfigError):
    """No backbone or no layer of that name."""


class WeightsError(ConfigError):
    """The weights are missing, do not fit the backbone, or have another hash than the recipe says."""


class RecipeMismatchError(ConfigError):
    """The table, head or index was made with another recipe."""


class TableError(ConfigError):
    """There is no table at that place, or it is not one that tlray made."""


class StorageError(TlrayError):
    """A store failed while the work was going on; the same command goes on from the last commit."""


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


class TableCorruptError(TlrayError):
    """`verify` found that the table does not hold what its log says."""


class TooManyFailuresError(TlrayError):
    """More images failed than `max_failed_fraction` allows; their rows say why."""

    exit_code = 3


class ImageErrorCode(StrEnum):
    """The closed set of reasons for which an image has no embedding."""

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


class ImageError(TlrayError):
    """One image could not be used.

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

"""The local store: files below folders, with the manners of S3 (see `tlray.lake.storage.store.Store`)."""

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from tlray.errors import (
    DISK_FULL,
    GO_ON,
    AccessError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StorageError,
    StoreUnfitError,
)
from tlray.lake.storage.store import LISTING_SCHEMA, READ_BUFFER_BYTES, Blob, NoObject, ObjectInfo, Walk, in_range
from tlray.lake.storage.uri import printable, to_path

PAGE_ROWS = 10_000

_NOT_SUPPORTED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
"""How file systems say that they have no hard links or no locks; EPERM as in link(2)."""

_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


class LocalStore:
    """Files of this machine (or of a shared mount)."""

    def list(
        self, uri: str, *, first: str | None = None, end: str | None = None, walk: Walk | None = None
    ) -> Iterator[pa.Table]:
        """List the files below a folder (see `Store.list`).

        Symbolic links are followed, but not into a folder above them. Each folder's names are sorted, so the order is the same
        every time and one folder's names are held in memory.
        """
        for page in self._list(uri, walk or _EVERYTHING):
            rows = in_range(page, first, end)
            if len(rows):
                yield rows

    def _list(self, uri: str, walk: Walk) -> Iterator[pa.Table]:
        info = None if uri.endswith("/") else self.stat(uri)
        if info is not None:
            yield pa.table([[info.uri], [info.etag], [info.size_bytes]], schema=LISTING_SCHEMA)
            return
        rows: list[tuple[str, str, int]] = []
        for path, status in _walk(os.fspath(_existing(uri)), walk):
            rows.append((_uri(path), _etag(status), status.st_size))
            if len(rows) == PAGE_ROWS:
                yield _page(rows)
                rows = []
        if rows:
            yield _page(rows)

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell a file's etag and size (see `Store.stat`); anything but a regular file is not an object."""
        with _errors(uri):
            try:
                status = _existing(uri).stat()
            except (OSError, ValueError) as error:
                if _says_missing(error):
                    return None
                raise
        if not stat.S_ISREG(status.st_mode):
            return None
        return ObjectInfo(uri, _etag(status), status.st_size, status.st_mtime)

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole file (see `Store.read`)."""
        with _errors(uri), self.open(uri, if_match=if_match) as file:
            before = os.fstat(file.fileno())
            if max_bytes is not None and before.st_size > max_bytes:
                raise ObjectTooLargeError(f"{uri} has {before.st_size} bytes, more than the limit of {max_bytes}")
            data = file.read()
            if _etag(os.fstat(file.fileno())) != _etag(before) or len(data) != before.st_size:
                raise ObjectChangedError(f"{uri} was written to while it was read; run again when it is complete")
            return Blob(data, _etag(before))

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open a file for reading parts of it (see `Store.open`)."""
        with _errors(uri):
            path = _existing(uri)
            if not stat.S_ISREG(path.stat().st_mode):  # to open a named pipe would wait for ever
                raise ObjectNotFoundError(f"{uri} is not a file")
            file = path.open("rb", READ_BUFFER_BYTES)
            etag = _etag(os.fstat(file.fileno()))
            if if_match not in (None, etag):
                file.close()
                raise ObjectChangedError(f"{uri} has the etag {etag}, expected {if_match}: it changed since it was listed")
            return file

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open a file for reading it from front to back (see `Store.stream`)."""
        file = self.open(uri, if_match=if_match)
        return file, _etag(os.fstat(file.fileno()))

    def write(self, uri: str, data: bytes | memoryview, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        """Write a file whole or not at all (see `Store.write`).

        Raises:
            StoreUnfitError: the file system lacks hard links, which `if_absent` needs, or locks, which `if_match` needs.
        """
        if if_match is not None:
            with _errors(uri, writing=True), _locked(_existing(uri).parent):
                info = self.stat(uri)
                return info is not None and info.etag == if_match and self.write(uri, data)
        path = _existing(uri)
        temporary = path.with_name(f".tlray-{uuid.uuid4().hex}.tmp")
        with _errors(uri, writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if not if_absent:
                    temporary.replace(path)
                elif not _linked(path, temporary):
                    return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return True

    def delete(self, uris: Iterable[str]) -> None:
        """Delete files (see `Store.delete`); their folders stay."""
        failed: list[str] = []
        for uri in uris:
            try:
                _existing(uri).unlink()
            except (OSError, ValueError) as error:
                if not _says_missing(error):
                    failed.append(f"{uri}: {error}")
        if failed:
            raise StorageError(f"{len(failed)} files could not be deleted; the first: {failed[0]}")


def _existing(uri: str) -> Path:
    r"""The path of a URI, its `\xNN` turned into bytes where only that names a file."""
    path = to_path(uri)
    if "\\x" in uri and not os.path.lexists(path):
        raw = _ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(path))
        if os.path.lexists(raw):
            return Path(os.fsdecode(raw))
    return path


def _refuse_long_paths(reason: NoObject, uri: str) -> None:
    if reason == "path_too_long":
        raise StorageError(f"{uri}: the path is longer than the operating system takes; move it nearer to the root")


_EVERYTHING = Walk(lambda _folder: True, _refuse_long_paths)


def _walk(root: str, walk: Walk) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below `root`, depth first, with their status."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while pending:
        folder, above = pending.pop()
        with _errors(_uri(folder), advice="give this user access to it, or leave it out with source.exclude"):
            scanned = _scanned(folder, walk)
            if scanned is None or scanned[0] in above:
                continue
            folders = []
            for entry in scanned[1]:
                status = _status(entry, walk)
                if status is None:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield entry.path, status
                elif not stat.S_ISDIR(status.st_mode):
                    walk.passed_over("not_a_file", _uri(entry.path))
                elif walk.enters(f"{_uri(entry.path)}/"):
                    folders.append((entry.path, above | {scanned[0]}))
        pending += reversed(folders)


def _scanned(folder: str, walk: Walk) -> tuple[tuple[int, int], list[os.DirEntry[str]]] | None:
    """A folder's device and inode, and its sorted entries; None where it went away, or its path is too long."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - a str, as scandir gives them; Path costs more than the call
        with os.scandir(folder) as found:
            return (status.st_dev, status.st_ino), sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            walk.passed_over("path_too_long", _uri(folder))
        elif not _says_missing(error):
            raise
        return None


def _status(entry: os.DirEntry[str], walk: Walk) -> os.stat_result | None:
    """The status of what an entry links to; None where that is nothing, or the entry went away since the scan."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            walk.passed_over("path_too_long", _uri(entry.path))
        elif not _says_missing(error):
            raise
        elif entry.is_symlink():
            walk.passed_over("broken_link", _uri(entry.path))
        return None


def _uri(path: str) -> str:
    return f"file://{printable(path)}"


def _page(rows: list[tuple[str, str, int]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=LISTING_SCHEMA)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _linked(path: Path, temporary: Path) -> bool:
    """Give a file its name unless the name is taken; False where it is."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        return False
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            raise _unfit(path.parent, "hard links", error) from error
        raise
    return True


def _unfit(folder: Path, lacks: str, error: OSError) -> StoreUnfitError:
    return StoreUnfitError(
        f"the file system of {folder} has no {lacks} ({error.strerror}), without which two runs at once would overwrite each "
        "other's commits; name a place on another one (ext4, XFS, APFS, NFS and the like have them; FAT and some cloud mounts "
        "do not)"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among those who lock this folder too; the lock ends with its process."""
    import fcntl  # which Windows has not

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                raise _unfit(folder, "file locks", error) from error
            raise
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a power cut, not only the bytes under it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _says_missing(error: OSError | ValueError) -> bool:
    """Whether no file can be of that name; ValueError is a NUL in it."""
    return error.errno in _NO_SUCH_FILE if isinstance(error, OSError) else isinstance(error, ValueError)


@contextlib.contextmanager
def _errors(uri: str, *, writing: bool = False, advice: str = "give this user access to it") -> Iterator[None]:
    """What the operating system says, as an error of ours."""
    try:
        yield
    except PermissionError as error:
        raise AccessError(f"{uri}: permission denied ({error.strerror}); {advice}") from error
    except (OSError, ValueError) as error:
        if not writing and _says_missing(error):
            raise ObjectNotFoundError(f"{uri} does not exist, or is a folder") from error
        if isinstance(error, IsADirectoryError):
            raise StorageError(f"{uri} is a folder; an object was to be written there") from error
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise StorageError(f"{uri}: the disk is full ({error.strerror}); make room there, then {GO_ON}") from error
        raise StorageError(f"{uri}: {error}") from error

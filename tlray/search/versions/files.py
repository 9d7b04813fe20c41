"""The files of an index: each stored under a name that holds the hash of its bytes, and checked before it is used."""

import hashlib
import mmap
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict

from tlray.errors import IndexCorruptError, ObjectNotFoundError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.store import Store
from tlray.lake.storage.uri import join, to_path

FileKind = Literal["faiss", "rows", "recipe", "vectors", "delta", "centres", "columns"]
_BLOCK_BYTES = 8 * 2**20


class IndexFile(BaseModel):
    """One file of an index: its name below `files/`, the hash and the length of its bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    size_bytes: int


def put_file(index_uri: str, kind: FileKind, path: Path) -> IndexFile:
    """Store a local file under a name that holds its hash, and leave none behind.

    Also over one of that name: it may be damaged, and a rebuild is what mends an index; or old, and about to be deleted.
    """
    folder = _folder_on_the_same_disk(index_uri, path)
    with ThreadPoolExecutor(1) as syncing:  # the disk writes while the bytes are hashed
        synced = syncing.submit(_sync, path) if folder else None
        digest, size_bytes = hash_file(path)
    if synced is not None:
        synced.result()
    name = f"{kind}-{digest}"
    if not (folder and _moved(path, folder / name)):
        uri = join(index_uri, "files", name)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            open_store(uri).write(uri, view)
        path.unlink()
    return IndexFile(name=name, sha256=digest, size_bytes=size_bytes)


def _folder_on_the_same_disk(index_uri: str, path: Path) -> Path | None:
    """Where a file can be moved to, most likely."""
    if not index_uri.startswith("file://"):
        return None
    folder = to_path(join(index_uri, "files"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder if folder.stat().st_dev == path.stat().st_dev else None


def _moved(path: Path, target: Path) -> bool:
    try:
        path.replace(target)
    except OSError:
        return False  # one disk, mounted twice
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def put_bytes(index_uri: str, kind: FileKind, data: bytes) -> IndexFile:
    """Like `put_file`, for what is in memory."""
    digest = hashlib.sha256(data).hexdigest()
    uri = join(index_uri, "files", f"{kind}-{digest}")
    open_store(uri).write(uri, data)
    return IndexFile(name=f"{kind}-{digest}", sha256=digest, size_bytes=len(data))


def get_file(index_uri: str, file: IndexFile, scratch: Path) -> Path:
    """A local file with the checked bytes: the stored one itself, or a copy in `scratch`.

    Raises:
        IndexCorruptError: its bytes are not those that the card names, or it is gone.
    """
    uri = join(index_uri, "files", file.name)
    try:
        if uri.startswith("file://"):
            path = to_path(uri)
            digest = hash_file(path)[0] if path.is_file() else "(gone)"
        else:
            with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as copy:
                path, digest = Path(copy.name), _digest(open_store(uri), uri, copy)
    except ObjectNotFoundError:
        digest = "(gone)"
    if digest != file.sha256:
        raise IndexCorruptError(
            f"{uri} has the sha256 {digest[:12]}, the index's card says {file.sha256[:12]}; restore the file, or build "
            "the index anew with `tlray index --rebuild`"
        )
    return path


def _digest(store: Store, uri: str, copy: IO[bytes] | None = None) -> str:
    """Sha256 in hex of a stored object, and a copy of its bytes where one is wanted."""
    hasher = hashlib.sha256()
    with store.stream(uri)[0] as stream:
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
            if copy is not None:
                copy.write(block)
    return hasher.hexdigest()


def hash_file(path: Path) -> tuple[str, int]:
    """Sha256 in hex and length in bytes of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()

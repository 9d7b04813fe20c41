"""Files that libraries can only read from a local path."""

import hashlib
import os
import tempfile
from pathlib import Path

from tlray.errors import SourceError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_path, to_uri


def local_copy(address: str) -> Path:
    """A local file with the bytes of a URI or path, downloaded once per machine and version.

    Copies live in the machine's temporary folder, under a name that holds the hash of the URI and its etag.

    Args:
        address: URI or local path.

    Raises:
        SourceError: nothing is there.
    """
    uri = to_uri(address)
    store = open_store(uri)
    info = store.stat(uri)
    if info is None:
        raise SourceError(f"no file at {address}; expected a readable file: check the address and the credentials")
    if uri.startswith("file://"):
        return to_path(uri)
    key = hashlib.sha256(f"{uri}\n{info.etag}".encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"tlray-{os.getuid()}" / key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / uri.rsplit("/", 1)[-1]
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            stream, _ = store.stream(uri)
            with stream:
                while block := stream.read(8 * 2**20):
                    file.write(block)
        Path(file.name).replace(path)
    return path

"""The page's own files, read once and answered from memory; nothing of them comes from elsewhere, and no path leads further."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

PAGE_FOLDER = Path(__file__).parent.parent / "page"
MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
DOCUMENTS = {"/": "index.html", "/docs": "docs.html"}
"""Addresses of documents; all other files are below /static/."""


@dataclass(frozen=True)
class PageFile:
    """A file as it is answered.

    Attributes:
        data: its bytes.
        headers: type, and an entity tag by which a browser asks whether it has changed.
    """

    data: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        """The entity tag by which browsers keep a file of the page."""
        return self.headers["etag"]


def read_page_files() -> dict[str, PageFile]:
    """Each file of the page by its path in the service."""
    documents = {name: path for path, name in DOCUMENTS.items()}
    files = {}
    for path in sorted(PAGE_FOLDER.iterdir()):
        data = path.read_bytes()
        headers = {
            "content-type": MEDIA_TYPES[path.suffix],
            "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            "cache-control": "no-cache",  # asks each time, so that a new version of the service shows its own page
        }
        files[documents.get(path.name, f"/static/{path.name}")] = PageFile(data, headers)
    return files

"""URIs: the normal form of what users write for a place, and its parts."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from tlray.errors import SourceError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SHORT_FILE = re.compile(r"file:(/[^/].*)", re.DOTALL | re.IGNORECASE)
_ONE_SLASH = re.compile(r"(s3|s3a|s3n|gs|az|https?):/(?!/)", re.IGNORECASE)
"""How `pathlib.Path` writes a URI, and who forgets a slash."""

_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")

_SCHEMES = {name: name for name in ("file", "s3", "https", "http", "gs", "az", "hf")} | {"s3a": "s3", "s3n": "s3"}
_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?", re.DOTALL)


def to_uri(text: str) -> str:
    """The normal form of what a user may write for a place.

    A text without a scheme is a local path: `~` is expanded and it is made absolute. `s3a://` and `s3n://` become `s3://`.
    URIs are literal; but a file URI whose name is there only once its percent-encoding is undone, as browsers and
    `Path.as_uri` write it (RFC 8089), is taken for that name. `file:/path` and `file://localhost/path` are file URIs, too.

    Raises:
        SourceError: empty, of another scheme or with one slash after it, or with a user and password in it.
    """
    if not text:
        raise SourceError("a URI is empty; expected s3://bucket/key or a local path")
    short = _SHORT_FILE.match(text)
    match = _SCHEME.match(f"file://{short[1]}" if short else text)
    if match is None:
        if _ONE_SLASH.match(text):
            raise SourceError(
                f"{text!r} has one slash after its scheme; expected {text.replace(':/', '://', 1)}, or ./{text} for a local one"
            )
        return "file://" + printable(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - keep `\\xNN` bytes
    scheme, rest = _SCHEMES.get(match[1].lower()), match[2]
    if scheme is None:
        raise SourceError(
            f"{text!r} has the scheme {match[1]!r}; expected s3://bucket/key, file:///path or a local path, "
            "or for a source https://host/path, gs://bucket/key, az://container/path or hf://datasets/owner/name/path"
        )
    if scheme == "file":
        rest = _decoded(rest.removeprefix("localhost"))
    if scheme == "file" and not rest.startswith("/"):
        raise SourceError(f"{text!r} is not an absolute file URI; expected file:///path, or the path without a scheme")
    if scheme in ("s3", "gs", "az") and not rest.partition("/")[0]:
        raise SourceError(f"{text!r} names no bucket; expected {scheme}://bucket/key")
    if scheme in ("https", "http"):
        _check_host(scheme, rest)
    uri = f"{scheme}://{rest}"
    if scheme == "hf":
        split_hub(uri)
    return uri


def _check_host(scheme: str, rest: str) -> None:
    authority = re.split(r"[/?#\\\\]", rest, maxsplit=1)[0]
    _, at, host = authority.rpartition("@")
    if at:
        raise SourceError(
            f"{scheme}://...@{host} has a user or password in it, which would be stored with each image; leave it out"
        )
    if not authority:
        raise SourceError(f"'{scheme}://{rest}' names no host; expected https://host/path")


def _decoded(path: str) -> str:
    """A path of a file URI without its percent-encoding, if only so it is there, or at least the folder that it is in."""
    if not _ENCODED.search(path) or os.path.lexists(path):
        return path
    decoded = os.fsdecode(unquote_to_bytes(path))
    folder, literal_folder = os.path.dirname(decoded), os.path.dirname(path)  # noqa: PTH120
    is_there = os.path.lexists(decoded) or (os.path.lexists(folder) and not os.path.lexists(literal_folder))
    return printable(decoded) if is_there else path


def to_path(uri: str) -> Path:
    """The local path that a `file://` URI names.

    Raises:
        SourceError: it is of another scheme.
    """
    if not uri.startswith("file:///"):
        raise SourceError(f"{uri!r} is not a local file; expected file:///path")
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """`uri` and the parts below it, with one `/` between each; nothing is encoded or resolved."""
    for part in parts:
        uri = uri + part if uri.endswith("/") else f"{uri}/{part}"
    return uri


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI; the key is empty for a bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def split_hub(uri: str) -> tuple[str, str | None, str]:
    """Dataset, revision (None where none is named) and path of an `hf://` URI; the path is empty for a whole dataset.

    A slash of a revision's name is written `%2F`, but for the Hub's own `refs/convert/...` and `refs/pr/...`.

    Raises:
        SourceError: it is no place in a dataset.
    """
    match = _HUB.fullmatch(uri)
    if match is None:
        raise SourceError(
            f"{uri!r} names no dataset; expected hf://datasets/owner/name/path, or .../name@revision/path with a revision"
        )
    return match[1], None if match[2] is None else unquote(match[2]), match[3] or ""


def printable(name: str) -> str:
    r"""A file or tar member name as valid Unicode: bytes that Python could not decode become `\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

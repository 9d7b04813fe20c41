"""The store of `hf://datasets/owner/name@revision/path` (see `tlray.lake.storage.store.Store`), on huggingface_hub; only read.

An object's etag is the hash of its bytes that the Hub keeps: git's of a small file, the SHA-256 of a large one. So whatever
revision is read, only what has other bytes counts as changed. A listing is of one commit; so is a file that is read in parts.

The token is that of the Hub's own login (`hf auth login`, `HF_TOKEN`); `HF_ENDPOINT` names another hub.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import BinaryIO, TypeVar

import pyarrow as pa
from httpx2 import ConnectError, ConnectTimeout, HTTPError, Response, TransportError
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from tlray.errors import (
    GO_ON,
    AccessError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
    StoreAwayError,
)
from tlray.lake.storage.remote.ranges import STREAM_BYTES, RangeReader
from tlray.lake.storage.remote.read_only import ReadOnlyStore
from tlray.lake.storage.retry import BODY_ATTEMPTS, Attempts
from tlray.lake.storage.store import READ_BUFFER_BYTES, Blob, ObjectInfo, Walk, pages_of
from tlray.lake.storage.uri import split_hub

_PAGE_ROWS = 1000
_TIMEOUT_SECONDS = 60.0
"""Seconds without a byte from the Hub after which a request is given up, and made again."""

Given = TypeVar("Given")

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, on every machine that works"


class HubStore(ReadOnlyStore):
    """Files of datasets on the Hugging Face Hub."""

    def list(
        self,
        uri: str,
        *,
        first: str | None = None,
        end: str | None = None,
        walk: Walk | None = None,
    ) -> Iterator[pa.Table]:
        """List the files below a folder of one commit (see `Store.list`), which the walk is told; a tree is listed at once."""
        repo, revision, path = split_hub(uri)
        info = None if not path or uri.endswith("/") else self.stat(uri)
        if info is not None:
            _tell(walk, info.commit)
            yield from pages_of([info], first, end)
            return
        root = uri[: len(uri) - len(path)].rstrip("/")
        api = HfApi()
        with _errors(uri):
            commit = api.dataset_info(repo, revision=revision, expand=["sha"], timeout=_TIMEOUT_SECONDS).sha
            folder = path.rstrip("/") or None
            entries = iter(api.list_repo_tree(repo, folder, recursive=True, revision=commit, repo_type="dataset"))
        _tell(walk, commit)
        while True:
            try:
                with _errors(uri):
                    page = list(islice(entries, _PAGE_ROWS))
            except ObjectNotFoundError:  # there is no such folder
                return
            if not page:
                return
            files = [each for each in page if isinstance(each, RepoFile)]
            yield from pages_of([_info(f"{root}/{each.path}", each) for each in files], first, end)

    def stat(self, uri: str) -> ObjectInfo | None:
        """Tell a file's hash and size (see `Store.stat`)."""
        try:
            return self._find(uri)
        except ObjectNotFoundError:
            return None

    def read(self, uri: str, *, max_bytes: int | None = None, if_match: str | None = None) -> Blob:
        """Read a whole file (see `Store.read`), by one request and what that redirects to."""
        repo, revision, path = split_hub(uri)
        url = _url(repo, path, revision)
        return _again(lambda: _read(uri, url, max_bytes, if_match))

    def open(self, uri: str, *, if_match: str | None = None) -> BinaryIO:
        """Open a file for reading parts of it (see `Store.open`)."""
        return self._reader(uri, if_match, READ_BUFFER_BYTES)[0]

    def stream(self, uri: str, *, if_match: str | None = None) -> tuple[BinaryIO, str]:
        """Open a file for reading it from front to back (see `Store.stream`), in large ranges."""
        return self._reader(uri, if_match, STREAM_BYTES)

    def _reader(self, uri: str, if_match: str | None, buffer_bytes: int) -> tuple[BinaryIO, str]:
        info = self._find(uri)
        _require(info, if_match)
        repo, _, path = split_hub(uri)
        url = _url(repo, path, info.commit)
        return io.BufferedReader(RangeReader(info.size_bytes, partial(_range, uri, url)), buffer_bytes), info.etag

    def _find(self, uri: str) -> ObjectInfo:
        """What the Hub says of a file, with the commit that it says it of.

        Raises:
            ObjectNotFoundError: it is not there.
        """
        repo, revision, path = split_hub(uri)
        if not path or path.endswith("/"):
            raise ObjectNotFoundError(f"{uri} is no file")
        with _errors(uri):
            found = get_hf_file_metadata(_url(repo, path, revision), timeout=_TIMEOUT_SECONDS, retry_on_errors=True)
        if found.etag is None or found.size is None or found.commit_hash is None:
            raise StorageError(f"{uri}: the hub says neither hash nor size nor commit of it")
        return ObjectInfo(uri, found.etag, found.size, commit=found.commit_hash)


def _tell(walk: Walk | None, commit: str | None) -> None:
    if walk is not None and commit is not None:
        walk.is_of(commit)


def _url(repo: str, path: str, revision: str | None) -> str:
    url: str = hf_hub_url(repo, path, repo_type="dataset", revision=revision)
    return url


class _BrokenError(StorageError):
    """A body broke off: the same request may work in a moment."""


def _again(ask: Callable[[], Given]) -> Given:
    attempts = Attempts(BODY_ATTEMPTS)
    while True:
        try:
            return ask()
        except _BrokenError:
            if not attempts.pause():
                raise


def _read(uri: str, url: str, max_bytes: int | None, if_match: str | None) -> Blob:
    with _answer(uri, url, {}) as answer:
        headers = _of_the_hub([*(each.headers for each in answer.history), answer.headers])
        info = ObjectInfo(uri, _etag(headers), int(headers.get("x-linked-size") or headers.get("content-length") or 0))
        _require(info, if_match)
        if max_bytes is not None and info.size_bytes > max_bytes:
            raise ObjectTooLargeError(f"{uri} has {info.size_bytes} bytes, more than the limit of {max_bytes}")
        return Blob(_body(uri, answer, info.size_bytes), info.etag)


def _range(uri: str, url: str, start: int, end: int) -> bytes:
    """Bytes of a file of one commit, which never changes."""

    def ask() -> bytes:
        with _answer(uri, url, {"Range": f"bytes={start}-{end - 1}"}) as answer:
            if answer.status_code != 206:
                raise StorageError(f"{uri}: the hub gave no range of it (HTTP {answer.status_code})")
            return _body(uri, answer, end - start)

    return _again(ask)


@contextmanager
def _answer(uri: str, url: str, headers: dict[str, str]) -> Iterator[Response]:
    """The answer to a GET, its body not read yet."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
    with (
        _errors(uri),
        http_stream_backoff("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as answer,
    ):
        hf_raise_for_status(answer)
        yield answer


def _body(uri: str, answer: Response, size_bytes: int) -> bytes:
    try:
        data = b"".join(answer.iter_bytes())
    except TransportError as error:  # which huggingface_hub takes for one of its request, and asks again in vain
        raise _BrokenError(f"{uri}: {_line(error)}") from error
    if len(data) != size_bytes:
        raise _BrokenError(f"{uri}: the hub gave {len(data)} bytes of {size_bytes}")
    return data


def _info(uri: str, file: RepoFile) -> ObjectInfo:
    return ObjectInfo(uri, file.lfs.sha256 if file.lfs else file.blob_id, file.size)


def _of_the_hub(answers: list[Mapping[str, str]]) -> Mapping[str, str]:
    """The headers that say what the file is: of the answer that redirects to where its bytes are, or of the last one."""
    return next((each for each in answers if "x-linked-etag" in each), answers[-1])


def _etag(headers: Mapping[str, str]) -> str:
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    return etag.removeprefix("W/").strip('"')


def _require(info: ObjectInfo, if_match: str | None) -> None:
    if if_match not in (None, info.etag):
        raise ObjectChangedError(f"{info.uri} has the hash {info.etag}, expected {if_match}: it changed since it was listed")


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Raise what huggingface_hub raises as one of tlray's errors; it has repeated what may pass."""
    repo, revision, _ = split_hub(uri)
    try:
        yield
    except RemoteEntryNotFoundError as error:
        raise ObjectNotFoundError(f"{uri} does not exist") from error
    except GatedRepoError as error:
        raise AccessError(f"{uri}: the dataset {repo} is given on request; ask on its page, then {_LOG_IN}") from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"{uri}: there is no dataset {repo}, or it is private; check its name, or {_LOG_IN}") from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{uri}: the dataset {repo} has no revision {revision}") from error
    except OfflineModeIsEnabled as error:
        raise StoreAwayError(f"{uri}: HF_HUB_OFFLINE forbids to ask the hub; unset it, or give a local copy") from error
    except HFValidationError as error:
        raise SourceError(f"{uri}: {_line(error)}") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        kinds: dict[int, type[StorageError | AccessError]] = {401: CredentialsError, 403: AccessError}
        raise kinds.get(code, StorageError)(f"{uri}: {_line(error)}" + (f"; {_LOG_IN}" if code in kinds else "")) from error
    except (ConnectError, ConnectTimeout) as error:
        raise StoreAwayError(f"{uri}: the hub is away: {_line(error)}; look after the network, then {GO_ON}") from error
    except (HTTPError, FileMetadataError) as error:
        raise StorageError(f"{uri}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(" .")

"""A small Hugging Face hub on loopback, which speaks as much of the Hub's API as reading a dataset takes.

As the real one it has commits and branches, gives listings in pages, keeps large files elsewhere (at `/cdn/`, where no token
may come), and says in headers what is wrong.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secret"
LARGE_BYTES = 1000
PAGE = 3


@dataclass
class Dataset:
    """Files by path in each commit, and the commit of each branch."""

    access: str = "public"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(f"{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha


def hashes(data: bytes) -> tuple[str, str]:
    """As git names a blob, and as LFS does."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


class HubServer:
    """A context manager.

    Attributes:
        datasets: by their id.
        asked: method and path of each request.
        stumbles: answers to the next requests in place of the right ones: a status, or "cut" for half of a body.
    """

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.asked: list[str] = []
        self.stumbles: list[int | str] = []

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub, url = self.server_hub, urlsplit(self.path)
        hub.asked.append(f"{self.command} {unquote(url.path)}")
        stumble = hub.stumbles.pop(0) if hub.stumbles else None
        if isinstance(stumble, int):
            return self._send(stumble)
        if match := re.fullmatch(r"/cdn/(\w+)", url.path):
            if "Authorization" in self.headers:
                return self._send(400)
            found = (data for each in hub.datasets.values() for files in each.commits.values() for data in files.values())
            return self._body(next(data for data in found if hashes(data)[1] == match[1]), {"ETag": '"of-the-cdn"'}, stumble)
        path = url.path + "/revision/main" if re.fullmatch(r"/api/datasets/[^/]+/[^/]+", url.path) else url.path
        match = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        dataset = hub.datasets.get(match[1]) if match else None
        if match is None or dataset is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if dataset.access != "public" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            private = {"X-Error-Code": "RepoNotFound"} if dataset.access == "private" else {"X-Error-Code": "GatedRepo"}
            return self._send(401 if dataset.access == "private" else 403, private)
        revision = unquote(match[3])
        sha = dataset.branches.get(revision, revision)
        if sha not in dataset.commits:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if match[2] == "revision":
            return self._json({"id": match[1], "sha": sha})
        path = unquote(match[4] or "")
        return self._tree(dataset.commits[sha], path) if match[2] == "tree" else self._file(dataset, sha, path, stumble)

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        below = f"{folder}/" if folder else ""
        entries = []
        for path in sorted(path for path in files if path.startswith(below)):
            git, lfs = hashes(files[path])
            entry = {"type": "file", "path": path, "size": len(files[path]), "oid": git}
            if len(files[path]) > LARGE_BYTES:
                entry["lfs"] = {"oid": lfs, "size": len(files[path]), "pointerSize": 130}
            entries.append(entry)
        entries += [
            {"type": "directory", "path": parent, "oid": "0" * 40}
            for parent in sorted({path.rpartition("/")[0] for path in files if path.startswith(below) and "/" in path})
        ]
        if not entries:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
            return
        at = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        more = {}
        if at + PAGE < len(entries):
            address = f"{self.server_hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={at + PAGE}"
            more = {"Link": f'<{address}>; rel="next"'}
        self._json(entries[at : at + PAGE], more)

    def _file(self, dataset: Dataset, sha: str, path: str, stumble: str | None) -> None:
        data = dataset.commits[sha].get(path)
        if data is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
            return
        git, lfs = hashes(data)
        headers = {"X-Repo-Commit": sha}
        if len(data) > LARGE_BYTES:
            linked = {"X-Linked-Etag": f'"{lfs}"', "X-Linked-Size": str(len(data)), "ETag": '"of-the-pointer"'}
            # Under another name, as the real one is, so that clients do not send the token there.
            place = self.server_hub.endpoint.replace("127.0.0.1", "localhost")
            self._send(302, headers | linked | {"Location": f"{place}/cdn/{lfs}"})
        else:
            self._body(data, headers | {"ETag": f'"{git}"'}, stumble)

    def _body(self, data: bytes, headers: dict[str, str], stumble: str | None) -> None:
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            whole, status = len(data), 206
            data = data[int(match[1]) : int(match[2]) + 1]
            headers = headers | {"Content-Range": f"bytes {match[1]}-{match[2]}/{whole}"}
        if stumble == "cut" and self.command == "GET":
            self._send(status, headers, data[: len(data) // 2], announced=len(data))
            self.close_connection = True
        else:
            self._send(status, headers, data)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, {"Content-Type": "application/json"} | (headers or {}), json.dumps(value).encode())

    def _send(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", *, announced: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

"""The hub as users meet it: a real server on loopback that answers as it does, and huggingface_hub's own client."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.models.libraries.huggingface.test_networks import embed, near, plain, resolve
from tests.models.libraries.huggingface.tiny import save
from tlray.errors import BackboneError, WeightsError
from tlray.models.backbones.images import load_backbone

COMMIT, OLDER = "a" * 40, "b" * 40
NAME = "org/tiny-dinov2"


class Hub(ThreadingHTTPServer):
    """Two commits of one repository, of which `main` is the newer."""

    def __init__(self, commits: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = commits
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = COMMIT if revision == "main" else revision
        folder = self.server.commits.get(commit)
        if repository != NAME or folder is None or not (folder / name).is_file():
            code = "RepoNotFound" if repository != NAME else "RevisionNotFound" if folder is None else "EntryNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (folder / name).read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub({COMMIT: save("dinov2", tmp_path / "new"), OLDER: save("dinov2", tmp_path / "old", seed=1)})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_repository_is_downloaded_once_and_its_commit_kept(hub: Hub) -> None:
    backbone = resolve(NAME)
    assert (backbone.recipe.backbone, backbone.recipe.weights) == (f"hf:{NAME}", f"hf:{NAME}@{COMMIT}")
    near(embed(backbone)["embedding"], plain(hub.commits[COMMIT], backbone)["pooler_output"])
    assert sum(path.startswith("GET") and "safetensors" in path for path in hub.asked) == 1
    hub.asked.clear()
    hub.commits[COMMIT], hub.commits[OLDER] = hub.commits[OLDER], hub.commits[COMMIT]  # whatever becomes of the repository,
    again = load_backbone(backbone.recipe, Path)  # a worker has the recipe's commit
    assert again.recipe == backbone.recipe and hub.asked == []


def test_a_cached_commit_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(NAME).recipe
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_backbone(recipe, Path).recipe == recipe
    assert resolve(NAME).recipe == recipe  # by name, too: the newest that this machine has
    assert hub.asked == []
    with pytest.raises(BackboneError, match=r"hf:org/other could not be had: config.json is not in this machine's cache"):
        resolve("org/other")


def test_revisions(hub: Hub) -> None:
    older = resolve(f"{NAME}@{OLDER}").recipe
    assert (older.backbone, older.weights) == (f"hf:{NAME}", f"hf:{NAME}@{OLDER}")
    assert older.weights_sha256 != resolve(NAME).recipe.weights_sha256
    moved = older.model_copy(update={"weights": f"hf:{NAME}@{COMMIT}"})
    with pytest.raises(WeightsError, match="has the hash"):
        load_backbone(moved, Path)
    with pytest.raises(BackboneError, match="hf:org/tiny-dinov2@nothing could not be had from the hub"):
        resolve(f"{NAME}@nothing")


def test_a_repository_that_is_not_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(
        BackboneError, match=r"hf:models/mine could not be had .*a folder of this machine is written hf:./models/mine"
    ):
        resolve("models/mine")
    (hub.commits[COMMIT] / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights file"):
        resolve(NAME)

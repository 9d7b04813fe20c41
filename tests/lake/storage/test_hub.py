"""Datasets of the Hugging Face Hub as sources, read from a small hub on loopback; huggingface_hub itself is the real one."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import polars as pl
import pytest
from huggingface_hub.utils import close_session

from tests.lake.storage.hub_server import LARGE_BYTES, TOKEN, Dataset, HubServer, hashes
from tests.photos import RECIPE, error_of, photo, result_of, tlray
from tlray.errors import (
    AccessError,
    ObjectChangedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SourceError,
    StorageError,
    StoreAwayError,
    StoreUnfitError,
)
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import split_hub, to_uri

FILES = {
    "README.md": b"words",
    "train/a b/ü#1.jpg": b"small",
    "train/large.bin": bytes(range(256)) * 20,
    "train/empty": b"",
    "test/x.jpg": b"x",
    "testing/y.jpg": b"y",
}
PLACE = "hf://datasets/me/photos"
STORE = open_store(PLACE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one dataset, asked in place of the real one by who is not logged in."""
    with HubServer() as server:
        ask_at(server.endpoint, monkeypatch)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere/token")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        close_session()
        server.datasets["me/photos"] = Dataset()
        server.datasets["me/photos"].commit(FILES)
        yield server
        close_session()


def ask_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read when the package is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def listed(uri: str, **limits: str) -> dict[str, tuple[str, int]]:
    rows = [row for page in STORE.list(uri, **limits) for row in page.to_pylist()]
    return {row["uri"]: (row["etag"], row["size_bytes"]) for row in rows}


def etag(data: bytes) -> str:
    return hashes(data)[len(data) > LARGE_BYTES]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://datasets/me/photos", ("me/photos", None, "")),
        ("hf://datasets/me/photos/", ("me/photos", None, "")),
        ("hf://datasets/me/photos@v1.0/a/b.jpg", ("me/photos", "v1.0", "a/b.jpg")),
        ("hf://datasets/me/photos@refs/convert/parquet/a@b", ("me/photos", "refs/convert/parquet", "a@b")),
        ("HF://datasets/me/photos@feature%2Fx/a", ("me/photos", "feature/x", "a")),
    ],
)
def test_places(uri: str, expected: tuple[str, str | None, str]) -> None:
    assert split_hub(to_uri(uri)) == expected


@pytest.mark.parametrize(
    "uri", ["hf://me/photos/a.jpg", "hf://datasets/photos", "hf://spaces/me/x/a", "hf://datasets/me/", "hf://"]
)
def test_no_place_in_a_dataset(uri: str) -> None:
    with pytest.raises(SourceError, match="expected hf://datasets/owner/name/path"):
        to_uri(uri)


def test_listings_of_several_pages(hub: HubServer) -> None:
    everything = {f"{PLACE}/{path}": (etag(data), len(data)) for path, data in FILES.items()}
    assert listed(PLACE) == listed(f"{PLACE}/") == everything
    assert sum("/tree/" in each for each in hub.asked) > 4
    assert listed(f"{PLACE}/test") == listed(f"{PLACE}/test/") == {f"{PLACE}/test/x.jpg": everything[f"{PLACE}/test/x.jpg"]}
    large = f"{PLACE}/train/large.bin"
    assert listed(large) == {large: everything[large]} and listed(f"{PLACE}/none/") == {} == listed(f"{PLACE}/none")
    assert set(listed(PLACE, first=f"{PLACE}/test/x.jpg", end=large)) == {
        f"{PLACE}/{path}" for path in ("test/x.jpg", "testing/y.jpg", "train/a b/ü#1.jpg", "train/empty")
    }


def test_bytes_and_their_hashes(hub: HubServer) -> None:
    for path, data in FILES.items():
        uri = f"{PLACE}/{path}"
        info, blob = STORE.stat(uri), STORE.read(uri)
        assert info is not None and (info.etag, info.size_bytes) == (etag(data), len(data)) == (blob.etag, len(blob.data))
        assert blob.data == data and STORE.read(uri, if_match=etag(data), max_bytes=len(data)).data == data
        with STORE.open(uri, if_match=etag(data)) as file:
            file.seek(-3, io.SEEK_END) if len(data) > 3 else None
            assert file.read() == data[-3:] if len(data) > 3 else True
        with pytest.raises(ObjectChangedError):
            STORE.read(uri, if_match="other")
        if data:
            asked = len(hub.asked)
            with pytest.raises(ObjectTooLargeError):
                STORE.read(uri, max_bytes=len(data) - 1)
            assert len(hub.asked) - asked <= 2
    assert STORE.stat(f"{PLACE}/none.jpg") is None is STORE.stat(PLACE) is STORE.stat(f"{PLACE}/train/")
    asked = len(hub.asked)
    with pytest.raises(ObjectNotFoundError):
        STORE.read(f"{PLACE}/none.jpg")
    assert len(hub.asked) == asked + 1
    for write in (lambda: STORE.write(f"{PLACE}/a", b""), lambda: STORE.delete([f"{PLACE}/a"])):
        with pytest.raises(StoreUnfitError, match="only read"):
            write()


def test_revisions(hub: HubServer) -> None:
    """A file that is open stays the one that was opened; what is read whole is what was listed, or refused."""
    dataset, uri = hub.datasets["me/photos"], f"{PLACE}/train/large.bin"
    (first,) = dataset.commits
    old = STORE.stat(uri)
    assert old is not None
    file, said = STORE.stream(uri)
    changed = bytes(reversed(FILES["train/large.bin"]))
    dataset.commit({**FILES, "train/large.bin": changed})
    dataset.commit({"only.jpg": b"1"}, branch="refs/pr/7")
    assert (file.read(), said) == (FILES["train/large.bin"], old.etag)
    assert STORE.read(uri).data == changed
    with pytest.raises(ObjectChangedError, match="changed since it was listed"):
        STORE.read(uri, if_match=old.etag)
    pinned = uri.replace("photos/", f"photos@{first}/")
    assert STORE.read(pinned, if_match=old.etag).data == FILES["train/large.bin"]
    assert set(listed(f"{PLACE}@refs/pr/7")) == {f"{PLACE}@refs/pr/7/only.jpg"}
    before, after = listed(f"{PLACE}@{first}/"), listed(PLACE)
    assert [one for one, other in zip(before.values(), after.values(), strict=True) if one != other] == [(old.etag, 5120)]
    with pytest.raises(SourceError, match="no revision v2"):
        listed(f"{PLACE}@v2")


def test_private_and_gated_datasets(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, uri = hub.datasets["me/photos"], f"{PLACE}/train/large.bin"
    kinds = (("private", SourceError, "private; check its name, or log in"), ("gated", AccessError, "on request"))
    for access, error, said in kinds:
        dataset.access = access
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for ask in (lambda: listed(PLACE), lambda: STORE.read(uri), lambda: STORE.stat(uri)):
            with pytest.raises(error, match=said) as caught:
                ask()
            assert TOKEN not in str(caught.value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert STORE.read(uri).data == FILES["train/large.bin"] and len(listed(PLACE)) == len(FILES)
    with pytest.raises(SourceError, match="no dataset me/nothing"):
        listed("hf://datasets/me/nothing")


def test_what_passes_is_asked_again(hub: HubServer) -> None:
    small, large = f"{PLACE}/test/x.jpg", f"{PLACE}/train/large.bin"
    for uri in (small, large):
        for stumbles in ([503], ["cut"], [503, 429, "cut"]):
            hub.stumbles = list(stumbles)
            assert STORE.read(uri).data == FILES[uri.removeprefix(f"{PLACE}/")]
            assert hub.stumbles == []
    hub.stumbles = [500] * 50
    with pytest.raises(StorageError, match="500"):
        STORE.read(small)
    hub.stumbles = []


def test_offline_and_away(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_at("http://127.0.0.1:9", monkeypatch)
    for ask in (lambda: listed(PLACE), lambda: STORE.read(f"{PLACE}/a"), lambda: STORE.stat(f"{PLACE}/a")):
        with pytest.raises(StoreAwayError, match="hub is away"):
            ask()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(StoreAwayError, match="HF_HUB_OFFLINE forbids"):
        listed(PLACE)


def test_a_run_over_a_dataset(hub: HubServer, tmp_path: Path) -> None:
    """Images and tar files: the vectors of local ones; the next revision changes what changed, and a table is refused."""
    images = {f"data/{label}/{number}.jpg": photo(number, (400, 300)) for number in range(4) for label in ("cat", "dog")}
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for path, data in images.items():
            (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / path).write_bytes(data)
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    dataset = hub.datasets["me/photos"]
    first = dataset.commit({**images, "shards/x.tar": shard.getvalue(), "README.md": b"# Photos"})
    vectors, commits = {}, {}
    places = {"local": str(tmp_path / "photos/data"), "hf": f"{PLACE}/data", "tar": f"{PLACE}/shards/x.tar"}
    for name, place in places.items():
        given = ["extract", "--source.uri", place, "--table", tmp_path / name, *RECIPE, "--local"]
        outcome = tlray(*given)
        commits[name] = result_of(outcome).get("source_commit")
        assert result_of(outcome)["ok"] == 8 and (f"listed as of the commit {first}" in outcome.stderr) is (name != "local")
        rows = pl.read_delta(str(tmp_path / name))
        vectors[name] = dict(zip((uri[-9:] for uri in rows["uri"]), rows["embedding"].to_list(), strict=True))
    assert vectors["hf"] == vectors["tar"] == vectors["local"]
    assert commits == {"local": None, "hf": first, "tar": first}
    given = ["extract", "--source.uri", places["hf"], "--table", tmp_path / "hf", *RECIPE, "--local"]
    assert result_of(tlray(*given))["unchanged"] == 8
    second = dataset.commit({**images, "data/cat/0.jpg": photo(9), "README.md": b"# Other"})
    assert result_of(tlray(*given, "--dry-run"))["source_commit"] == second
    again = result_of(tlray(*given))
    assert (again["changed"], again["new"], again["deleted"], again["unchanged"]) == (1, 0, 0, 7)
    shown = result_of(tlray("show", tmp_path / "hf"))["last_run"]
    assert again["source_commit"] == shown["source_commit"] == second != first
    said = error_of(tlray("extract", "--source.uri", places["local"], "--table", f"{PLACE}/table", *RECIPE, "--local"))
    assert "hf:// holds sources, and is only read" in said

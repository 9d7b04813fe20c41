"""Items to pixels: every listed image has its row, whatever its object does."""

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.factories import make_recipe
from tests.photos import photo
from tlray.config import SourceConfig
from tlray.errors import AccessError, ObjectNotFoundError, ObjectTooLargeError, SourceError, StorageError, TlrayError
from tlray.lake.image.decode import decode_image
from tlray.lake.source import fetch
from tlray.lake.source.read_images import read_images
from tlray.lake.source.read_spec import ReadSpec
from tlray.lake.source.source import PAGE_SCHEMA
from tlray.lake.storage.store import Blob


def spec_for(**source: object) -> ReadSpec:
    config = SourceConfig(uri="s3://b/", **source)
    return ReadSpec(kind="images", source=config, preprocessing=make_recipe().preprocessing, trust_listing=False)


def items_of(uris: list[str], size_bytes: int | None = 10) -> pa.Table:
    rows = [{"uri": uri, "etag": "listed", "size_bytes": size_bytes, "label": "x"} for uri in uris]
    return pa.Table.from_pylist(rows, PAGE_SCHEMA)


class Store:
    """Objects by name; an exception in the place of bytes is raised."""

    def __init__(self, objects: dict[str, bytes | TlrayError]) -> None:
        self.objects = objects

    def read(self, uri: str, *, max_bytes: int | None = None) -> Blob:
        found = self.objects[uri]
        if isinstance(found, TlrayError):
            raise found
        return Blob(found, "read")


def test_what_an_object_does_is_its_rows_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    objects: dict[str, bytes | TlrayError] = {
        "s3://b/good": photo(1),
        "s3://b/gone": ObjectNotFoundError("gone"),
        "s3://c/bucket": SourceError("no such bucket"),
        "s3://b/large": ObjectTooLargeError("large"),
        "s3://b/forbidden": AccessError("403"),
        "s3://b/down": StorageError("503"),
        "s3://b/text": b"text",
        "s3://b/last": photo(2),
    }
    monkeypatch.setattr(fetch, "open_store", lambda uri: Store(objects))
    (batch,) = read_images(items_of(list(objects)), spec_for())
    assert batch.rows["uri"].to_pylist() == list(objects)
    expected = [None, "not_found", "not_found", "too_large", "fetch_failed", "fetch_failed", "not_an_image", None]
    assert batch.rows["error"].to_pylist() == expected
    assert batch.rows["etag"].to_pylist() == ["read", *["listed"] * 5, "read", "read"]
    assert batch.inputs.shape == (2, 8, 8, 3) and len(batch.notes) == 3
    assert batch.inputs.flags.c_contiguous
    preprocessing = spec_for().preprocessing
    expected = [decode_image(photo(seed), preprocessing, max_pixels=10**6).pixels_HWC for seed in (1, 2)]
    np.testing.assert_array_equal(batch.inputs, expected)
    assert batch.is_last


def test_a_listed_size_over_the_limit_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "open_store", lambda uri: Store({}))
    (batch,) = read_images(items_of(["s3://b/x"], size_bytes=101), spec_for(max_image_bytes=100))
    assert batch.rows["error"].to_pylist() == ["too_large"]


def test_images_keep_their_order_and_come_in_bounded_batches(tmp_path: Path) -> None:
    uris = []
    for number in range(700):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number % 7, (9, 9)))
        uris.append(f"file://{tmp_path}/{number}.jpg")
    batches = list(read_images(items_of(uris), spec_for()))
    assert [len(batch.rows) for batch in batches] == [512, 188]
    assert [batch.is_last for batch in batches] == [False, True]
    assert [uri for batch in batches for uri in batch.rows["uri"].to_pylist()] == uris
    images = np.concatenate([batch.inputs for batch in batches])
    assert all(np.array_equal(images[number], images[number % 7]) for number in range(700))
    assert len({images[number].tobytes() for number in range(7)}) == 7


def test_slow_local_files_are_fetched_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"file:///mount/{number}" for number in range(60)]
    readers = []

    class Mount(Store):
        def read(self, uri: str, *, max_bytes: int | None = None) -> Blob:
            readers.append(threading.current_thread().name)
            time.sleep(0.002)
            return super().read(uri, max_bytes=max_bytes)

    monkeypatch.setattr(fetch, "open_store", lambda uri: Mount(dict.fromkeys(names, photo(1))))
    (batch,) = read_images(items_of(names), spec_for())
    assert batch.rows["uri"].to_pylist() == names
    assert readers[0] == threading.current_thread().name and all(name.startswith("fetch") for name in readers[-40:])


def test_an_empty_list_is_one_empty_batch() -> None:
    (batch,) = read_images(items_of([]), spec_for())
    assert batch.is_last and not len(batch.rows) and batch.inputs.shape == (0, 8, 8, 3)

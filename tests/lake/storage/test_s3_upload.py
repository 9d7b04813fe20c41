"""Large objects in parts, on a real server; boto3 is the oracle."""

import os

import boto3
import pytest

from tlray.errors import StorageError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.s3 import upload as s3_upload

PART_BYTES = 5 * 2**20
"""The least that S3 takes."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "LARGE_BYTES", 2 * PART_BYTES)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)


def uploads_under_way(bucket: str) -> list:
    return boto3.client("s3").list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads", [])


def test_a_large_object_is_written_in_parts_whole_or_not_at_all(small_parts: None, s3_bucket: str) -> None:
    store, uri, data = open_store(s3_bucket), f"{s3_bucket}/large", os.urandom(2 * PART_BYTES + 17)
    assert store.write(uri, memoryview(data))
    blob = store.read(uri)
    assert blob.data == data and blob.etag.endswith("-3")
    other = data[::-1]
    assert not store.write(uri, other, if_absent=True)
    assert not store.write(uri, other, if_match="0" * 32)
    assert not store.write(f"{uri}-gone", other, if_match=blob.etag)
    assert store.read(uri).data == data
    assert store.write(uri, other, if_match=blob.etag)
    assert store.read(uri).data == other
    assert uploads_under_way(s3_bucket) == []


def test_an_upload_that_fails_leaves_nothing(small_parts: None, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(*_: object) -> None:
        raise StorageError("away")

    monkeypatch.setattr(s3_upload, "_complete", removed)
    with pytest.raises(StorageError, match="away"):
        open_store(s3_bucket).write(f"{s3_bucket}/large", bytes(2 * PART_BYTES))
    assert uploads_under_way(s3_bucket) == []
    assert open_store(s3_bucket).stat(f"{s3_bucket}/large") is None

"""JPEGs without an end marker, or with one too early: what counts is whether all pixels are there."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.lake.image.making import code_of, encoded, rgb
from tests.lake.image.test_broken_images import photo

KINDS = {
    "baseline": {},
    "grey": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
    "full chroma": {"subsampling": 0},
}
TRAILERS = {
    "Samsung's": b"\x00\x00SEFT" + b"ab\x00\x01" * 500,
    "film": b"\x00\x00\x00\x18ftypmp42" + np.random.default_rng(0).bytes(30_000).replace(b"\xff", b"\xfe"),
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "text": b"<html>not found</html>\n" * 100,
    "nothing": b"",
    "half of the marker": b"\xff",
}


def jpeg(kind: str) -> bytes:
    return encoded(photo().convert("L") if kind == "grey" else photo(), "JPEG", quality=90, **KINDS[kind])


@pytest.mark.parametrize("trailer", sorted(TRAILERS.keys() - {"text"}))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_pixels_without_the_end_marker(kind: str, trailer: str) -> None:
    whole = jpeg(kind)
    assert whole.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(rgb(whole[:-2] + TRAILERS[trailer]), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_missing_pixels_are_found_whatever_follows(kind: str) -> None:
    whole = jpeg(kind)
    for kept in (0.3, 0.6, 0.9):
        cut = whole[: int(len(whole) * kept)]
        for name in ("zeros", "ones", "text", "nothing", "half of the marker"):
            assert code_of(cut + TRAILERS[name]) == "truncated", (kept, name)
        if "progressive" not in kind and kind != "restarts":
            assert code_of(cut + b"\xff\xd9") == "truncated", kept  # it is closed, but not complete


def test_all_of_a_single_scan_counts_but_for_some_bytes_that_the_decoder_reads_ahead() -> None:
    whole = jpeg("baseline")
    for lost in range(17, len(whole) - 700, 97):
        assert code_of(whole[: -2 - lost] + b"\xff\xd9") == "truncated"


def test_a_progressive_picture_without_its_last_scan_is_not_complete() -> None:
    whole = jpeg("progressive")
    scans = [place for place in range(len(whole)) if whole.startswith(b"\xff\xda", place)]
    tables = whole.rindex(b"\xff\xc4", 0, scans[-1])
    assert code_of(whole[: min(tables, scans[-1])]) == "truncated"
    assert code_of(whole[: min(tables, scans[-1])] + bytes(3000)) == "truncated"


def test_the_first_picture_of_several_counts() -> None:
    first, second = encoded(photo(), "JPEG"), encoded(photo().rotate(90), "JPEG")
    for data in (first + second, first + second[:300], first + second + bytes(99)):
        np.testing.assert_array_equal(rgb(data), rgb(first))

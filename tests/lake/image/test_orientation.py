"""The orientation beside the pixels: found where Pillow finds it, and where it gives up."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.lake.image.making import encoded, exif, gradient, into_jpeg, into_png, png_chunk, rgb, segment
from tlray.lake.image.containers.orientation import orientation_of

PICTURE = Image.fromarray(gradient())
TURNED = np.rot90(gradient(), -1)
"""By orientation 6."""

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def pillows(data: bytes) -> int:
    read = Image.Exif()
    read.load(data)
    return int(read.get(0x0112, 1))


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sound_exif_is_read_as_pillow_reads_it(order: str, kind: int, prefix: bytes) -> None:
    for orientation in (1, 6, 8):
        data = prefix + exif(orientation, order, kind)
        assert orientation_of(data, None) == orientation
        if kind != 1:
            assert pillows(data) == orientation


@given(st.dictionaries(st.sampled_from([0x010E, 0x010F, 0x0112, 0x0132, 0x8298]), st.integers(0, 9)))
def test_exif_that_pillow_writes(tags: dict[int, int]) -> None:
    written = Image.Exif()
    for tag, value in tags.items():
        written[tag] = value if tag == 0x0112 else "x" * value
    assert orientation_of(written.tobytes(), None) == pillows(written.tobytes())


@given(st.binary(max_size=60), st.integers(0, 40))
def test_broken_exif_is_never_an_error(junk: bytes, kept: int) -> None:
    assert isinstance(orientation_of(junk, junk), int)
    assert isinstance(orientation_of(exif(6)[:kept] + junk, None), int)


def test_what_comes_behind_the_orientation_may_be_missing_or_broken() -> None:
    data = exif(6)
    assert orientation_of(data[:34], None) == 6  # cut behind its entry
    many = data[:8] + b"\xff\xff" + data[10:]  # 65535 entries
    assert orientation_of(many, None) == 6
    bad_first = data[:10] + struct.pack("<HHLL", 0x010F, 99, 2**32 - 1, 2**32 - 1) + data[22:]
    assert orientation_of(bad_first, None) == 6


def test_xmp_counts_where_exif_says_nothing() -> None:
    assert orientation_of(None, XMP) == orientation_of(b"", XMP) == orientation_of(b"\xff\xff", XMP) == 6
    assert orientation_of(exif(3), XMP) == 3
    assert orientation_of(None, b"<tiff:Orientation>8</tiff:Orientation>") == 8
    assert orientation_of(None, b"tiff:Orientation = '5'") == 5
    assert orientation_of(None, b"<x/>") == 1


def test_every_place_where_a_png_may_have_it() -> None:
    png = encoded(PICTURE, "PNG")
    # As ImageMagick writes it: three lines, then hexadecimal digits in lines.
    raw = b"\nexif\n%8d\n" % len(exif(6)) + b"\n".join([exif(6).hex()[:72].encode(), exif(6).hex()[72:].encode()])
    places = {
        "eXIf": png_chunk(b"eXIf", exif(6)),
        "eXIf with the header of JPEG's": png_chunk(b"eXIf", b"Exif\0\0" + exif(6)),
        "eXIf with a wrong checksum": png_chunk(b"eXIf", exif(6))[:-1] + b"?",
        "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        "compressed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        "XMP of over a megabyte": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + b" " * 3_000_000)),
        "XMP in zTXt": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP)),
        "raw profile": png_chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        "compressed raw profile": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
    }
    for name, chunk in places.items():
        for before in (True, False):
            np.testing.assert_array_equal(rgb(into_png(png, chunk, before_pixels=before)), TURNED, err_msg=name)


def test_every_place_where_a_jpeg_may_have_it() -> None:
    jpeg = encoded(PICTURE, "JPEG", quality=95)
    expected_HWC = np.rot90(rgb(jpeg), -1)
    app1 = segment(0xE1, b"Exif\0\0" + exif(6))
    for inserted in (
        app1,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xE1, b"Exif\0\0" + b"\xff" * 20) + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        app1 + segment(0xE1, b"Exif\0\0" + exif(3)),  # the first one counts
        segment(0xE2, b"ICC_PROFILE\0") + app1 + segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0"),
    ):
        np.testing.assert_array_equal(rgb(into_jpeg(jpeg, inserted)), expected_HWC)


@pytest.mark.parametrize("image_format", ["WEBP", "TIFF"])
def test_xmp_in_other_formats(image_format: str) -> None:
    options = {"xmp": XMP, "lossless": True} if image_format == "WEBP" else {"tiffinfo": {700: XMP}}
    np.testing.assert_array_equal(rgb(encoded(PICTURE, image_format, **options)), TURNED)

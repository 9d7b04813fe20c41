"""What no pixel depends on decides over no picture: each file here shows the same picture as without it."""

import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.lake.image.making import (
    box,
    boxes,
    code_of,
    encoded,
    exif,
    gradient,
    into_jpeg,
    into_png,
    png_chunk,
    rgb,
    segment,
    tiff,
)

PICTURE = Image.fromarray(gradient())
PNG, JPEG = encoded(PICTURE, "PNG"), encoded(PICTURE, "JPEG", quality=95)
LONG_TEXT = zlib.compress(b"x" * 2_000_000)

CHUNKS = {
    "long zTXt": png_chunk(b"zTXt", b"workflow\0\0" + LONG_TEXT),
    "long compressed iTXt": png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG_TEXT),
    "long ICC profile": png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(random.Random(1).randbytes(1_500_000))),
    "tEXt over Pillow's limit of all text": png_chunk(b"tEXt", b"prompt\0" + b"x" * 70_000_000),
    "tEXt with a wrong checksum": png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "private chunk with a wrong checksum": png_chunk(b"prVt", b"a")[:-1] + b"?",
    "iCCP of an unknown method": png_chunk(b"iCCP", b"ICC\0\5notzlib"),
    "iCCP without anything": png_chunk(b"iCCP", b""),
    "zTXt of an unknown method": png_chunk(b"zTXt", b"a\0\7x"),
    "zTXt that is not zlib": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0notzlib"),
    "eXIf that is no TIFF": png_chunk(b"eXIf", b"\xff" * 30),
    "empty eXIf": png_chunk(b"eXIf", b""),
    "raw EXIF that is not hexadecimal": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  12\nzz"),
    "palette of a picture in full colour": png_chunk(b"PLTE", b"1234")[:-1] + b"?",
    "fcTL out of order": png_chunk(b"fcTL", struct.pack(">5L2H2B", 7, 9, 9, 90, 90, 1, 1, 0, 0)),
    "two acTL": png_chunk(b"acTL", struct.pack(">2L", 2, 0)) * 2,
    "acTL of no frames": png_chunk(b"acTL", bytes(8)),
    **{
        f"{name.decode()} of {length} bytes": png_chunk(name, b"\x31" * length)
        for name in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL", b"bKGD", b"hIST", b"sBIT", b"tIME", b"sPLT", b"cICP", b"eXIf")
        for length in (0, 2)
    },
}


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("name", sorted(CHUNKS))
def test_ancillary_chunks_of_a_png(name: str, where: str) -> None:
    if where == "behind" and name.startswith("palette"):
        pytest.skip("out of place, which is another fault")
    np.testing.assert_array_equal(rgb(into_png(PNG, CHUNKS[name], before_pixels=where == "before")), gradient())


def test_a_png_may_be_damaged_behind_its_pixels() -> None:
    for rest in (b"", b"\0" * 50, b"\0\0\0\3ZZ", b"\xff\xff\xff\xfftEXt", b"\0\0\0\1\0\0\0\0a"):
        np.testing.assert_array_equal(rgb(PNG[:-12] + rest), gradient())


def test_what_the_pixels_of_a_png_depend_on_must_be_sound() -> None:
    palette = encoded(PICTURE.quantize(16), "PNG", transparency=3)
    for name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
        place = palette.index(name) + 5
        damaged = palette[:place] + bytes([palette[place] ^ 1]) + palette[place + 1 :]
        assert code_of(damaged) == "corrupt", name


SEGMENTS = {
    "EXIF of nothing": segment(0xE1, b"Exif\0\0"),
    "EXIF that is no TIFF": segment(0xE1, b"Exif\0\0" + b"\xff" * 40),
    "EXIF whose directory lies elsewhere": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "EXIF of 65535 entries": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short ICC profile": segment(0xE2, b"ICC_PROFILE\0"),
    "ICC profile without its other parts": segment(0xE2, b"ICC_PROFILE\0\5\7abc"),
    "short MPF": segment(0xE2, b"MPF\0"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "Photoshop that ends in a resource": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0"),
    "Photoshop of a short resolution": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01a"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "Adobe without its transform": segment(0xEE, b"Adobe\0\x64\0\0\0\0"),
    "XMP that is not XML": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "a comment": segment(0xFE, b"a comment"),
    "segments without a body": b"".join(bytes([0xFF, marker, 0, 2]) for marker in range(0xE1, 0xF0)),
    "a length that leaves itself out": b"\xff\xe5\0\0",
    "junk between segments": b"\0\0junk",
    "fill bytes": b"\xff\xff\xff",
}


@pytest.mark.parametrize("name", sorted(SEGMENTS))
def test_application_segments_of_a_jpeg(name: str) -> None:
    np.testing.assert_array_equal(rgb(into_jpeg(JPEG, SEGMENTS[name])), rgb(JPEG))


def test_adobes_segment_still_says_which_colours_these_are() -> None:
    plain = encoded(PICTURE, "JPEG", quality=95, keep_rgb=True)
    assert b"Adobe" in plain
    assert np.abs(rgb(plain).astype(int) - gradient()).max() < 12
    cmyk = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(rgb(into_jpeg(cmyk, SEGMENTS["a comment"])), rgb(cmyk))


@pytest.mark.filterwarnings("ignore")
def test_tags_of_a_tiff() -> None:
    plain = tiff((96, 64), [gradient()[:, :, 0].tobytes()])
    expected_HWC = rgb(plain)
    for tag in (270, 282, 305, 700, 33723, 34377, 34665, 34675, 34853, 37724, 50341, 532, 42113):
        for kind, count, place in ((2, 2**31, 8), (12, 2**28, 2**31), (99, 1, 0), (4, 1, 2**32 - 1), (7, 4, 0), (13, 1, 0)):
            np.testing.assert_array_equal(rgb(_with_tag(plain, tag, kind, count, place)), expected_HWC)


def _with_tag(data: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """A TIFF with one more entry, its directory behind all else."""
    (start,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    old = [data[start + 2 + 12 * index :][:12] for index in range(entries)]
    new = sorted([*old, struct.pack("<HHLL", tag, kind, count, value)], key=lambda entry: entry[:2][::-1])
    return data[:4] + struct.pack("<L", len(data)) + data[8:] + struct.pack("<H", len(new)) + b"".join(new) + bytes(4)


@pytest.mark.filterwarnings("ignore")
def test_orientation_that_lies_behind_the_end_of_a_tiff_is_none() -> None:
    plain = tiff((96, 64), [gradient()[:, :, 0].tobytes()])
    np.testing.assert_array_equal(rgb(_with_tag(plain, 274, 3, 2**30, 2**31)), rgb(plain))


def test_later_pages_of_a_tiff_may_be_broken() -> None:
    data = encoded(PICTURE, "TIFF", save_all=True, append_images=[PICTURE])
    (start,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    place = start + 2 + 12 * entries
    for later in (b"\xff\xff\xff\x7f", struct.pack("<L", start), struct.pack("<L", 9)):
        np.testing.assert_array_equal(rgb(data[:place] + later + data[place + 4 :]), gradient())


@pytest.mark.parametrize("animated", [False, True])
def test_chunks_of_a_webp(animated: bool) -> None:
    more = {"save_all": True, "append_images": [PICTURE.rotate(180)]} if animated else {}
    data = encoded(PICTURE, "WEBP", lossless=True, icc_profile=b"\0" * 50, exif=b"Exif\0\0" + exif(1), xmp=b"<x/>", **more)
    for kind in (b"ICCP", b"EXIF", b"XMP "):
        place = data.index(kind)
        for change in (kind + b"\xff\xff\xff\x7f", b"abcd" + data[place + 4 : place + 8]):
            changed = data[:place] + change + data[place + 8 :]
            if kind != b"ICCP" or not change.endswith(b"\x7f"):  # a lying length hides all that follows it
                np.testing.assert_array_equal(rgb(changed), gradient())
    np.testing.assert_array_equal(rgb(data[:4] + b"\xff\xff\xff\x7f" + data[8:]), gradient())


def test_metadata_of_an_avif() -> None:
    data = encoded(PICTURE, "AVIF", quality=95, exif=exif(1), xmp=b"<x/>")
    expected_HWC = rgb(encoded(PICTURE, "AVIF", quality=95))
    place = data.index(b"II*\0", data.index(b"mdat"))
    for broken in (data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :], data.replace(b"<x/>", b"\0\0\0\0")):
        np.testing.assert_array_equal(rgb(broken), expected_HWC)
    unknown = data + box(b"free", b"abc") + box(b"uuid", bytes(16))
    np.testing.assert_array_equal(rgb(unknown), expected_HWC)
    assert [kind for kind, _ in boxes(data)] == [b"ftyp", b"meta", b"mdat"]


def test_extensions_of_a_gif() -> None:
    data = encoded(PICTURE.quantize(64), "GIF")
    expected_HWC = rgb(data)
    place = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    extensions = {
        "short NETSCAPE": b"!\xff\x0bNETSCAPE2.0\x01\x01\0",
        "empty application": b"!\xff\0",
        "comment": b"!\xfe\x03abc\0",
        "short graphic control": b"!\xf9\x01\x01\0",
        "unknown": b"!\x77\x02ab\0",
        "plain text": b"!\x01\x0c" + bytes(12) + b"\x01a\0",
        "junk": b"\0\0\0",
    }
    for name, extension in extensions.items():
        np.testing.assert_array_equal(rgb(data[:place] + extension + data[place:]), expected_HWC, err_msg=name)


def test_comments_of_a_pnm() -> None:
    data = b"P5 #" + b"a" * 500_000 + b"\n96 #b\n64\n255\n" + gradient()[:, :, 0].tobytes()
    np.testing.assert_array_equal(rgb(data)[:, :, 0], gradient()[:, :, 0])


@pytest.mark.filterwarnings("ignore")
def test_a_bigtiff_is_read_like_a_tiff() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6
    big = encoded(PICTURE, "TIFF", tiffinfo=tags, big_tiff=True)
    assert big[2:4] == b"+\0"
    np.testing.assert_array_equal(rgb(big), np.rot90(gradient(), -1))

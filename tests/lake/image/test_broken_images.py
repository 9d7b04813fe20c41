"""Images that cannot be used: each gets an ImageError with a code of the set, never another exception and never a grey rest."""

import functools
import io
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from tests import corpora
from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.image import decode as images
from tlray.lake.image.decode import decode_image, to_rgb
from tlray.recipe import Preprocessing

PREPROCESSING = Preprocessing(resize=(64, 64), crop=(56, 56), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
MAX_PIXELS = 20_000_000
CODES_OF_BYTES = {"empty", "not_an_image", "unsupported", "bomb", "truncated", "corrupt"}


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@functools.cache
def photo() -> Image.Image:
    """Something with the statistics of a photo: smoothed noise."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise_HWC).resize((120, 90), Image.Resampling.BICUBIC)


@functools.cache
def valid() -> dict[str, bytes]:
    palette, thumbnail = photo().quantize(32), encoded(photo().resize((16, 12)), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(1).update({0x0103: 6, 0x0201: 0, 0x0202: len(thumbnail)})
    return {
        "jpeg": encoded(photo(), "JPEG"),
        "jpeg with thumbnail": encoded(photo(), "JPEG", exif=exif.tobytes() + thumbnail),
        "jpeg progressive": encoded(photo(), "JPEG", progressive=True),
        "jpeg restarts": encoded(photo(), "JPEG", restart_marker_rows=1),
        "jpeg cmyk": encoded(photo().convert("CMYK"), "JPEG"),
        "png": encoded(photo(), "PNG"),
        "png palette": encoded(palette, "PNG"),
        "webp": encoded(photo(), "WEBP"),
        "webp lossless": encoded(photo(), "WEBP", lossless=True),
        "avif": encoded(photo(), "AVIF"),
        "gif": encoded(palette, "GIF"),
        "bmp": encoded(photo(), "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "tiff": encoded(photo(), "TIFF"),
        "tiff lzw": encoded(photo(), "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(photo(), "TIFF", compression="jpeg"),
        "tiff g4": encoded(photo().convert("1"), "TIFF", compression="group4"),
        "ppm": encoded(photo(), "PPM"),
        "ppm plain": b"P2 2 2 9\n1 2\n3 4 ",
    }


def code_of(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    try:
        to_rgb(data, max_pixels=max_pixels)
    except ImageError as error:
        assert isinstance(error.code, ImageErrorCode)
        return error.code
    return "ok"


def png_chunk(name: bytes, body: bytes, checksum_change: int = 0) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body) ^ checksum_change)


def png(
    depth: int = 8, colour: int = 0, side: int = 2, header_change: int = 0, data_change: int = 0, with_data: bool = True
) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">2L5B", side, side, depth, colour, 0, 0, 0), header_change)
    body = png_chunk(b"IDAT", zlib.compress(b"\0ab" * 2), data_change) if with_data else b""
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\x00", "not_an_image"),
        (b"<html>404</html>", "not_an_image"),
        (b'{"error": "AccessDenied"}', "not_an_image"),
        (b"%PDF-1.7 ", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported"),
        (b"\xc5\xd0\xd3\xc6 ", "unsupported"),
        (b"#?RADIANCE\n", "unsupported"),
        (b"\x76\x2f\x31\x01 ", "unsupported"),
        (b'<?xml version="1.0"?>\n<!-- a --><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        (b"\xef\xbb\xbf<svg/>", "unsupported"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "unsupported"),
        (b"8BPS\x00\x01", "unsupported"),
        (b"\x00\x00\x01\x00\x01\x00", "unsupported"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "unsupported"),
        (b"\x00" * 30 + b"TRUEVISION-XFILE.\x00", "unsupported"),
        (b"BM", "truncated"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"II*\x00", "truncated"),
        (b"GIF89a", "truncated"),
        (b"RIFF\x00\x01\x00\x00WEBPVP8 ", "truncated"),
        (b"P5 0 0 255\n", "corrupt"),
        (b"P5 1000000 1000000 255\n", "bomb"),
        (b"P5 4000 4000 254\n", "unsupported"),
        (b"P3 4000 4000 255\n", "unsupported"),
    ],
)
def test_code_of_hand_made_bytes(data: bytes, code: str) -> None:
    assert code_of(data) == code


def test_png_faults_as_in_pngsuites_x_files() -> None:
    assert code_of(png()) == "ok"
    faults = {
        "signature's first byte": b"\x09" + png()[1:],
        "line ends turned into LF": png().replace(b"\r\n", b"\n", 1),
        "checksum of the header": png(header_change=1),
        "checksum of the data": png(data_change=1),
        "no data": png(with_data=False),
        "colour type 1": png(colour=1),
        "colour type 9": png(colour=9),
        "depth 0": png(depth=0),
        "depth 3": png(depth=3),
        "depth 99": png(depth=99),
        "no pixels": png(side=0),
        "fewer rows than declared": png(side=3),
    }
    codes = {name: code_of(data) for name, data in faults.items()}
    assert {name for name, code in codes.items() if code == "ok"} == set()
    assert codes["checksum of the data"] == "corrupt"
    assert codes["no pixels"] == "corrupt"


def test_pngsuites_x_files_fail() -> None:
    broken = [path for path in corpora.files("pngsuite") if path.name.startswith("x") and path.suffix == ".png"]
    if not broken:
        pytest.skip("this copy of PngSuite has no x*.png")
    for path in broken:
        assert code_of(path.read_bytes()) != "ok", path.name


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "avif", "gif", "bmp", "tiff", "ppm"])
def test_a_bomb_is_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert code_of(valid()[name], max_pixels=120 * 90 - 1) == "bomb"


def test_the_first_picture_of_a_camera_raw_file_is_refused() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    assert code_of(encoded(photo(), "TIFF", tiffinfo=tags)) == "unsupported"


def test_floats_have_no_white_level() -> None:
    assert code_of(encoded(Image.new("F", (3, 3), 0.5), "TIFF")) == "unsupported"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(valid()))
def test_a_cut_file_is_an_error_or_loses_no_pixel(name: str) -> None:
    data = valid()[name]
    whole_HWC = np.asarray(to_rgb(data, max_pixels=MAX_PIXELS))
    last = range(max(1, len(data) - 40), len(data))
    codes = set()
    for length in sorted({*range(1, len(data), len(data) // 50 + 1), *last}):
        try:
            cut_HWC = np.asarray(to_rgb(data[:length], max_pixels=MAX_PIXELS))
        except ImageError as error:
            codes.add(str(error.code))
            continue
        np.testing.assert_array_equal(cut_HWC, whole_HWC, err_msg=f"{name} cut to {length} of {len(data)} bytes")
    assert "truncated" in codes
    assert codes <= {"truncated", "not_an_image", "corrupt"}


def test_a_jpeg_whose_end_was_never_written() -> None:
    for name in ("jpeg", "jpeg with thumbnail", "jpeg progressive", "jpeg restarts"):
        data = valid()[name]
        for filler in (b"\x00", b"\xff", b"\n"):
            assert code_of(data[: len(data) // 2] + filler * (len(data) // 2)) == "truncated", (name, filler)


@pytest.mark.parametrize("trailer", [b"\x00" * 500, b"\xff" * 7, b"SEFT Samsung \xff\xd8\xff\xe1", b"<html>"])
def test_bytes_behind_the_image_do_no_harm(trailer: bytes) -> None:
    for name, data in valid().items():
        if not name.startswith(("ppm plain", "avif")):
            np.testing.assert_array_equal(
                np.asarray(to_rgb(data + trailer, max_pixels=MAX_PIXELS)), np.asarray(to_rgb(data, max_pixels=MAX_PIXELS))
            )


def test_a_multi_picture_jpeg_gives_its_first() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo().rotate(180)])
    assert data.count(b"MPF\x00") == 1
    expected_HWC = np.asarray(Image.open(io.BytesIO(data)))
    for length in (len(data), len(data) - 100):
        np.testing.assert_array_equal(np.asarray(to_rgb(data[:length], max_pixels=MAX_PIXELS)), expected_HWC)


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_the_corpora_gives_pixels_or_a_code() -> None:
    decoded = 0
    for path in corpora.files():
        began = time.thread_time()
        try:
            image = decode_image(path.read_bytes(), PREPROCESSING, max_pixels=MAX_PIXELS)
        except ImageError as error:
            assert error.code in CODES_OF_BYTES, path
        else:
            assert image.pixels_HWC.shape == (56, 56, 3)
            decoded += 1
        assert time.thread_time() - began < 60, path
    assert decoded > 300


@pytest.mark.parametrize("raised", [MemoryError, RecursionError, ZeroDivisionError, struct.error, SyntaxError, UserWarning])
def test_whatever_a_decoder_raises_becomes_an_image_error(raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise raised("boom")

    monkeypatch.setitem(images._FORMATS, "PNG", replace(images._FORMATS["PNG"], open=explode))
    assert code_of(valid()["png"]) == "corrupt"
    monkeypatch.setattr(images, "apply_preprocessing", explode)
    with pytest.raises(ImageError, match="boom"):
        decode_image(valid()["jpeg"], PREPROCESSING, max_pixels=MAX_PIXELS)


def flip(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


def cut(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    return data[: changes[0][0] % len(data)]


def in_the_head(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    return flip(data[:200], changes) + data[200:]


CHANGES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(valid())), st.sampled_from([flip, cut, in_the_head]), CHANGES)
def test_damage_never_raises_anything_else(
    name: str, damage: Callable[[bytes, list[tuple[int, int]]], bytes], changes: list[tuple[int, int]]
) -> None:
    try:
        image = decode_image(damage(valid()[name], changes), PREPROCESSING, max_pixels=MAX_PIXELS)
    except ImageError as error:
        assert error.code in CODES_OF_BYTES
    else:
        assert image.pixels_HWC.shape == (56, 56, 3)


@pytest.mark.filterwarnings("ignore")
def test_damaged_tiffs_say_little_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(3)
    names, rounds = [name for name in valid() if name.startswith("tiff")], 40
    for name in names * rounds:
        code_of(flip(valid()[name], [(int(place), 255) for place in generator.integers(0, len(valid()[name]), 30)]))
    assert len(capfd.readouterr().err) < 2000 * len(names) * rounds

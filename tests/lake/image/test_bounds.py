"""Memory and time are bounded by what is decoded, not by what a file says of itself."""

import functools
import multiprocessing
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lake.image.making import box, encoded, gradient, into_png, png_chunk, segment, tiff
from tlray.errors import ImageError
from tlray.lake.image.decode import to_rgb

MAX_PIXELS = 1_000_000
ROOM_BYTES = 256 * 2**20
PICTURE = Image.fromarray(gradient())


@functools.cache
def zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(mebibytes)) + packer.flush()


def still_webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<L", 6) + b"\x2f" + struct.pack("<L", bits) + b"\0"
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def animated_webp(still: bytes, side: int, frames: int) -> bytes:
    edge = struct.pack("<L", side - 1)[:3]
    frame = bytes(6) + edge + edge + bytes(4) + still[12:]
    chunks = [(b"VP8X", b"\2\0\0\0" + edge + edge), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames]
    body = b"".join(name + struct.pack("<L", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def bmp(width: int, height: int, colours: int = 0) -> bytes:
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 0, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<LHHL", 54, 0, 0, 54) + header + bytes(1024)


def gif(width: int, height: int, disposal: int) -> bytes:
    control = b"!\xf9\x04" + bytes([disposal << 2]) + bytes(4)
    return b"GIF89a\1\0\1\0\0\0\0" + control + b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


GREY = gradient()[:, :, 0].tobytes()

HOSTILE: dict[str, Callable[[], bytes]] = {
    "PNG of a text of 1 GiB": lambda: into_png(encoded(PICTURE, "PNG"), png_chunk(b"zTXt", b"a\0\0" + zeros(1024))),
    "PNG of an XMP of 1 GiB": lambda: into_png(
        encoded(PICTURE, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(1024))
    ),
    "PNG of raw EXIF of 1 GiB": lambda: into_png(
        encoded(PICTURE, "PNG"), png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(1024))
    ),
    "PNG of a profile of 1 GiB": lambda: into_png(encoded(PICTURE, "PNG"), png_chunk(b"iCCP", b"a\0\0" + zeros(1024))),
    "PNG of 2**31 x 2**31 pixels": lambda: (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">2L5B", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)) + bytes(99)
    ),
    "PNG of two million chunks": lambda: into_png(encoded(PICTURE, "PNG"), png_chunk(b"tEXt", b"") * 2_000_000),
    "PNG whose data are in pieces of a byte": lambda: _in_pieces(encoded(PICTURE, "PNG")),
    "WebP of 16384 x 16384": lambda: still_webp(16384, 16384),
    "animated WebP of 16384 x 16384": lambda: animated_webp(still_webp(16384, 16384), 16384, 2),
    "WebP of 300,000 frames": lambda: animated_webp(encoded(Image.new("RGB", (8, 8)), "WEBP"), 8, 300_000),
    "GIF of 65535 x 65535": lambda: gif(65535, 65535, 0),
    "GIF that clears 65535 x 2000": lambda: gif(65535, 2000, 2),
    "GIF of a million comments": lambda: _with_comments(encoded(PICTURE, "GIF")),
    "GIF of ten million bytes of junk": lambda: b"GIF89a\1\0\1\0\0\0\0" + bytes(10_000_000),
    "BMP of 2**31 x 2**31": lambda: bmp(2**31 - 1, 2**31 - 1),
    "BMP of 2**32 colours": lambda: bmp(90, 60, 2**32 - 1),
    "TIFF of tiles of 65536 x 65536": lambda: tiff((96, 64), [GREY], t322=65536, t323=65536, t324=8, t325=6144),
    "compressed TIFF of tiles of 65536 x 65536": lambda: tiff(
        (96, 64), [zlib.compress(GREY)], t322=65536, t323=65536, t324=8, t325=99, t259=8
    ),
    "TIFF of four million strips": lambda: tiff((96, 64), [GREY], t273=[8] * 4_000_000, t278=1),
    "TIFF of four million tiles": lambda: tiff((96, 64), [GREY], t322=16, t323=16, t324=[8] * 4_000_000),
    "TIFF of 65535 samples": lambda: tiff((96, 64), [GREY], t277=65535),
    "TIFF of 2**32 rows in a strip": lambda: tiff((96, 64), [zlib.compress(GREY)], t278=2**32 - 1, t259=8),
    "TIFF of a profile as long as the file, twenty times": lambda: tiff(
        (96, 64), [bytes(20_000_000)], **{f"t{34675 + index}": [8] * 1_000_000 for index in range(20)}
    ),
    "JPEG of 65535 x 65535": lambda: (
        b"\xff\xd8" + segment(0xC2, struct.pack(">BHHB", 8, 65535, 65535, 1) + b"\1\x11\0") + segment(0xDA, b"\1\1\0\0\0\0")
    ),
    "JPEG of a million segments": lambda: b"\xff\xd8" + segment(0xFE, b"") * 1_000_000 + encoded(PICTURE, "JPEG")[2:],
    "PGM of 10**10 pixels": lambda: b"P5 100000 100000 255\n" + bytes(99),
    "PGM whose comment never ends": lambda: b"P5 #" + b"a" * 30_000_000,
    "AVIF of two million boxes": lambda: encoded(PICTURE, "AVIF") + box(b"free", b"") * 2_000_000,
    "AVIF of an item's box of a million properties": lambda: _with_associations(encoded(PICTURE, "AVIF")),
}


def _in_pieces(png: bytes) -> bytes:
    place = png.index(b"IDAT")
    length = int.from_bytes(png[place - 4 : place], "big")
    body = png[place + 4 : place + 4 + length]
    return png[: place - 4] + b"".join(png_chunk(b"IDAT", bytes([byte])) for byte in body) + png_chunk(b"IEND", b"")


def _with_comments(gif_file: bytes) -> bytes:
    place = gif_file.index(b",", 13 + 3 * 2 ** ((gif_file[10] & 7) + 1))
    return gif_file[:place] + b"!\xfe\x01a\0" * 1_000_000 + gif_file[place:]


def _with_associations(avif: bytes) -> bytes:
    """A lie: so many entries, of which few are there."""
    place = avif.index(b"ipma") + 8
    return avif[:place] + struct.pack(">L", 2**32 - 1) + avif[place + 4 :]


def _decode(data: bytes, answer: object) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    to_rgb(encoded(PICTURE, "JPEG"), max_pixels=MAX_PIXELS)
    to_rgb(encoded(PICTURE, "AVIF"), max_pixels=MAX_PIXELS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = time.process_time()
    try:
        size = to_rgb(data, max_pixels=MAX_PIXELS).size
        said = "ok" if size == PICTURE.size else f"ok {size}"
    except ImageError as error:
        said = "MemoryError" if isinstance(error.__cause__, MemoryError) else str(error)
    answer.send((said, time.process_time() - began))


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_a_file_says_of_itself_takes_no_memory(name: str) -> None:
    """In a process that may take a quarter of a gigabyte more than its libraries."""
    data = HOSTILE[name]()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_decode, args=(data, theirs))
    process.start()
    theirs.close()
    said, seconds = ours.recv()
    process.join()
    assert "MemoryError" not in said and "out of memory" not in said.lower(), said
    assert seconds < 10
    if name.startswith("PNG of a") or name in ("PNG whose data are in pieces of a byte", "WebP of 300,000 frames"):
        assert said.startswith("ok")


def test_a_row_as_wide_as_a_picture_is_read_at_once() -> None:
    """Pillow alone takes half a minute, as it copies what it has of the row with every 64 KiB."""
    data = encoded(Image.new("RGB", (2**25, 1)), "BMP")
    began = time.process_time()
    assert to_rgb(data, max_pixels=2**25).size == (2**25, 1)
    assert time.process_time() - began < 10


def test_the_picture_of_a_png_in_pieces_is_the_same() -> None:
    np.testing.assert_array_equal(np.asarray(to_rgb(_in_pieces(encoded(PICTURE, "PNG")), max_pixels=MAX_PIXELS)), gradient())

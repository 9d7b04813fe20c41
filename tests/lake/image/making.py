"""Image files made by hand, and pieces to put into those that Pillow writes."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tlray.errors import ImageError
from tlray.lake.image.decode import to_rgb

MAX_PIXELS = 20_000_000


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(to_rgb(data, max_pixels=MAX_PIXELS))


def code_of(data: bytes) -> str:
    try:
        to_rgb(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return str(error.code)
    return "ok"


def gradient(width: int = 96, height: int = 64) -> np.ndarray:
    """A picture that is another one however it is turned."""
    rows_H1, columns_1W = np.mgrid[0:height, 0:width]
    return np.stack([rows_H1 * 3, columns_1W * 2, np.full((height, width), 77)], axis=2).astype(np.uint8)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def into_png(png: bytes, chunk: bytes, *, before_pixels: bool = True) -> bytes:
    """The file with one more chunk, behind its header or in front of its end."""
    place = 33 if before_pixels else len(png) - 12
    return png[:place] + chunk + png[place:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def into_jpeg(jpeg: bytes, inserted: bytes) -> bytes:
    """The file with more segments, behind the first one."""
    place = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:place] + inserted + jpeg[place:]


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF structure with an orientation and a text in front of it."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "L"}[kind], orientation).ljust(4, b"\0")
    entries = struct.pack(order + "HHL4s", 0x010E, 2, 4, b"abc\0") + struct.pack(order + "HHL4s", 0x0112, kind, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "LH", 8, 2) + entries + bytes(4)


def tiff(size: tuple[int, int], strips: Sequence[bytes], order: str = "<", **tags: int | list[int]) -> bytes:
    """A TIFF of 8 bits of grey, or as tags say it, by number: t258=[8, 8, 8]."""
    values: dict[int, list[int]] = {256: [size[0]], 257: [size[1]], 258: [8], 259: [1], 262: [1], 277: [1], 278: [size[1]]}
    values |= {int(name[1:]): value if isinstance(value, list) else [value] for name, value in tags.items()}
    starts = np.cumsum([8, *(len(strip) for strip in strips)]).tolist()
    values |= {273: starts[:-1], 279: [len(strip) for strip in strips]}
    start = starts[-1] + starts[-1] % 2
    extra_start = start + 2 + 12 * len(values) + 4
    entries = extra = b""
    for tag in sorted(values):
        kind, code = (3, "H") if tag in (258, 338, 339) else (4, "L")
        field = struct.pack(f"{order}{len(values[tag])}{code}", *values[tag])
        if len(field) > 4:
            field, extra = struct.pack(order + "L", extra_start + len(extra)), extra + field
        entries += struct.pack(order + "HHL", tag, kind, len(values[tag])) + field.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", start)
    body = (head + b"".join(strips)).ljust(start, b"\0")
    return body + struct.pack(order + "H", len(values)) + entries + bytes(4) + extra


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L4s", len(body) + 8, kind) + body


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes of a file or of a box's body: kind and body."""
    found, place = [], 0
    while place < len(data):
        size, kind = struct.unpack_from(">L4s", data, place)
        found.append((kind, data[place + 8 : place + size]))
        place += size
    return found


def with_aperture(avif: bytes, *values: int) -> bytes:
    """An AVIF of Pillow's with a clean aperture (`clap`): width, height and both offsets, each as two numbers."""
    clap = box(b"clap", struct.pack(">LLLLlLlL", *values))
    top = dict(boxes(avif))
    meta = boxes(top[b"meta"][4:])
    properties = dict(boxes(dict(meta)[b"iprp"]))
    number = len(boxes(properties[b"ipco"])) + 1
    head, ipma = properties[b"ipma"][:8], properties[b"ipma"][8:]
    assert head[:4] == bytes(4)  # items of two bytes, properties of one
    ipma = ipma[:2] + bytes([ipma[2] + 1]) + ipma[3 : 3 + ipma[2]] + bytes([0x80 | number]) + ipma[3 + ipma[2] :]
    iprp = box(b"ipco", properties[b"ipco"] + clap) + box(b"ipma", head + ipma)
    added = len(clap) + 1
    new = {b"iprp": iprp, b"iloc": _moved(dict(meta)[b"iloc"], added)}
    body = top[b"meta"][:4] + b"".join(box(kind, new.get(kind, old)) for kind, old in meta)
    return b"".join(box(kind, body if kind == b"meta" else old) for kind, old in boxes(avif))


def _moved(iloc: bytes, distance: int) -> bytes:
    """The places of all items, so many bytes later: version 0, places and lengths of four bytes, no base."""
    assert (iloc[0], iloc[4:6]) == (0, b"\x44\x00")
    place, changed = 8, bytearray(iloc)
    for _ in range(int.from_bytes(iloc[6:8], "big")):
        extents = int.from_bytes(iloc[place + 4 : place + 6], "big")
        for extent in range(extents):
            at = place + 6 + 8 * extent
            changed[at : at + 4] = (int.from_bytes(iloc[at : at + 4], "big") + distance).to_bytes(4, "big")
        place += 6 + 8 * extents
    return bytes(changed)

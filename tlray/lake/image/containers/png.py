"""PNG: keeps the chunks that pixels depend on, which are the header, the palette, the transparency and the image data.

Every other chunk is ancillary ("decoders should ignore it": PNG specification, 4.7 and 13.2), APNG's later frames among them:
the first picture is the one that decoders without APNG show. A wrong checksum of a kept chunk is an error.
"""

import struct
import zlib
from collections.abc import Iterator

from tlray.lake.image.containers.orientation import orientation_of
from tlray.lake.image.containers.picture import Picture, corrupt, truncated, unsupported

MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 2**20
"""Files of more chunks are refused: encoders write chunks of kilobytes, and looking at each takes time."""

_MAX_TEXT_BYTES = 2**20  # of a compressed text; XMP has its orientation near the front

_WITH_PALETTE = 3  # colour types (PNG specification, 11.2.2)
_TRANSPARENCY_MIN_BYTES = {0: 2, 2: 6, _WITH_PALETTE: 1}
_PIXELS_DEPEND_ON = {b"PLTE": (_WITH_PALETTE,), b"tRNS": tuple(_TRANSPARENCY_MIN_BYTES)}
"""The chunks besides header and image data that pixels depend on, and of which colour types."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp\0"
_RAW_EXIF = b"Raw profile type exif\0"  # as ImageMagick writes it: hexadecimal digits below three lines


def read_png(data: bytes) -> Picture:
    """Take the first picture of a PNG file.

    Raises:
        ImageError: `corrupt`, `truncated` or `unsupported`.
    """
    chunks = _chunks(data)
    header = _header(data, next(chunks, None))
    width, height, colour = struct.unpack_from(">LLxB", header)
    first, pixels = _needed(data, chunks, colour)
    if not pixels:
        raise (truncated if is_cut(data) else corrupt)("there is no image data")
    if colour == _WITH_PALETTE and b"PLTE" not in first:
        raise corrupt("there is no palette")
    palette, transparency = first.get(b"PLTE", b""), first.get(b"tRNS", b"")
    kept = [_chunk(b"IHDR", header)]
    if palette:
        kept.append(_chunk(b"PLTE", palette))
    if transparency and len(transparency) >= _TRANSPARENCY_MIN_BYTES[colour]:
        kept.append(_chunk(b"tRNS", transparency))
    # One data chunk instead of many; its checksum is left open, since Pillow does not look at it.
    length = struct.pack(">L", sum(len(part) for part in pixels))
    new = b"".join((MAGIC, *kept, length, b"IDAT", *pixels, bytes(4), _chunk(b"IEND", b"")))
    return Picture(new, (width, height), _orientation(first))


def is_cut(data: bytes) -> bool:
    """Whether the file ends before its last chunk."""
    position = len(MAGIC)
    while position + 12 <= len(data):
        if data.startswith(b"IEND", position + 4):
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return True


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of every chunk and where its body begins and ends (PNG specification, 5.3), up to the last."""
    position = len(MAGIC)
    for _ in range(MAX_CHUNKS):
        start = position + 8
        kind = data[position + 4 : start]
        if start > len(data) or kind == b"IEND":
            return
        end = start + int.from_bytes(data[position : position + 4], "big")
        yield kind, start, min(end, len(data))
        position = end + 4
    raise unsupported(f"PNG of more than {MAX_CHUNKS} chunks")


def _header(data: bytes, chunk: tuple[bytes, int, int] | None) -> bytes:
    if chunk is None or (chunk[0] == b"IHDR" and chunk[2] == len(data)):
        raise truncated("the file ends in its header")
    kind, start, end = chunk
    if kind == b"CgBI":
        raise unsupported("PNG as Apple's tools rewrite it for iPhones (CgBI)")
    if kind != b"IHDR" or end - start != 13 or not _is_sound(data, start, end):
        raise corrupt("the header chunk is missing or damaged")
    return data[start:end]


def _needed(data: bytes, chunks: Iterator[tuple[bytes, int, int]], colour: int) -> tuple[dict[bytes, bytes], list[memoryview]]:
    """The bodies of the chunks that are needed besides the pixels, the first of each kind, and the pixels' own."""
    first: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    for kind, start, end in chunks:
        if kind == b"IDAT":
            if end + 4 <= len(data) and not _is_sound(data, start, end):
                raise corrupt("the checksum of an IDAT chunk is wrong")
            pixels.append(memoryview(data)[start:end])
        elif not kind.isalpha():
            if not pixels:
                raise corrupt(f"there is no chunk where one was to be, but {kind!r}")
            break
        elif key := _key(data, kind, start, colour, pixels_begun=bool(pixels)):
            if kind in _PIXELS_DEPEND_ON and not _is_sound(data, start, end):
                raise corrupt(f"the checksum of the {kind.decode()} chunk is wrong")
            first.setdefault(key, data[start:end])
    return first, pixels


def _key(data: bytes, kind: bytes, start: int, colour: int, *, pixels_begun: bool) -> bytes | None:
    """What a chunk that is needed besides the pixels is kept under; None for one that is not needed."""
    if kind in _PIXELS_DEPEND_ON:
        return kind if not pixels_begun and colour in _PIXELS_DEPEND_ON[kind] else None
    if kind == b"eXIf":
        return kind
    if kind in _TEXTS:
        return next((kind + key for key in (_XMP, _RAW_EXIF) if data.startswith(key, start)), None)
    return None


def _orientation(first: dict[bytes, bytes]) -> int:
    texts = {
        key: next((_text(kind, first[kind + key]) for kind in _TEXTS if kind + key in first), b"") for key in (_XMP, _RAW_EXIF)
    }
    return orientation_of(first.get(b"eXIf") or _from_hexadecimal(texts[_RAW_EXIF]), texts[_XMP])


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """Whether a chunk's checksum, over its kind and body, is there and right."""
    return data[end : end + 4] == zlib.crc32(memoryview(data)[start - 4 : end]).to_bytes(4, "big")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _text(kind: bytes, body: bytes) -> bytes:
    """The text of a text chunk (PNG specification, 11.3.3), the front of it where it is long; empty where it is broken."""
    _, _, text = body.partition(b"\0")
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]
    elif kind == b"iTXt":
        compressed = text[:1] != b"\0"
        text = text[2:].split(b"\0", 2)[-1]  # behind the language and the translated keyword
    if not compressed:
        return text
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _from_hexadecimal(text: bytes) -> bytes:
    try:
        return bytes.fromhex("".join(text[:_MAX_TEXT_BYTES].decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""

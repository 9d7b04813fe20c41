"""WebP: keeps the still picture or the first frame of an animation, and its alpha.

What an animation's first frame leaves open is transparent, whether the file announces transparency or not: libwebp begins with
a transparent canvas, as a file's background colour is only a hint. The same holds for alpha that a still picture has without
announcing it. (Image rule 2 dropped both, so that they were black or whatever colour lay below.)

Source: the WebP container, RFC 9649, section 2.
"""

from collections.abc import Iterator

from tlray.lake.image.containers.orientation import orientation_of
from tlray.lake.image.containers.picture import Picture, corrupt, truncated

_HEADER_BYTES = 12
_MAX_CHUNKS = 2**20  # of later ones nothing is read
_PICTURES: tuple[bytes, ...] = (b"VP8 ", b"VP8L", b"ANMF")
_PIXELS = (b"ALPH", b"VP8 ", b"VP8L")
_KEPT = (*_PICTURES, b"VP8X", b"ALPH", b"EXIF", b"XMP ")
_FRAME_HEADER_BYTES = 16
_ANIMATION, _METADATA, _ALPHA = 0x02, 0x04 | 0x08, 0x10  # flags of VP8X
_EXTENDED_BYTES = 10
_NO_BACKGROUND = bytes(6)  # and as many loops as one likes
_FIRST_RULE_WITH_HIDDEN_ALPHA = 3


def read_webp(data: bytes, image_rule: int) -> Picture:
    """Take the first picture of a WebP file.

    Args:
        data: a file's bytes.
        image_rule: 2 drops alpha that is not announced.

    Raises:
        ImageError: `corrupt` or `truncated`.
    """
    chunks: dict[bytes, bytes] = {}
    for kind, start, end in _chunks(data, _HEADER_BYTES):
        if kind not in chunks and kind in _KEPT:
            chunks[kind] = _frame(data, start) if kind == b"ANMF" else _body(data, kind, start, end)
    picture = next((kind for kind in _PICTURES if kind in chunks), None)
    if picture is None:
        raise (truncated if is_cut(data) else corrupt)("there is no image data")
    extended = chunks.get(b"VP8X", b"")
    if extended and extended[0] & _METADATA and is_cut(data) and not {b"EXIF", b"XMP "} & chunks.keys():
        raise truncated("the file ends before its orientation may come")
    orientation = orientation_of(chunks.get(b"EXIF"), chunks.get(b"XMP "))
    if len(extended) < _EXTENDED_BYTES:
        if picture == b"ANMF":
            raise corrupt("there are frames, but no canvas")
        return Picture(_riff({picture: chunks[picture]}), _bitstream_size(picture, chunks[picture]), orientation)
    flags = extended[0] & _ALPHA
    kept: dict[bytes, bytes] = {picture: chunks[picture]}
    if picture == b"ANMF":
        flags |= _ANIMATION
        kept = {b"ANIM": _NO_BACKGROUND, **kept}
    elif picture == b"VP8 " and b"ALPH" in chunks:
        kept = {b"ALPH": chunks[b"ALPH"], **kept}
    if image_rule >= _FIRST_RULE_WITH_HIDDEN_ALPHA and _may_have_alpha(kept):
        flags |= _ALPHA
    canvas = extended[4:_EXTENDED_BYTES]
    size = int.from_bytes(canvas[:3], "little") + 1, int.from_bytes(canvas[3:], "little") + 1
    return Picture(_riff({b"VP8X": bytes([flags, 0, 0, 0]) + canvas, **kept}), size, orientation)


def is_cut(data: bytes) -> bool:
    """Whether the file ends before its own header says so."""
    return 8 + int.from_bytes(data[4:8], "little") > len(data)


def _chunks(data: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of every chunk and where its body begins and ends, which may be behind the end of the file."""
    for _ in range(_MAX_CHUNKS):
        start = position + 8
        if start > len(data):
            return
        size_bytes = int.from_bytes(data[position + 4 : start], "little")
        yield data[position : position + 4], start, start + size_bytes
        position = start + size_bytes + size_bytes % 2


def _body(data: bytes, kind: bytes, start: int, end: int) -> bytes:
    if end > len(data) and kind in _PIXELS:
        raise truncated("the file ends in its image data")
    return data[start:end]


def _frame(data: bytes, start: int) -> bytes:
    """A frame of an animation: where on the canvas it is, its alpha and its picture."""
    parts = [data[start : start + _FRAME_HEADER_BYTES]]
    for kind, begin, end in _chunks(data, start + _FRAME_HEADER_BYTES):
        if kind in _PIXELS:
            parts += _chunk(kind, _body(data, kind, begin, end))
        if kind in _PICTURES:
            break
    return b"".join(parts)


def _may_have_alpha(kept: dict[bytes, bytes]) -> bool:
    lossless = kept.get(b"VP8L", b"")
    return b"ANMF" in kept or b"ALPH" in kept or (len(lossless) > 4 and bool(lossless[4] & 0x10))


def _bitstream_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height of a picture without a canvas (RFC 6386, 9.1; RFC 9649, 3.4)."""
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _chunk(kind: bytes, body: bytes) -> list[bytes]:
    return [kind, len(body).to_bytes(4, "little"), body, bytes(len(body) % 2)]


def _riff(chunks: dict[bytes, bytes]) -> bytes:
    parts = [b"WEBP"]
    for kind, body in chunks.items():
        parts += _chunk(kind, body)
    return b"".join((b"RIFF", sum(map(len, parts)).to_bytes(4, "little"), *parts))

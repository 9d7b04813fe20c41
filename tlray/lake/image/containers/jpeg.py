"""JPEG: keeps the segments that pixels depend on; leaves out comments, application data and whatever follows the image.

Of the application segments only JFIF's and Adobe's matter to the decoder, for the colour transform, and only where they are
as long as libjpeg asks (jdmarker.c). The first picture of a file of several (MPO) is an image of its own.

Whether a file is complete is decided by its pixels and not by its end marker (EOI), which some cameras leave out before they
append something. libjpeg itself takes zeros or junk in the place of a lost rest for image data. So:

- What has all its data in one scan of Huffman codes is decoded without the EOI: if libjpeg asks for more, Pillow fails. With it
  libjpeg warns, which counts where it is heard (`with_end`).
- Without an EOI, filler at the end (one byte repeated, or printable text) is taken off, and the picture is decoded several
  times with different bytes behind it: if these change a pixel, image data are missing. All scans must be there, too.

Sources: ISO/IEC 10918-1, annex B; JFIF 1.02; Exif 2.32; XMP part 3; Adobe technical note 5116.
"""

import hashlib
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from tlray.lake.image.containers.orientation import orientation_of
from tlray.lake.image.containers.picture import Picture, corrupt, truncated, unsupported

# A marker is 0xFF and a code; within entropy-coded data 0xFF00 is a stuffed byte and 0xFFD0 to 0xFFD7 are restarts, so that the
# next marker after them ends the scan.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _COMMENT, _TEM = 0xD8, 0xD9, 0xDA, 0xFE, 0x01
_APP0, _APP1, _APP14, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF
_WITHOUT_LENGTH = (_TEM, _SOI, _EOI)
_MAX_SEGMENTS = 2**17  # of up to 64 KiB
_END = b"\xff\xd9"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"

# Starts of frames. libjpeg decodes baseline, extended, progressive, lossless, and the second and third in arithmetic codes.
_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _ARITHMETIC, _PROGRESSIVE_ARITHMETIC = 0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA
_HUFFMAN_SEQUENTIAL = (_BASELINE, _EXTENDED)
_DECODED = (*_HUFFMAN_SEQUENTIAL, _PROGRESSIVE, _LOSSLESS, _ARITHMETIC, _PROGRESSIVE_ARITHMETIC)
_NOT_DECODED = (
    {0xCB: "lossless JPEG in arithmetic codes"}
    | dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical JPEG")
    | {0xF7: "JPEG-LS"}  # ITU-T T.87
)
_COMPONENTS = (1, 3, 4)
_BITS = range(2, 17)
_PREDICTORS = b"\1\2\3\4\5\6\7"  # of lossless scans; 0 is for hierarchical ones

_JFIF_MIN_BYTES, _ADOBE_MIN_BYTES = 14, 12  # jdmarker.c: APP0_DATA_LEN, APP14_DATA_LEN

_FRAMES = (*_DECODED, *_NOT_DECODED)

_READ_AHEAD = b"\xff\x00" * 8
"""What follows a single scan. libjpeg's Huffman decoder reads up to 8 bytes ahead of the code that it decodes (jdhuff.c, a
buffer of 64 bits). These are 64 ones, of which it can make four codes at most, since codes of ones are the longest."""

_OTHER_READ_AHEADS = (bytes(8), b"\xaa" * 8, b"\x55" * 8)

_FILLER_MIN_BYTES = 16
_PRINTABLE = string.printable.encode()
_JUNK = hashlib.shake_256(b"tlray").digest(2**14).replace(b"\xff", b"\xfe")  # no marker in it
_COEFFICIENTS = range(64)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a start-of-frame segment says of the picture."""

    marker: int
    size: tuple[int, int]
    components: tuple[int, ...]


def read_jpeg(data: bytes) -> Picture:
    """Take the first picture of a JPEG file.

    Raises:
        ImageError: `corrupt`, `truncated` or `unsupported`.
    """
    kept, frame, scan = [data[:2]], None, None
    exif = xmp = b""
    for marker, start, end in _segments(data, 2):
        if marker in (_SOS, _EOI) or end > len(data):
            scan = start if marker == _SOS else None
            break
        body = data[start + 4 : end]
        if marker in _FRAMES and frame is None:
            frame = _frame(marker, body)
        elif marker == _APP1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :]
        elif marker == _APP1 and body.startswith(_XMP):
            xmp = xmp or body
        if _pixels_depend_on(marker, body):
            kept.append(data[start:end])
    if scan is None or frame is None:
        raise (truncated if is_cut(data) else corrupt)("there is no image data, or no frame's header in front of it")
    place = scan + 5 + 2 * len(frame.components)
    if frame.marker == _LOSSLESS and data[place : place + 1] not in _PREDICTORS:
        raise unsupported("lossless JPEG without a predictor")
    scans, ends = _scans(data, scan, frame)
    files = [b"".join((*kept, scans, end)) for end in ends]
    return Picture(
        files[0],
        frame.size,
        orientation_of(exif, xmp),
        other_ends=tuple(files[1:]),
        can_shrink=frame.marker != _LOSSLESS,
    )


def with_end(picture: Picture) -> bytes | None:
    """The file of a picture with its EOI, by which a decoder tells whether data are missing; None where the file has none."""
    if picture.other_ends:
        return None
    if picture.data.endswith(_READ_AHEAD):
        return b"".join((memoryview(picture.data)[: -len(_READ_AHEAD)], _END))
    return picture.data


def is_cut(data: bytes) -> bool:
    """Whether the file ends before the end marker of its first picture; what follows does no harm."""
    return not data.endswith(_END) and _find_end(data, 2) < 0


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of every segment from a place between two of them on, and where it begins and ends.

    Restarts belong to the data of a scan. A segment that ends behind the file is the last.
    """
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        marker, start = found[1][0], found.start()
        position = found.end()
        if marker not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        yield marker, start, position
    raise corrupt(f"more than {_MAX_SEGMENTS} segments")


def _find_end(data: bytes, position: int) -> int:
    """Where the first picture's end marker is, from a place between two segments on; -1 where it has none."""
    return next((start for marker, start, _ in _segments(data, position) if marker == _EOI), -1)


def _pixels_depend_on(marker: int, body: bytes) -> bool:
    if marker == _APP0:
        return body.startswith(b"JFIF\0") and len(body) >= _JFIF_MIN_BYTES
    if marker == _APP14:
        return body.startswith(b"Adobe") and len(body) >= _ADOBE_MIN_BYTES
    return marker not in (_COMMENT, _TEM, _SOI) and not _APP0 <= marker <= _APP15


def _frame(marker: int, body: bytes) -> _Frame:
    if marker in _NOT_DECODED:
        raise unsupported(_NOT_DECODED[marker])
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise corrupt("the frame's header is damaged")
    if body[0] != 8:
        raise (unsupported if body[0] in _BITS else corrupt)(f"JPEG of {body[0]} bits a sample")
    size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    if size[1] == 0:
        raise unsupported("JPEG that states its height after its first scan")
    if body[5] not in _COMPONENTS:
        raise (unsupported if body[5] else corrupt)(f"JPEG of {body[5]} components")
    return _Frame(marker, size, tuple(body[6::3]))


def _scans(data: bytes, start: int, frame: _Frame) -> tuple[memoryview, tuple[bytes, ...]]:
    """All scans without their end, and with what to end them: one way, or several that must give the same pixels."""
    one_scan = frame.marker in _HUFFMAN_SEQUENTIAL and data[start + 4 : start + 5] == bytes([len(frame.components)])
    if data.endswith(_END):  # as nearly all do; looking for an earlier one would take a tenth of the time of decoding
        end = len(data) - len(_END)
    elif one_scan:
        end = data.find(_END, start)
    else:
        end = _find_end(data, start)
    if end >= 0:
        return memoryview(data)[start:end], (_READ_AHEAD if one_scan else _END,)
    scans = memoryview(data)[start : _without_filler(data)]
    if one_scan:
        return scans, (_READ_AHEAD, *_OTHER_READ_AHEADS)
    if not _are_all_scans(data, start, frame):
        raise truncated("the file ends before the last of its scans")
    return scans, (_END, _JUNK + _END)


def _without_filler(data: bytes) -> int:
    """Where the filler at the end of a file begins: a byte that is repeated, or printable text."""
    length = len(data.rstrip(b"\xff"))  # in data another byte would follow
    while True:
        rest = min((data[:length].rstrip(filler) for filler in (data[length - 1 : length], _PRINTABLE)), key=len)
        if length - len(rest) < _FILLER_MIN_BYTES:
            return length
        length = len(rest)


def _are_all_scans(data: bytes, position: int, frame: _Frame) -> bool:
    """Whether the headers of the scans, together, name each coefficient of each component down to its last bit."""
    left = {(component, coefficient) for component in frame.components for coefficient in _COEFFICIENTS}
    progressive = frame.marker in (_PROGRESSIVE, _PROGRESSIVE_ARITHMETIC)
    for marker, start, end in _segments(data, position):
        header = data[start + 4 : end]
        if marker == _SOS and len(header) >= 4 and len(header) == 4 + 2 * header[0]:
            first, last, bits = header[-3:]
            if not progressive or bits & 15 == 0:
                coefficients = range(first, last + 1) if progressive else _COEFFICIENTS
                left -= {(component, each) for component in header[1:-3:2] for each in coefficients}
    return not left

"""BMP and the PNM family (PBM, PGM, PPM): nothing but pixels in them, but some kinds would be decoded wrongly or slowly."""

import re
import struct

from tlray.lake.image.containers.picture import Picture, corrupt, truncated, unsupported

SLOW_PNM_MAX_PIXELS = 2**22
"""PNM files written as text, or whose maxval is not 1, 255 or 65535, are decoded in Python, at up to 3 s a million pixels."""

SLOW_BMP_MAX_PIXELS = 2**24
SLOW_BMP_MAX_BYTES = 2**26
"""Run-length encoded BMP files are decoded in Python, at up to 0.4 s a million pixels and 0.15 s a million bytes."""

_BMP_HEADERS_MIN_BYTES = 26  # BITMAPFILEHEADER and BITMAPCOREHEADER
_BMP_INFO_BYTES, _BMP_BYTES_WITH_ALPHA = 40, 56  # BITMAPINFOHEADER, BITMAPV3INFOHEADER
_BMP_RUN_LENGTHS = (1, 2)  # compressions
_BMP_BITFIELDS = 3
_BMP_BITS = (0, 1, 2, 4, 8, 16, 24, 32, 64)
_BMP_PALETTE_BITS = 8
_BMP_COLOURS = slice(46, 50)
_BMP_MAX_COLOURS = 2**16  # more than that is damage, and not a long palette
_BMP_ALPHA_MASK = slice(66, 70)

_PNM_TOKEN = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,10})"
_PNM_HEADER = re.compile(rb"(P[14])" + _PNM_TOKEN * 2 + rb"\s|(P[2356])" + _PNM_TOKEN * 3 + rb"\s")
_PNM_HEADER_MAX_BYTES = 2**20


def read_bmp(data: bytes) -> Picture:
    """Take a BMP file as it is, but for palette entries that no pixel can name.

    Raises:
        ImageError: `unsupported` or `corrupt`.
    """
    if len(data) < _BMP_ALPHA_MASK.stop:
        return Picture(data)
    header_bytes, width, height, bits, compression = struct.unpack_from("<LLlxxHL", data, 14)
    if header_bytes < _BMP_INFO_BYTES:
        return Picture(data)
    if bits == 16 and compression == _BMP_BITFIELDS and header_bytes >= _BMP_BYTES_WITH_ALPHA and any(data[_BMP_ALPHA_MASK]):
        raise unsupported("BMP of 16 bits with alpha")  # which Pillow drops
    if bits not in _BMP_BITS:
        raise corrupt(f"a pixel of {bits} bits")
    (colours,) = struct.unpack_from("<L", data, _BMP_COLOURS.start)
    if bits <= _BMP_PALETTE_BITS and colours > 1 << bits:
        if colours > _BMP_MAX_COLOURS:
            raise corrupt(f"a palette of {colours} colours")
        data = data[: _BMP_COLOURS.start] + struct.pack("<L", 1 << bits) + data[_BMP_COLOURS.stop :]
    height = abs(height)
    slow = width * height > SLOW_BMP_MAX_PIXELS or len(data) > SLOW_BMP_MAX_BYTES
    in_python = slow and compression in _BMP_RUN_LENGTHS
    return Picture(data, (width, height), too_slow="a large run-length encoded BMP" if in_python else None)


def is_cut_bmp(data: bytes) -> bool:
    """Whether the file is shorter than its header says."""
    return len(data) < _BMP_HEADERS_MIN_BYTES or int.from_bytes(data[2:6], "little") > len(data)


def read_pnm(data: bytes) -> Picture:
    """Take a PNM file as it is, but for comments in its header, which Pillow reads letter by letter.

    Raises:
        ImageError: `corrupt` or `truncated`.
    """
    header = _PNM_HEADER.match(data, 0, _PNM_HEADER_MAX_BYTES)
    if header is None:
        raise (corrupt if len(data) > _PNM_HEADER_MAX_BYTES else truncated)("the header has no end")
    magic, *numbers = (group for group in header.groups() if group is not None)
    width, height, *most = map(int, numbers)
    in_python = magic in (b"P1", b"P2", b"P3") or most not in ([], [255], [65535] if magic == b"P5" else [255])
    slow = in_python and width * height > SLOW_PNM_MAX_PIXELS
    too_slow = f"PNM of more than {SLOW_PNM_MAX_PIXELS} pixels as text or of an odd maxval" if slow else None
    head = b" ".join((magic, *numbers)) + b"\n"
    return Picture(b"".join((head, memoryview(data)[header.end() :])), (width, height), too_slow=too_slow)

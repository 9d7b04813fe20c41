"""Which image format some bytes are, and whether the file that they came from was cut short.

Formats are told by their first bytes, never by a name. What is read: JPEG, PNG (APNG), WebP, AVIF, TIFF, BMP, GIF and
the raw and plain PNM family (PBM, PGM, PPM). What is known but not read has its reason in `KNOWN_BUT_NOT_READ`; TGA
has no magic number in front, so only its version 2 is recognised, by its footer.
"""

import re
import struct
import zlib
from collections.abc import Iterator

KNOWN_BUT_NOT_READ: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "EPS/PostScript: drawing it means running a program"),
    (b"\xc5\xd0\xd3\xc6", "EPS/PostScript: drawing it means running a program"),
    (b"#?RADIANCE", "Radiance HDR: has no white level"),
    (b"#?RGBE", "Radiance HDR: has no white level"),
    (b"\x76\x2f\x31\x01", "OpenEXR: has no white level"),
    (b"PF\n", "PFM: has no white level"),
    (b"Pf\n", "PFM: has no white level"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000: its decoder makes pictures out of cut files"),
    (b"\xff\x4f\xff\x51", "JPEG 2000: its decoder makes pictures out of cut files"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop document"),
    (b"\x00\x00\x01\x00", "ICO: several icons in one file"),
    (b"\x00\x00\x02\x00", "TGA, or CUR: several cursors in one file"),
    (b"icns", "ICNS: several icons in one file"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"DDS ", "DDS texture"),
    (b"BLP1", "BLP texture"),
    (b"BLP2", "BLP texture"),
    (b"\x01\xda", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\x0a\x05\x01", "PCX"),
    (b"P7\n", "PAM"),
    (b"/* XPM", "XPM"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"AT&TFORM", "DjVu"),
    (b"BPG\xfb", "BPG"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIU\x00", "camera raw"),
    (b"FOVb", "camera raw"),
)
"""First bytes and what they mean; from the formats' specifications and file(1)'s magic database."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ")
_CANON_RAW = re.compile(rb"(II\*\x00.{4}|MM\x00\*.{4})CR", re.DOTALL)
_XML = (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")
_SVG_HEAD_BYTES = 4096
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# A marker is 0xFF and a code (ISO/IEC 10918-1, B.1.1); within entropy-coded data 0xFF00 is a stuffed byte and
# 0xFFD0 to 0xFFD7 are restarts, so that the next marker after them ends the scan.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_EOI = 0xD9
_JPEG_END = b"\xff\xd9"
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)

_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # TIFF 6.0, section 2
_BMP_HEADERS_MIN_BYTES = 26  # BITMAPFILEHEADER and BITMAPCOREHEADER
_GIF_HEADER_BYTES = 13  # signature and logical screen descriptor


def identify(data: bytes) -> str | None:
    """Name the format that is read: `JPEG`, `PNG`, `WEBP`, `AVIF`, `TIFF`, `BMP`, `GIF` or `PPM`; None for any other."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return None if _CANON_RAW.match(data) else "TIFF"
    if data[4:8] == b"ftyp":
        return "AVIF" if _is_avif(data) else None
    if data.startswith(b"BM"):
        return "BMP"
    return "PPM" if re.match(rb"P[1-6][\s#]", data) else None


def known_but_not_read(data: bytes) -> str | None:
    """What the bytes are and why they are not read; None where they are no image that we know."""
    for magic, reason in KNOWN_BUT_NOT_READ:
        if data.startswith(magic):
            return reason
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIF or camera raw"
    if _CANON_RAW.match(data):
        return "camera raw"
    head = data[:_SVG_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_XML) and b"<svg" in head:
        return "SVG: drawings have no pixels"
    return "TGA" if data.endswith(_TGA_FOOTER) else None


def is_cut(image_format: str, data: bytes) -> bool:
    """Whether the file ends before its own structure says so; trailing bytes do no harm.

    For a JPEG this is certain enough to be asked of every one, as its decoder takes zeros or junk in the place of a lost
    rest for image data. For the others it tells `truncated` from `corrupt` once decoding has failed.
    """
    check = _CUT.get(image_format)
    return check is not None and check(data)


def has_bad_png_checksum(data: bytes) -> bool:
    """Whether an IDAT chunk disagrees with its CRC-32, which Pillow does not look at (libpng does, and fails)."""
    for position, length in _png_chunks(data):
        if data[position + 4 : position + 8] == b"IDAT":
            end = position + 8 + length
            if end + 4 <= len(data) and zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(
                data[end : end + 4], "big"
            ):
                return True
    return False


def has_16_bit_bmp_alpha(data: bytes) -> bool:
    """Whether a BMP of 16 bits a pixel has an alpha mask (BITMAPV3INFOHEADER and later), which Pillow drops."""
    if len(data) < 70:
        return False
    header_bytes, bits, compression = struct.unpack_from("<L10xHL", data, 14)
    return bits == 16 and compression == 3 and header_bytes >= 56 and any(data[66:70])


def _is_avif(data: bytes) -> bool:
    brands = data[8 : int.from_bytes(data[:4], "big")]
    return b"avif" in brands or b"avis" in brands


def _jpeg_is_cut(data: bytes) -> bool:
    if data.endswith(_JPEG_END):  # most do; inside a scan these two bytes cannot stand
        return False
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        position = marker.end()
        code = marker[1][0]
        if code == _JPEG_EOI:
            return False
        if code not in _JPEG_WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return True


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the place and the body's length of every chunk (PNG specification, 5.3)."""
    position = len(_PNG_MAGIC)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield position, length
        position += 12 + length


def _png_is_cut(data: bytes) -> bool:
    return not any(data[position + 4 : position + 8] == b"IEND" for position, _ in _png_chunks(data))


def _riff_is_cut(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") > len(data)


def _boxes_are_cut(data: bytes) -> bool:
    """ISO/IEC 14496-12, 4.2: size 1 means a 64-bit size follows, size 0 that the box goes to the end of the file."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            return False
        position += size
    return position != len(data)


def _tiff_is_cut(data: bytes) -> bool:
    """Whether the first directory, or a value that it points to, lies behind the end: writers put them last."""
    order = "<" if data.startswith(b"II") else ">"
    if len(data) < 8:
        return True
    if data[2:4] in (b"+\x00", b"\x00+"):
        return len(data) < 16 or struct.unpack_from(order + "Q", data, 8)[0] + 8 > len(data)
    (directory,) = struct.unpack_from(order + "L", data, 4)
    if directory + 2 > len(data):
        return True
    (entries,) = struct.unpack_from(order + "H", data, directory)
    end = directory + 2 + 12 * entries
    if end + 4 > len(data):
        return True
    for _, kind, count, offset in struct.iter_unpack(order + "HHLL", data[directory + 2 : end]):
        value_bytes = count * _TIFF_TYPE_BYTES.get(kind, 0)
        if value_bytes > 4 and offset + value_bytes > len(data):
            return True
    return False


def _bmp_is_cut(data: bytes) -> bool:
    return len(data) < _BMP_HEADERS_MIN_BYTES or int.from_bytes(data[2:6], "little") > len(data)


def _gif_is_cut(data: bytes) -> bool:
    return len(data) < _GIF_HEADER_BYTES


_CUT = {
    "JPEG": _jpeg_is_cut,
    "PNG": _png_is_cut,
    "WEBP": _riff_is_cut,
    "AVIF": _boxes_are_cut,
    "TIFF": _tiff_is_cut,
    "BMP": _bmp_is_cut,
    "GIF": _gif_is_cut,
}

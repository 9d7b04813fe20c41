"""Which image format some bytes are.

Formats are told by their first bytes, never by a name. What is read: JPEG, PNG (APNG), WebP, AVIF, TIFF, BMP, GIF and
the raw and plain PNM family (PBM, PGM, PPM). What is known but not read has its reason in `KNOWN_BUT_NOT_READ`; TGA has no
magic number in front, so it is told by its footer, or by a header whose fields all fit together.
"""

import re
import struct

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
    (b"II\xbc", "JPEG XR"),
    (b"\x8aMNG\r\n\x1a\n", "MNG: an animation"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"gimp xcf", "GIMP document"),
    (b"FLIF", "FLIF"),
    (b"\xabKTX ", "KTX texture"),
    (b"\x13\xab\xa1\x5c", "ASTC texture"),
    (b"SDPX", "DPX"),
    (b"XPDS", "DPX"),
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

_BRANDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    ((b"crx ",), "camera raw (CR3)"),
    ((b"jp2 ", b"jpx ", b"jph "), "JPEG 2000: its decoder makes pictures out of cut files"),
    ((b"avci", b"avcs", b"vvic", b"vvis", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"mif1", b"mif2", b"msf1"), "HEIF"),
)
"""Kinds of files of boxes that are not read, by the brands that they bear (ISO/IEC 23008-12, annex B)."""

_CANON_RAW = re.compile(rb"(II\*\x00.{4}|MM\x00\*.{4})CR", re.DOTALL)
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"MM*\x00", b"II\x00*")  # the last two by mistake
_PNM_MAGIC = re.compile(rb"P[1-6][\s#]")
_XML = (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")
_SVG_HEAD_BYTES = 4096
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_TGA_HEADER = struct.Struct("<xBBHHBHHHHBB")
_TGA_KINDS, _TGA_BITS, _TGA_ENTRY_BITS = (1, 2, 3, 9, 10, 11), (8, 15, 16, 24, 32), (15, 16, 24, 32)
_DICOM = slice(128, 132)
_BRANDS_MAX_BYTES = 1024


def identify(data: bytes) -> str | None:
    """Name the format that is read: `JPEG`, `PNG`, `WEBP`, `AVIF`, `TIFF`, `BMP`, `GIF` or `PPM`; None for any other."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(_TIFF_MAGIC):
        return None if _CANON_RAW.match(data) else "TIFF"
    if data[4:8] == b"ftyp":
        return "AVIF" if {b"avif", b"avis"} & _brands(data) else None
    if data.startswith(b"BM"):
        return "BMP"
    return "PPM" if _PNM_MAGIC.match(data) else None


def known_but_not_read(data: bytes) -> str | None:
    """What the bytes are and why they are not read; None where they are no image that we know."""
    for magic, reason in KNOWN_BUT_NOT_READ:
        if data.startswith(magic):
            return reason
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        return next((reason for of_kind, reason in _BRANDS if brands.intersection(of_kind)), None)
    if _CANON_RAW.match(data):
        return "camera raw (CR2)"
    if data[_DICOM] == b"DICM":
        return "DICOM: its levels have no white without a window"
    head = data[:_SVG_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_XML) and b"<svg" in head:
        return "SVG: drawings have no pixels"
    return "TGA" if data.endswith(_TGA_FOOTER) or _is_tga_without_footer(data) else None


def _is_tga_without_footer(data: bytes) -> bool:
    """Whether a header is one of TGA's first version, which has no magic number: all its fields fit together."""
    if len(data) < _TGA_HEADER.size:
        return False
    has_map, kind, first, length, entry_bits, _, _, width, height, bits, descriptor = _TGA_HEADER.unpack_from(data)
    if has_map not in (0, 1) or kind not in _TGA_KINDS or not (width and height) or descriptor & 0xC0:
        return False
    if has_map and not (length and entry_bits in _TGA_ENTRY_BITS):
        return False
    return bits in _TGA_BITS and (bool(has_map) or (first, length, entry_bits) == (0, 0, 0))


def _brands(data: bytes) -> set[bytes]:
    """The major brand of a file of boxes and those that it is compatible with (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), len(data), _BRANDS_MAX_BYTES)
    return {data[8:12]} | {data[place : place + 4] for place in range(16, end - 3, 4)}

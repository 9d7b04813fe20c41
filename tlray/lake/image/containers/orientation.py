"""The orientation that a camera wrote beside its pixels, as EXIF or as XMP; read where it can be, however broken the rest is.

Sources: Exif 2.32 (4.5.2 and tag 0x0112), TIFF 6.0 (section 2) and XMP part 2 (the tiff namespace).
"""

import re
import struct

_EXIF_HEADER = b"Exif\x00\x00"
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}
"""TIFF's types of integers, and their codes in `struct`."""

_IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])")


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Find the orientation: EXIF's, else XMP's, else 1.

    Args:
        exif: a TIFF structure, with or without `Exif` in front; None where there is none.
        xmp: an XML document; None where there is none.
    """
    found = _of_exif(exif) if exif else None
    if found is None and xmp:
        match = _IN_XMP.search(xmp)
        found = int(match[1]) if match else None
    return 1 if found is None else found


def _of_exif(exif: bytes) -> int | None:
    """The value of tag 0x0112 in the first directory; None where it is missing or cannot be reached."""
    while exif.startswith(_EXIF_HEADER):
        exif = exif[len(_EXIF_HEADER) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "L", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHL", exif, entry)
            if tag == _ORIENTATION and count and kind in _INTEGERS:
                code = order + _INTEGERS[kind]
                inline = count * struct.calcsize(code) <= 4
                place = entry + 8 if inline else struct.unpack_from(order + "L", exif, entry + 8)[0]
                return int(struct.unpack_from(code, exif, place)[0])
    except struct.error:
        pass  # it ends here; what came before has no orientation
    return None

"""TIFF and BigTIFF: keeps the first picture, and of its tags those that pixels depend on.

The kept tags are written in the place of the first directory, so that strips and tiles stay where they are; the decoder sees
that directory alone. Lists are checked against the size of the file before anything is made of them. Orientation is read here
and applied by us, as for other formats.

Source: TIFF 6.0; tag numbers that it lacks are from libtiff's tiff.h.
"""

import struct
from dataclasses import dataclass
from typing import Any

from PIL import TiffImagePlugin

from tlray.errors import ImageError
from tlray.lake.image.containers.orientation import orientation_of
from tlray.lake.image.containers.picture import Picture, corrupt, truncated, unsupported

_SUBFILE_TYPE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_PLACES, _ORIENTATION, _STRIP_BYTES, _TILE_WIDTH, _TILE_LENGTH, _TILE_PLACES, _TILE_BYTES = (
    273,
    274,
    279,
    322,
    323,
    324,
    325,
)
_SAMPLES, _PLANAR, _SUBSAMPLING, _XMP = 277, 284, 530, 700

_MOST_ENTRIES = 2**16
_MOST_PARTS = 2**18
"""Strips or tiles. A picture has one strip for each row and each plane of colour at most, as encoders write it."""

_TILE_MIN_LIMIT_PIXELS = 2**24
"""Tiles may be larger than the picture; they may have so many pixels, or as many as the picture."""

_MOST_VALUES = {
    _WIDTH: 1,
    _LENGTH: 1,
    _BITS: 64,
    _COMPRESSION: 1,
    _PHOTOMETRIC: 1,
    266: 1,  # FillOrder
    _STRIP_PLACES: _MOST_PARTS,
    _SAMPLES: 1,
    278: 1,  # RowsPerStrip
    _STRIP_BYTES: _MOST_PARTS,
    _PLANAR: 1,
    292: 1,  # T4Options
    293: 1,  # T6Options
    317: 1,  # Predictor
    320: 3 * 2**16,  # ColorMap
    _TILE_WIDTH: 1,
    _TILE_LENGTH: 1,
    _TILE_PLACES: _MOST_PARTS,
    _TILE_BYTES: _MOST_PARTS,
    332: 1,  # InkSet
    334: 1,  # NumberOfInks
    338: 64,  # ExtraSamples
    339: 64,  # SampleFormat
    347: 2**20,  # JPEGTables
    512: 1,  # JPEGProc, and the other tags of JPEG before its own technical note
    513: 1,
    514: 1,
    515: 1,
    519: 64,
    520: 64,
    521: 64,
    529: 3,  # YCbCrCoefficients
    _SUBSAMPLING: 2,
    532: 6,  # ReferenceBlackWhite
}
"""The tags that are kept, and how many values of each are. A picture of more strips or tiles is not read."""

_OF_YCBCR = (529, 530, 532)
_RGB, _CMYK, _YCBCR = 2, 5, 6  # values of _PHOTOMETRIC
_UNCOMPRESSED, _OLD_JPEG = 1, 6  # of _COMPRESSION

_LISTS_OF_PLACES = (_STRIP_PLACES, _STRIP_BYTES, _TILE_PLACES, _TILE_BYTES)

_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value of each type (TIFF 6.0, section 2; 16 to 18 are BigTIFF's)."""

_INTEGERS = {1: "B", 3: "H", 4: "L", 16: "Q"}

_OTHER_COMPRESSIONS = {
    32766: "NeXT",
    33003: "JPEG 2000 (Aperio)",
    33004: "JPEG 2000",
    33005: "JPEG 2000 (Aperio)",
    34661: "JBIG",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34887: "LERC",
    34892: "lossy DNG",
    34927: "JPEG 2000",
    50001: "WebP",  # which libtiff can, but not as it is built for Pillow
    50002: "JPEG XL",
    52546: "JPEG XL",
    65000: "Kodak DCR",
    65535: "Pentax PEF",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a directory: its type, how many values it has, and the bytes of these or of the place where they are."""

    kind: int
    count: int
    field: bytes


class _Directory:
    """The first directory of a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data.startswith(b"II") else ">"
        self.big = b"+" in data[2:4]
        self.place_code, self.place_bytes = ("Q", 8) if self.big else ("L", 4)
        self.entry_code = f"HH{self.place_code}{self.place_bytes}s"
        try:
            self.entries = self._read()
        except struct.error as error:
            raise truncated("the file ends before its first directory does") from error

    def _read(self) -> dict[int, _Entry]:
        (self.start,) = self.unpack(self.place_code, 8 if self.big else 4)
        if self.start < (16 if self.big else 8):
            raise corrupt("the first directory lies in the header")
        count_code = "Q" if self.big else "H"
        (count,) = self.unpack(count_code, self.start)
        first = self.start + struct.calcsize(self.order + count_code)
        entries: dict[int, _Entry] = {}
        for index in range(min(count, _MOST_ENTRIES)):
            tag, *entry = self.unpack(self.entry_code, first + index * struct.calcsize(self.order + self.entry_code))
            entries.setdefault(tag, _Entry(*entry))
        return entries

    def unpack(self, code: str, place: int) -> tuple[Any, ...]:
        """Values of some codes of `struct` at a place of the file.

        Raises:
            struct.error: they lie behind its end.
        """
        if place > len(self.data):
            raise struct.error("behind the end")
        return struct.unpack_from(self.order + code, self.data, place)

    def raw(self, tag: int, most: int | None = None) -> bytes:
        """The bytes of a tag's values, of the first `most` of them; empty where the tag is missing.

        Raises:
            ImageError: `truncated`: they lie behind the end.
        """
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _TYPES:
            return b""
        count = entry.count if most is None else min(entry.count, most)
        if entry.count * _TYPES[entry.kind] <= self.place_bytes:
            return entry.field[: count * _TYPES[entry.kind]]
        (place,) = struct.unpack(self.order + self.place_code, entry.field)
        if place + entry.count * _TYPES[entry.kind] > len(self.data):
            raise truncated(f"the values of tag {tag} lie behind the end of the file")
        return self.data[place : place + count * _TYPES[entry.kind]]

    def integers(self, tag: int, most: int = 8) -> tuple[int, ...]:
        """The first values of a tag of integers; none where it is missing or of another type."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _INTEGERS:
            return ()
        raw, code = self.raw(tag, most), _INTEGERS[entry.kind]
        return struct.unpack(f"{self.order}{len(raw) // _TYPES[entry.kind]}{code}", raw)

    def integer(self, tag: int, default: int) -> int:
        """The first value of a tag of integers; the default where there is none."""
        return next(iter(self.integers(tag, 1)), default)

    def rewritten(self) -> bytes:
        """The file with a directory of the kept tags alone, in the place of its own, which is at least as long."""
        of_ycbcr = self.integer(_PHOTOMETRIC, 0) == _YCBCR or self.integer(_COMPRESSION, 1) == _OLD_JPEG
        tags = [tag for tag in sorted(_MOST_VALUES) if tag in self.entries and (of_ycbcr or tag not in _OF_YCBCR)]
        entries = [struct.pack(self.order + self.entry_code, tag, *self._kept(tag, _MOST_VALUES[tag])) for tag in tags]
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
        directory = b"".join((count, *entries, bytes(self.place_bytes)))
        header = self.data[:2] + (
            struct.pack(self.order + "HHHQ", 43, 8, 0, self.start)
            if self.big
            else struct.pack(self.order + "HL", 42, self.start)
        )
        rest = memoryview(self.data)
        return b"".join((header, rest[len(header) : self.start], directory, rest[self.start + len(directory) :]))

    def _kept(self, tag: int, most: int) -> tuple[int, int, bytes]:
        entry = self.entries[tag]
        if entry.kind not in _TYPES or not entry.count:
            raise corrupt(f"tag {tag} has no values, or values of an unknown type")
        count = min(entry.count, most)
        raw = self.raw(tag, count)
        if entry.count > most and tag in _LISTS_OF_PLACES:
            raise unsupported(f"TIFF of more than {most} strips or tiles")
        inline = len(raw) <= self.place_bytes
        return entry.kind, count, raw.ljust(self.place_bytes, b"\0") if inline else entry.field


def read_tiff(data: bytes) -> Picture:
    """Take the first picture of a TIFF file.

    Raises:
        ImageError: `corrupt`, `truncated` or `unsupported`.
    """
    if data.startswith(b"MM\x00+"):
        raise unsupported("BigTIFF of big-endian numbers")
    directory = _Directory(data)
    # Camera raw files (DNG, NEF, ARW) are TIFFs whose first picture is a preview: bit 0 says so (TIFF 6.0, NewSubfileType).
    if directory.integer(_SUBFILE_TYPE, 0) & 1:
        raise unsupported("camera raw, or a TIFF whose first picture is a preview")
    compression = directory.integer(_COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO or compression in _OTHER_COMPRESSIONS:
        raise unsupported(f"TIFF compressed by {_OTHER_COMPRESSIONS.get(compression, f'method {compression}')}")
    if compression == _UNCOMPRESSED:
        _refuse_what_is_misread(directory)
    size = directory.integer(_WIDTH, 0), directory.integer(_LENGTH, 0)
    tile = directory.integer(_TILE_WIDTH, 0), directory.integer(_TILE_LENGTH, 0)
    if tile[0] * tile[1] > max(size[0] * size[1], _TILE_MIN_LIMIT_PIXELS):
        raise corrupt(f"a picture of {size[0]} x {size[1]} pixels in tiles of {tile[0]} x {tile[1]}")
    return Picture(directory.rewritten(), size, _orientation(directory))


def _refuse_what_is_misread(directory: _Directory) -> None:
    """Pillow's own reader takes planes of 16 bits for planes of 8, and subsampled chroma for full; libtiff does not.

    Raises:
        ImageError: `unsupported`.
    """
    photometric, bits = directory.integer(_PHOTOMETRIC, 0), set(directory.integers(_BITS))
    in_planes = directory.integer(_PLANAR, 1) == 2 and directory.integer(_SAMPLES, 1) > 1
    if in_planes and not (photometric in (_RGB, _CMYK) and bits == {8}):
        raise unsupported("uncompressed TIFF in planes of other than 8 bits of RGB or CMYK")
    if photometric == _YCBCR and set(directory.integers(_SUBSAMPLING)) - {1}:
        raise unsupported("uncompressed TIFF with subsampled chroma")


def _orientation(directory: _Directory) -> int:
    try:
        return directory.integer(_ORIENTATION, 0) or orientation_of(None, directory.raw(_XMP))
    except ImageError:  # no pixel depends on them
        return 1


def is_cut(data: bytes) -> bool:
    """Whether the first directory, or a value that it points to, lies behind the end: writers put them last."""
    try:
        directory = _Directory(data)
        for tag in directory.entries:
            directory.raw(tag)
    except ImageError:
        return True
    return False

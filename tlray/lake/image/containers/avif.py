"""AVIF: hides EXIF and XMP from the decoder, and reads the clean aperture, which Pillow leaves out.

Rotation and mirroring are properties of the picture (`irot`, `imir`), which Pillow reads; by the specification (MIAF, 7.3.6.7)
they alone count, and EXIF's orientation does not. The clean aperture (`clap`) says which part of the decoded picture is shown,
before it is turned. One that is not made of whole pixels within the picture does not count, as in libavif.

Sources: ISO/IEC 14496-12 (boxes; 12.1.4 for the clean aperture), ISO/IEC 23008-12 (items), ISO/IEC 23000-22 (MIAF).
"""

import struct
from collections.abc import Iterator
from fractions import Fraction

from tlray.lake.image.containers.picture import Picture, Rectangle

_MAX_BOXES = 2**16  # of one level
_SEQUENCE = b"avis"
_SAMPLE_ENTRY_BYTES = 78  # of a visual sample entry, behind its box header
_BOX_HEADER_BYTES = 8
_HEADER_BYTES = {b"meta": 4, b"stsd": 8}  # of boxes that have more in front of the boxes within them
_METADATA_ITEMS = (b"Exif", b"mime")
_UNKNOWN_ITEM = b"skip"
_FIRST_RULE_WITH_APERTURE = 3

_Box = tuple[bytes, int, int]
"""The kind of a box, and where its body begins and ends."""


def read_avif(data: bytes, image_rule: int) -> Picture:
    """Take the first picture of an AVIF file; Pillow finds out its size before it makes room for it.

    Args:
        data: a file's bytes.
        image_rule: 2 ignores the clean aperture.
    """
    try:
        data = _without_metadata(data)
        shown = _shown(data) if image_rule >= _FIRST_RULE_WITH_APERTURE else None
    except (struct.error, IndexError):
        shown = None  # a damaged structure, which the decoder will tell
    return Picture(data, shown=shown)


def is_cut(data: bytes) -> bool:
    """Whether the file ends before the last of its boxes does."""
    position = max((end for _, _, end in _boxes(data, 0, len(data))), default=0)
    return position > len(data) or 0 < len(data) - position < _BOX_HEADER_BYTES


def _boxes(data: bytes, position: int, end: int) -> Iterator[_Box]:
    """Yield the boxes from one place to another; the last may end behind it where the file is cut or damaged."""
    for _ in range(_MAX_BOXES):
        if position + _BOX_HEADER_BYTES > end:
            return
        size, kind = struct.unpack_from(">L4s", data, position)
        body = position + _BOX_HEADER_BYTES
        if size == 1 and body + 8 <= end:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif size == 0:
            size = end - position
        if size < body - position:
            return
        position += size
        yield kind, body, position


def _inside(data: bytes, *path: bytes) -> tuple[int, int] | None:
    """Where the body of the first box at a path begins and ends; None where there is none."""
    start, end = 0, len(data)
    for kind in path:
        found = next((box for box in _boxes(data, start, end) if box[0] == kind), None)
        if found is None:
            return None
        start, end = found[1] + _HEADER_BYTES.get(kind, 0), min(found[2], end)
    return start, end


def _without_metadata(data: bytes) -> bytes:
    """The file with another type for its items of EXIF and XMP, so that nothing is expected of them."""
    items = _inside(data, b"meta", b"iinf")
    if items is None:
        return data
    changed = None
    start, end = items
    for kind, body, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[body] >= 2:
            place = body + (8 if data[body] == 2 else 10)
            if data[place : place + 4] in _METADATA_ITEMS:
                changed = changed or bytearray(data)
                changed[place : place + 4] = _UNKNOWN_ITEM
    return data if changed is None else bytes(changed)


def _shown(data: bytes) -> Rectangle | None:
    """The clean aperture of the sequence's first track or of the primary item; None where all is shown."""
    if data[8:12] == _SEQUENCE:
        samples = _inside(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"av01")
        if samples is not None:
            width, height = struct.unpack_from(">HH", data, samples[0] + 24)
            properties = list(_boxes(data, samples[0] + _SAMPLE_ENTRY_BYTES, samples[1]))
            return _aperture(data, properties, (width, height))
    properties = list(_properties_of_primary_item(data))
    extents = next((body for kind, body, _ in properties if kind == b"ispe"), None)
    return None if extents is None else _aperture(data, properties, struct.unpack_from(">LL", data, extents + 4))


def _properties_of_primary_item(data: bytes) -> Iterator[_Box]:
    primary = _inside(data, b"meta", b"pitm")
    container = _inside(data, b"meta", b"iprp", b"ipco")
    associations = _inside(data, b"meta", b"iprp", b"ipma")
    if primary is None or container is None or associations is None:
        return
    (item,) = struct.unpack_from(">H" if data[primary[0]] == 0 else ">L", data, primary[0] + 4)
    properties = list(_boxes(data, *container))
    place = associations[0]
    version, flags, entries = data[place], data[place + 3], struct.unpack_from(">L", data, place + 4)[0]
    item_code, index_code = ">H" if version == 0 else ">L", ">H" if flags & 1 else ">B"
    place += 8
    for _ in range(min(entries, _MAX_BOXES)):
        (owner,) = struct.unpack_from(item_code, data, place)
        place += struct.calcsize(item_code)
        indices = struct.unpack_from(f">{data[place]}{index_code[1]}", data, place + 1)
        place += 1 + len(indices) * struct.calcsize(index_code)
        if owner == item:
            essential = 0x8000 if flags & 1 else 0x80
            yield from (properties[(index & ~essential) - 1] for index in indices if 0 < index & ~essential <= len(properties))


def _aperture(data: bytes, properties: list[_Box], size: tuple[int, ...]) -> Rectangle | None:
    """What the clean aperture says of a picture of a size (width, height); None where it says nothing that can be done."""
    place = next((body for kind, body, _ in properties if kind == b"clap"), None)
    if place is None:
        return None
    values = struct.unpack_from(">LLLLlLlL", data, place)
    if not all(values[1::2]):
        return None
    sides = Fraction(*values[0:2]), Fraction(*values[2:4])
    offsets = Fraction(*values[4:6]), Fraction(*values[6:8])
    # The aperture's centre is that of the picture, moved by the offset.
    starts = [offset + (whole - side) / 2 for offset, whole, side in zip(offsets, size, sides, strict=True)]
    ends = [start + side for start, side in zip(starts, sides, strict=True)]
    left, top, right, bottom = edges = (*starts, *ends)
    whole_pixels = all(edge.denominator == 1 for edge in edges)
    if not (whole_pixels and 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        return None
    return int(left), int(top), int(right), int(bottom)

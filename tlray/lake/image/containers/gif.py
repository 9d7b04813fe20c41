"""GIF: keeps the screen, the global palette and the first frame with its transparency; no comment or extension besides.

Source: the GIF89a specification (CompuServe, 1990).
"""

import struct

from tlray.lake.image.containers.picture import Picture, corrupt, truncated

_SCREEN_BYTES = 13
_IMAGE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL = 0xF9
_MAX_EXTENSIONS = 2**16
_MAX_BLOCKS = 2**20  # of up to 255 bytes
_TRANSPARENT = 1  # a flag of the graphic control extension


def read_gif(data: bytes) -> Picture:
    """Take the first frame of a GIF file.

    Raises:
        ImageError: `corrupt` or `truncated`.
    """
    if is_cut(data):
        raise truncated("the file ends in its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = palette_end = _SCREEN_BYTES + _palette_bytes(flags)
    control = b""
    for _ in range(_MAX_EXTENSIONS):
        if data[position : position + 1] == bytes([_IMAGE]):
            break
        if position >= len(data):
            raise truncated("the file ends before its first frame")
        if data[position] == _END:
            raise corrupt("there is no frame")
        if data[position] == _EXTENSION:
            control = _control(data[position + 1 : position + 7]) or control
            position = _blocks_end(data, position + 2)
        else:
            position += 1
    else:
        raise corrupt(f"more than {_MAX_EXTENSIONS} extensions before the first frame")
    if position + 10 > len(data):
        raise truncated("the file ends in its first frame")
    left, top, frame_width, frame_height, flags = struct.unpack_from("<4HB", data, position + 1)
    right, bottom = left + frame_width, top + frame_height
    return Picture(
        b"".join((data[:palette_end], control, memoryview(data)[position:])),  # the decoder stops behind the first frame
        (max(width, right), max(height, bottom)),  # Pillow widens the screen to hold the frame
        drawn=(left, top, right, bottom),
    )


def _control(extension: bytes) -> bytes:
    """A graphic control extension that says which colour is transparent and nothing else; empty where there is none."""
    if len(extension) < 6 or extension[0] != _GRAPHIC_CONTROL or extension[1] < 4 or not extension[2] & _TRANSPARENT:
        return b""
    return bytes([_EXTENSION, _GRAPHIC_CONTROL, 4, _TRANSPARENT, 0, 0, extension[5], 0])


def is_cut(data: bytes) -> bool:
    """Whether the file ends before its first palette begins; Pillow says itself what else is missing."""
    return len(data) < _SCREEN_BYTES


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks_end(data: bytes, position: int) -> int:
    """Where a series of blocks, each with its length in front and an empty one at the end, is over."""
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or not data[position]:
            return position + 1
        position += 1 + data[position]
    raise corrupt(f"an extension of more than {_MAX_BLOCKS} blocks")

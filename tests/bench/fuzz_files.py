"""Small image files of every format that is read, and ways to damage them; all from a seed.

A file is damaged as a list of pieces (chunks, segments, boxes, entries of a directory) where its format has them, and as bytes.
"""

import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")

_TIFF_COMPRESSIONS = (
    None,
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "jpeg",
    "group3",
    "group4",
    "tiff_ccitt",
    "lzma",
    "zstd",
)
_ODD_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def make_file(image_format: str, seed: int) -> bytes:
    """Draw and encode a picture, of a size, mode and kind that the seed decides."""
    choose = random.Random(f"{image_format} {seed}")
    while True:
        try:
            return _MAKERS[image_format](choose)
        except (OSError, ValueError, KeyError):
            continue  # a combination that the encoder refuses


def _picture(choose: random.Random, modes: tuple[str, ...]) -> Image.Image:
    """Smoothed noise, with a hole where the mode has alpha."""
    noise = np.random.default_rng(choose.getrandbits(32)).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    size = choose.randint(1, 90), choose.randint(1, 70)
    image = Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC)
    mode = choose.choice(modes)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("I", "F", "1", "L", "LA", "P", "PA"):
        image = image.convert("LA" if mode == "LA" else "RGBA" if mode == "PA" else "RGB")
    return image.convert(mode)


def _exif(choose: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = choose.randint(0, 9)
    exif[0x010E] = "x" * choose.randint(0, 300)
    return exif.tobytes()


def _save(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _decorations(choose: random.Random) -> dict[str, object]:
    """Options that no pixel depends on."""
    decorations: dict[str, object] = {}
    if choose.random() < 0.4:
        decorations["exif"] = _exif(choose)
    if choose.random() < 0.3:
        decorations["icc_profile"] = choose.randbytes(choose.randint(0, 2000))
    return decorations


def _frames(choose: random.Random, image: Image.Image) -> dict[str, object]:
    """Options that make an animation or several pages of a picture, in half of the cases."""
    if choose.random() < 0.5:
        return {}
    others = [image.transpose(Image.Transpose.ROTATE_180) for _ in range(choose.randint(1, 3))]
    return {"save_all": True, "append_images": others}


def _jpeg(choose: random.Random) -> bytes:
    image = _picture(choose, ("RGB", "RGB", "L", "CMYK", "YCbCr"))
    options = {
        "quality": choose.randint(1, 100),
        "progressive": choose.random() < 0.4,
        "optimize": choose.random() < 0.3,
        "restart_marker_blocks": choose.choice((0, 0, 1, 5)),
    }
    if image.mode != "CMYK":
        options["subsampling"] = choose.choice((0, 1, 2))
    if choose.random() < 0.2:
        options["comment"] = b"a comment"
    if choose.random() < 0.1:
        return _save(image.convert("RGB"), "MPO", save_all=True, append_images=[image.convert("RGB")])
    return _save(image, "JPEG", **options, **_decorations(choose))


def _png(choose: random.Random) -> bytes:
    image = _picture(choose, ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"))
    options: dict[str, object] = {"compress_level": choose.choice((0, 6))}
    if image.mode == "P" and choose.random() < 0.5:
        options["bits"] = choose.choice((1, 2, 4, 8))
    key = {"1": 0, "L": 128, "I;16": 1000, "RGB": (1, 2, 3), "P": choose.choice((3, bytes(range(200))))}.get(image.mode)
    if key is not None and choose.random() < 0.4:
        options["transparency"] = key
    animated = _frames(choose, image) if image.mode in ("L", "RGB", "RGBA") else {}
    return _save(image, "PNG", **options, **_decorations(choose), **animated)


def _webp(choose: random.Random) -> bytes:
    image = _picture(choose, ("RGB", "RGBA"))
    options = {"lossless": choose.random() < 0.5, "quality": choose.randint(0, 100), "method": choose.randint(0, 4)}
    return _save(image, "WEBP", **options, **_decorations(choose), **_frames(choose, image))


def _avif(choose: random.Random) -> bytes:
    image = _picture(choose, ("RGB", "RGBA", "L"))
    options = {"quality": choose.randint(0, 100), "speed": 10, "subsampling": choose.choice(("4:4:4", "4:2:0"))}
    more = _frames(choose, image) or _decorations(choose)  # libavif 1.4.2 crashes while it writes both
    return _save(image, "AVIF", **options, **more)


def _tiff(choose: random.Random) -> bytes:
    image = _picture(choose, ("1", "L", "LA", "I;16", "I", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "F"))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if choose.random() < 0.3:
        tags[274] = choose.randint(1, 8)
    if choose.random() < 0.5:
        tags[278] = choose.randint(1, 20)
    options = {"compression": choose.choice(_TIFF_COMPRESSIONS), "big_tiff": choose.random() < 0.2, "tiffinfo": tags}
    return _save(image, "TIFF", **options, **_frames(choose, image))


def _bmp(choose: random.Random) -> bytes:
    image = _picture(choose, ("1", "L", "P", "P", "RGB", "RGBA"))
    return _run_length_bmp(choose, image) if image.mode == "P" and choose.random() < 0.5 else _save(image, "BMP")


def _run_length_bmp(choose: random.Random, image: Image.Image) -> bytes:
    """RLE8, which Pillow does not write: each row as runs of one and ends of lines."""
    levels_HW = np.asarray(image)[::-1]
    body = b"".join(b"".join(bytes([1, level]) for level in row) + b"\0\0" for row in levels_HW) + b"\0\1"
    palette = bytes(choose.getrandbits(8) for _ in range(1024))
    header = struct.pack("<LllHHLLllLL", 40, image.width, image.height, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(body), 0, 0, start) + header + palette + body


def _gif(choose: random.Random) -> bytes:
    image = _picture(choose, ("P", "L", "RGB", "RGBA"))
    options: dict[str, object] = {"interlace": choose.randint(0, 1), "disposal": choose.randint(0, 3)}
    if choose.random() < 0.4:
        options["comment"] = "a comment"
    return _save(image, "GIF", **options, **_frames(choose, image))


def _ppm(choose: random.Random) -> bytes:
    image = _picture(choose, ("1", "L", "I;16", "RGB"))
    if choose.random() < 0.3:
        most = choose.choice((1, 7, 255, 999))
        values = " ".join(str(choose.randint(0, most)) for _ in range(48))
        return f"P{choose.choice('23')}\n# a comment\n4 4\n{most}\n{values}\n".encode()
    return _save(image, "PPM")


_MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "AVIF": _avif,
    "TIFF": _tiff,
    "BMP": _bmp,
    "GIF": _gif,
    "PPM": _ppm,
}


def pieces_of(data: bytes) -> list[bytes]:
    """Cut a file where its format has borders; joined they are the file. One piece where no border is known."""
    borders = sorted({0, len(data), *(border for border in _borders(data) if 0 < border < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


def _borders(data: bytes) -> Iterator[int]:
    if data.startswith(b"\x89PNG"):
        yield from _records(data, 8, lambda place: 12 + int.from_bytes(data[place : place + 4], "big"))
    elif data.startswith(b"\xff\xd8"):
        yield from (place for place in range(2, len(data) - 1) if data[place] == 0xFF and 0xC0 <= data[place + 1] <= 0xFE)
    elif data.startswith(b"RIFF"):
        yield from _records(data, 12, lambda place: 8 + (int.from_bytes(data[place + 4 : place + 8], "little") + 1) // 2 * 2)
    elif data[4:8] == b"ftyp":
        yield from _boxes(data, 0, len(data))
    elif data.startswith((b"II", b"MM")):
        directory = int.from_bytes(data[4:8], "little" if data.startswith(b"II") else "big")
        yield from range(directory + 2, min(len(data), directory + 300), 12)
    elif data.startswith(b"GIF"):
        yield from (place for place in range(13, len(data)) if data[place] in b"!,;")
    else:
        yield from (2, 14, 54, len(data) // 2)


def _records(data: bytes, place: int, length: Callable[[int], int]) -> Iterator[int]:
    while place < len(data):
        yield place
        place += length(place)


def _boxes(data: bytes, place: int, end: int) -> Iterator[int]:
    """Borders of boxes and of those within the boxes that hold others."""
    while place + 8 <= end:
        size, kind = struct.unpack_from(">L4s", data, place)
        yield place
        if kind in (b"meta", b"iprp", b"ipco", b"iinf", b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            inside = place + 8 + {b"meta": 4, b"iinf": 6}.get(kind, 0)
            yield from _boxes(data, inside, min(place + size, end))
        place += max(size, 8)


def damage(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """Damage a file once to three times.

    Args:
        data: the file.
        other: another of the same format, of which parts are put in.
        choose: decides how.
    """
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        data = choose.choice(_DAMAGES)(data, other, choose) or b"\0"
    return _with_right_checksums(data) if choose.random() < 0.5 else data


def _flip(data: bytes, _: bytes, choose: random.Random) -> bytes:
    changed = bytearray(data)
    for _index in range(choose.choice((1, 1, 2, 5, 20))):
        if changed:
            changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _cut(data: bytes, _: bytes, choose: random.Random) -> bytes:
    return data[: choose.randrange(len(data) + 1)]


def _splice(data: bytes, other: bytes, choose: random.Random) -> bytes:
    return data[: choose.randrange(len(data) + 1)] + other[choose.randrange(len(other) + 1) :]


def _leave_out(data: bytes, _: bytes, choose: random.Random) -> bytes:
    pieces = pieces_of(data)
    del pieces[choose.randrange(len(pieces))]
    return b"".join(pieces)


def _double(data: bytes, _: bytes, choose: random.Random) -> bytes:
    pieces = pieces_of(data)
    index = choose.randrange(len(pieces))
    pieces[index:index] = [pieces[index]] * choose.choice((1, 1, 3, 50))
    return b"".join(pieces)


def _swap(data: bytes, other: bytes, choose: random.Random) -> bytes:
    pieces, others = pieces_of(data), pieces_of(other)
    pieces[choose.randrange(len(pieces))] = choose.choice(others)
    return b"".join(pieces)


def _lie(data: bytes, _: bytes, choose: random.Random) -> bytes:
    """Put an odd number near a border, where sizes, counts and places are, or in the first bytes."""
    borders = [0, *np.cumsum([len(piece) for piece in pieces_of(data)]).tolist()]
    changed = bytearray(data)
    width = choose.choice((1, 2, 3, 4))
    place = min(choose.choice(borders) + choose.randrange(16), max(0, len(data) - width))
    number = choose.choice((*_ODD_NUMBERS, len(data), choose.getrandbits(32))) & (1 << 8 * width) - 1
    changed[place : place + width] = number.to_bytes(width, choose.choice(("big", "little")))
    return bytes(changed)


_DAMAGES = (_flip, _flip, _cut, _splice, _leave_out, _double, _swap, _lie, _lie, _lie)


def _with_right_checksums(data: bytes) -> bytes:
    """The same with each chunk's checksum as it should be, so that a PNG's damage gets beyond them."""
    if not data.startswith(b"\x89PNG"):
        return data
    changed = bytearray(data)
    for place in _records(data, 8, lambda place: 12 + int.from_bytes(data[place : place + 4], "big")):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 <= len(data):
            changed[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
    return bytes(changed)

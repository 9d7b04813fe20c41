"""From bytes to RGB pixels: orientation, alpha, depth, colour; against reference pictures, NumPy and the formats' rules."""

import io
import itertools
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import corpora
from tlray.errors import ImageError, ImageErrorCode
from tlray.lake.image.decode import decode_image, to_rgb
from tlray.recipe import Preprocessing

MAX_PIXELS = 100_000_000
PREPROCESSING = Preprocessing(resize=(256, 256), crop=(224, 224), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))

STORED_FROM_SHOWN = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: np.rot90(shown, -1),
}
"""What a camera stores for each value of Exif's Orientation (Exif 2.32, 4.6.5)."""

OTHER_THAN_THE_REFERENCE = {
    "V5_A8_R8_G8_B8_Rgb.bmp": "its compression is BI_RGB, for which masks, alpha among them, do not count",
    "pal4rletrns.bmp": "pixels that RLE skips are palette entry 0; the format has no transparency",
    "oob.gif": "Pillow widens the screen to hold the frame",
    "issue_1455_oversized.gif": "Pillow widens the screen to hold the frame",
    "hpredict.tiff": "the reference leaves associated alpha multiplied in",
    "hpredict_packbits.tiff": "the reference leaves associated alpha multiplied in",
}


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(to_rgb(data, max_pixels=MAX_PIXELS))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG made by hand; rows begin with their filter byte."""
    header = struct.pack(">2L5B", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def tiff(width: int, height: int, strip: bytes, order: str = "<", **tags: int) -> bytes:
    """An uncompressed grey TIFF made by hand; tags by number, as t258=12."""
    values = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack(order + "HHLL", tag, 4, 1, values[tag]) for tag in sorted(values))
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    return (
        magic + struct.pack(order + "L", 8 + len(strip)) + strip + struct.pack(order + "H", len(values)) + entries + b"\0\0\0\0"
    )


def on_white(image: Image.Image) -> np.ndarray:
    """Reference pictures as float RGB levels, alpha composited on white."""
    if image.mode.startswith("I;16"):
        return np.repeat(np.asarray(image)[:, :, None] / 257.0, 3, axis=2)
    pixels_HWC = np.asarray(image.convert("RGBA")).astype(float)
    alpha_HW1 = pixels_HWC[:, :, 3:] / 255
    return (pixels_HWC[:, :, :3] * alpha_HW1 + 255 * (1 - alpha_HW1)).round()


@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_the_nine_exif_photos_show_the_same_picture(kind: str) -> None:
    folder = corpora.corpus("exif-orientation")
    whole = PREPROCESSING.model_copy(update={"resize": (300, 300), "crop": (300, 300)})
    decoded = [decode_image((folder / f"{kind}_{index}.jpg").read_bytes(), whole, max_pixels=MAX_PIXELS) for index in range(9)]
    assert len({(image.width, image.height) for image in decoded}) == 1
    for one, other in itertools.combinations(decoded, 2):
        assert np.abs(one.pixels_HWC.astype(int) - other.pixels_HWC.astype(int)).mean() < 2
    turned_HWC = np.rot90(decoded[0].pixels_HWC)
    assert np.abs(decoded[0].pixels_HWC.astype(int) - turned_HWC).mean() > 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("image_format", "tolerance"), [("PNG", 0), ("TIFF", 0), ("WEBP", 0), ("JPEG", 6), ("AVIF", 15)])
def test_orientation_in_every_format(image_format: str, tolerance: int, orientation: int) -> None:
    rows_H1, columns_1W = np.mgrid[0:32, 0:48]
    shown_HWC = np.stack([rows_H1 * 8, columns_1W * 5, 255 - rows_H1 * 4], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED_FROM_SHOWN[orientation](shown_HWC)))
    lossless = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(image_format, {})
    data = encoded(stored, image_format, exif=exif.tobytes(), **(lossless or {"quality": 98}))
    assert np.abs(rgb(data).astype(int) - shown_HWC).max() <= tolerance


@pytest.mark.filterwarnings("ignore")
def test_broken_exif_means_no_orientation() -> None:
    data = encoded(Image.new("RGB", (6, 4), "red"), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert rgb(data).shape == (4, 6, 3)


def test_reference_pictures_match() -> None:
    references = corpora.corpus("image-rs/reference")
    images = corpora.corpus("image-rs/images")
    matched: set[str] = set()
    for reference in sorted(references.rglob("*.png")):  # later frames of animations end in .anim_02.png and so on
        if ".anim_" in reference.name:
            continue
        source = images / reference.relative_to(references).with_suffix("")
        try:
            pixels_HWC = rgb(source.read_bytes())
        except ImageError as error:
            assert error.code != ImageErrorCode.CORRUPT or source.suffix == ".tga", source.name
            continue
        expected_HWC = on_white(Image.open(reference))
        if source.name in OTHER_THAN_THE_REFERENCE:
            continue
        difference_HWC = np.abs(pixels_HWC - expected_HWC)
        # JPEG decoders may differ by rounding and by how they enlarge chroma.
        most, mean = (5, 0.2) if source.suffix == ".jpg" else (1, 1)
        assert difference_HWC.max() <= most, source.name
        assert difference_HWC.mean() <= mean, source.name
        matched.add(source.suffix)
    assert matched >= {".bmp", ".gif", ".jpg", ".pbm", ".png", ".tiff", ".webp"}


def test_16_bit_grey_keeps_its_high_byte() -> None:
    ramp_HW = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected_HW = (ramp_HW >> 8).astype(np.uint8)
    pgm = b"P5 256 256 65535\n" + ramp_HW.astype(">u2").tobytes()
    files = {
        "png": encoded(Image.fromarray(ramp_HW), "PNG"),
        "tiff": encoded(Image.fromarray(ramp_HW), "TIFF"),
        "tiff lzw": encoded(Image.fromarray(ramp_HW), "TIFF", compression="tiff_lzw"),
        "tiff big endian": tiff(256, 256, ramp_HW.astype(">u2").tobytes(), ">"),
        "tiff white is zero": tiff(256, 256, (65535 - ramp_HW).tobytes(), t262=0),
        "tiff 32-bit signed": encoded(Image.fromarray(ramp_HW.astype(np.int32)), "TIFF"),
        "tiff 32-bit unsigned": tiff(256, 256, ramp_HW.astype("<u4").tobytes(), t258=32),
        "pgm": pgm,
    }
    for name, data in files.items():
        np.testing.assert_array_equal(rgb(data), np.repeat(expected_HW[:, :, None], 3, axis=2), err_msg=name)


def test_16_bit_colour_keeps_its_high_byte() -> None:
    levels_HWC = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row_WC.astype(">u2").tobytes() for row_WC in levels_HWC)
    np.testing.assert_array_equal(rgb(png(30, 20, 16, 2, rows)), levels_HWC >> 8)


def test_12_bit_grey_tiff() -> None:
    low_to_high = b"".join(((one << 12) | two).to_bytes(3, "big") for one, two in itertools.pairwise([0, 1000, 2048, 4095] * 8))
    levels = [level for pair in itertools.pairwise([0, 1000, 2048, 4095] * 8) for level in pair]
    pixels_HWC = rgb(tiff(len(levels), 1, low_to_high, t258=12))
    assert pixels_HWC[0, :, 0].tolist() == [level >> 4 for level in levels]


@pytest.mark.parametrize("levels", [[-1, 5], [0, 70000]])
def test_integers_without_a_white_level_are_unsupported(levels: list[int]) -> None:
    with pytest.raises(ImageError) as caught:
        rgb(encoded(Image.fromarray(np.array([levels], np.int32)), "TIFF"))
    assert caught.value.code == ImageErrorCode.UNSUPPORTED


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(image_format: str) -> None:
    pixels_HWC = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    lossless = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    image = Image.fromarray(pixels_HWC)
    assert np.abs(rgb(encoded(image, image_format, **lossless)) - on_white(image)).max() <= 1
    if image_format != "WEBP":
        grey = image.convert("LA")
        assert np.abs(rgb(encoded(grey, image_format)) - on_white(grey)).max() <= 1


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (2, 2), (4, 9), (8, 77), (16, 40000)])
def test_a_transparent_grey_is_white_at_every_depth(depth: int, key: int) -> None:
    other = 0 if key else 1
    width = 8
    levels = [key, other] * (width // 2)
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    pixels_HWC = rgb(png(width, 1, depth, 0, row, chunk(b"tRNS", struct.pack(">H", key))))
    assert pixels_HWC[0, :, 0].tolist() == [255, 0] * (width // 2)
    if depth != 1:
        opaque_HWC = rgb(png(width, 1, depth, 0, row))
        assert opaque_HWC[0, 0, 0] == (key * 255 // ((1 << depth) - 1) if depth < 16 else key >> 8)


@pytest.mark.parametrize(("depth", "scale"), [(8, 1), (16, 257)])
def test_a_transparent_colour_is_white(depth: int, scale: int) -> None:
    sample = ">u2" if depth == 16 else "u1"
    row = b"\0" + (np.array([10, 20, 30, 10, 20, 31]) * scale).astype(sample).tobytes()
    key = struct.pack(">3H", 10 * scale, 20 * scale, 30 * scale)
    assert rgb(png(2, 1, depth, 2, row, chunk(b"tRNS", key))).tolist() == [[[255, 255, 255], [10, 20, 31]]]


def test_transparent_palette_entries() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert rgb(encoded(image, "PNG", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    assert rgb(encoded(image, "GIF", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    half = rgb(encoded(image, "PNG", transparency=bytes([255, 128, 0])))
    assert np.abs(half.astype(int) - [[[255, 0, 0], [127, 255, 127], [255, 255, 255]]]).max() <= 1


def test_other_colour_spaces() -> None:
    colours = Image.fromarray(np.array([[[250, 10, 20], [20, 200, 40], [128, 128, 128], [255, 255, 255]]], np.uint8))
    wide = colours.resize((64, 16), Image.Resampling.NEAREST)
    expected_HWC = np.asarray(wide).astype(int)
    for data in (
        encoded(wide.convert("CMYK"), "JPEG", quality=98, subsampling=0),
        encoded(wide.convert("CMYK"), "TIFF"),
        encoded(wide.convert("YCbCr"), "TIFF"),
    ):
        assert np.abs(rgb(data).astype(int) - expected_HWC).max() <= 8
    assert rgb(encoded(Image.new("1", (8, 2), 1), "PNG")).tolist() == [[[255] * 3] * 8] * 2


def test_lab_goes_to_srgb() -> None:
    # CIELAB (D50) of sRGB's white, mid grey and red, from Lindbloom's formulas; in a TIFF, a and b are signed bytes.
    lab = [(100, 0, 0), (53.6, 0, 0), (54.3, 80.8, 69.9)]
    stored = b"".join(struct.pack("Bbb", round(lightness * 2.55), round(a), round(b)) for lightness, a, b in lab)
    data = encoded(Image.frombytes("LAB", (3, 1), stored), "TIFF")
    assert stored in data
    assert np.abs(rgb(data).astype(int) - [[[255] * 3, [128] * 3, [255, 0, 0]]]).max() <= 6


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(image_format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **lossless)
    assert (rgb(data) == (255, 0, 0)).all()


def test_decode_image_gives_the_crop_and_the_size_as_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encoded(Image.new("RGB", (400, 300)), "JPEG", exif=exif), PREPROCESSING, max_pixels=120_000)
    assert (image.width, image.height) == (300, 400)
    assert (image.pixels_HWC.dtype, image.pixels_HWC.shape) == (np.uint8, (224, 224, 3))
    assert image.pixels_HWC.flags.c_contiguous


def test_pillows_global_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image_format in ("JPEG", "PNG", "BMP", "GIF", "AVIF", "PPM"):
            assert rgb(encoded(Image.new("RGB", (20, 20)), image_format)).shape == (20, 20, 3)


def test_importing_takes_no_torch() -> None:
    code = "import sys, tlray.lake.image.decode; sys.exit(any(name in sys.modules for name in ('torch', 'torchvision', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0

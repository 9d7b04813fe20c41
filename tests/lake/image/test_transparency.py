"""Transparency is composited on white, whatever the format and the mode that the decoder picks; so is an open canvas."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.lake.image.making import MAX_PIXELS, encoded, png_chunk, rgb, tiff
from tlray.lake.image.decode import decode_image
from tlray.recipe import Preprocessing

WIDTH, HEIGHT = 96, 64
WHOLE = Preprocessing(resize=None, crop=(HEIGHT, WIDTH), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))


def frames() -> list[Image.Image]:
    """A red and a blue rectangle on nothing."""
    drawn = []
    for box, colour in (((30, 20, 60, 40), (255, 0, 0, 255)), ((10, 10, 90, 60), (0, 0, 255, 255))):
        frame = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
        ImageDraw.Draw(frame).rectangle(box, fill=colour)
        drawn.append(frame)
    return drawn


def first_on_white() -> np.ndarray:
    expected_HWC = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    expected_HWC[20:41, 30:61] = (255, 0, 0)
    return expected_HWC


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("GIF", {"disposal": 2}),
        ("GIF", {"disposal": 0}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": True, "background": (0, 0, 255, 255)}),
        ("WEBP", {"lossless": True, "minimize_size": True}),
        ("PNG", {}),
        ("PNG", {"default_image": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_what_the_first_frame_leaves_open_is_white(image_format: str, options: dict) -> None:
    first, second = frames()
    data = encoded(first, image_format, save_all=True, append_images=[second], duration=100, **options)
    assert np.abs(rgb(data).astype(int) - first_on_white()).max() <= (4 if image_format == "AVIF" else 1)


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_animation_of_frames_smaller_than_its_canvas(lossless: bool) -> None:
    """Made by hand: the header announces no alpha, the frame has none, and covers a part of the canvas."""
    part = Image.new("RGB", (30, 20), (255, 0, 0))
    still = encoded(part, "WEBP", lossless=lossless)
    frame = struct.pack("<L", 8)[:3] + struct.pack("<L", 5)[:3]  # at 16, 10: they count pairs of pixels
    frame += struct.pack("<L", 29)[:3] + struct.pack("<L", 19)[:3] + bytes(3) + b"\2" + still[12:]
    canvas = struct.pack("<L", WIDTH - 1)[:3] + struct.pack("<L", HEIGHT - 1)[:3]
    body = b"".join(
        name + struct.pack("<L", len(chunk)) + chunk
        for name, chunk in ((b"VP8X", b"\2\0\0\0" + canvas), (b"ANIM", b"\0\xff\0\xff\0\0"), (b"ANMF", frame), (b"ANMF", frame))
    )
    data = b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body
    expected_HWC = np.full((HEIGHT, WIDTH, 3), 255)
    expected_HWC[10:30, 16:46] = (255, 0, 0)
    assert np.abs(rgb(data) - expected_HWC).max() <= (1 if lossless else 3)
    older_HWC = decode_image(data, WHOLE, max_pixels=MAX_PIXELS, image_rule=2).pixels_HWC
    assert older_HWC[0, 0].tolist() == [0, 0, 0]  # as rule 2 had it, for tables that were made by it


def test_alpha_that_a_still_webp_does_not_announce() -> None:
    levels_HWC = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    for options in ({"lossless": True, "exact": True}, {"quality": 90}):
        announced = encoded(Image.fromarray(levels_HWC), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0", **options)
        assert announced[12:16] == b"VP8X" and announced[20] & 0x10
        silent = announced[:20] + bytes([announced[20] & ~0x10]) + announced[21:]
        np.testing.assert_array_equal(rgb(silent), rgb(announced))


def test_a_gif_whose_frames_lie_beside_each_other() -> None:
    left = Image.new("P", (10, 8), 1)
    left.putpalette([0, 0, 0, 255, 0, 0])
    data = bytearray(encoded(left, "GIF"))
    data[6:10] = struct.pack("<HH", 40, 30)  # the screen
    place = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[place + 1 : place + 5] = struct.pack("<HH", 5, 6)
    expected_HWC = np.full((30, 40, 3), 255)
    expected_HWC[6:14, 5:15] = (255, 0, 0)
    np.testing.assert_array_equal(rgb(bytes(data)), expected_HWC)


def on_white(colours_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    return colours_HWC * (alpha_HW[..., None] / 255) + 255 - alpha_HW[..., None].astype(float)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_of_alpha_in_a_tiff(order: str) -> None:
    """Straight (ExtraSamples 2), multiplied in (1), none (0); grey, palette, colour; 8 and 16 bits; whole and in planes."""
    random = np.random.default_rng(0)
    size, shape_HW = (7, 5), (5, 7)
    alpha_HW, grey_HW = random.integers(0, 256, (2, *shape_HW), dtype=np.uint8)
    colours_HWC = random.integers(0, 256, (*shape_HW, 3), dtype=np.uint8)
    multiplied_HWC = (colours_HWC * (alpha_HW[..., None] / 255)).round().astype(np.uint8)
    multiplied_HW = (grey_HW * (alpha_HW / 255)).round().astype(np.uint8)
    straight, joined = on_white(colours_HWC, alpha_HW), np.dstack([colours_HWC, alpha_HW])
    grey = on_white(np.repeat(grey_HW[..., None], 3, axis=2), alpha_HW)
    two, four = {"t258": [8, 8], "t277": 2}, {"t258": [8] * 4, "t277": 4, "t262": 2}
    wide = (joined.astype(np.uint16) * 257).astype(order + "u2")
    ramp = [level * 257 for level in range(256)]
    palette = {"t262": 3, "t320": [*ramp, *ramp[::-1], *([0] * 256)]}
    indexed = np.stack([grey_HW, 255 - grey_HW, np.zeros_like(grey_HW)], axis=2)
    cases = {
        "grey": (tiff(size, [np.dstack([grey_HW, alpha_HW]).tobytes()], order, t338=2, **two), grey),
        "grey, multiplied": (tiff(size, [np.dstack([multiplied_HW, alpha_HW]).tobytes()], order, t338=1, **two), grey),
        "palette": (
            tiff(size, [np.dstack([grey_HW, alpha_HW]).tobytes()], order, t338=2, **two, **palette),
            on_white(indexed, alpha_HW),
        ),
        "colour": (tiff(size, [joined.tobytes()], order, t338=2, **four), straight),
        "colour, unnamed": (tiff(size, [joined.tobytes()], order, **four), straight),
        "colour, multiplied": (
            tiff(size, [np.dstack([multiplied_HWC, alpha_HW]).tobytes()], order, t338=1, **four),
            straight,
        ),
        "colour, unused": (tiff(size, [joined.tobytes()], order, t338=0, **four), colours_HWC),
        "16 bits": (tiff(size, [wide.tobytes()], order, t338=2, **(four | {"t258": [16] * 4})), straight),
        "compressed": (tiff(size, [zlib.compress(joined.tobytes())], order, t338=2, t259=8, **four), straight),
        "planes": (tiff(size, [joined[..., index].tobytes() for index in range(4)], order, t338=2, t284=2, **four), straight),
        "compressed planes of 16 bits": (
            tiff(
                size,
                [zlib.compress(wide[..., index].tobytes()) for index in range(4)],
                order,
                **(four | {"t258": [16] * 4, "t338": 2, "t284": 2, "t259": 8}),
            ),
            straight,
        ),
    }
    for name, (data, expected_HWC) in cases.items():
        assert np.abs(rgb(data) - expected_HWC).max() <= 2, name


def test_transparency_of_every_kind_of_png() -> None:
    shape_HW = (4, 6)
    levels_HW = np.random.default_rng(0).integers(0, 4, shape_HW).astype(np.uint8)

    def png(depth: int, colour: int, rows: list[bytes], *chunks: bytes) -> bytes:
        header = png_chunk(b"IHDR", struct.pack(">2L5B", 6, 4, depth, colour, 0, 0, 0))
        body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + png_chunk(b"IEND", b"")

    palette = png_chunk(b"PLTE", bytes(range(0, 120, 10)))
    indexed = [row.tobytes() for row in levels_HW]
    alphas = png_chunk(b"tRNS", bytes([0, 128, 255]))
    expected_HWC = np.array([[255, 255, 255], [142, 147, 152], [60, 70, 80], [90, 100, 110]])[levels_HW]
    assert np.abs(rgb(png(8, 3, indexed, palette, alphas)).astype(int) - expected_HWC).max() <= 1
    assert (
        np.abs(rgb(png(8, 3, indexed, palette, png_chunk(b"tRNS", bytes([0, 128]) + b"\xff" * 254))) - expected_HWC).max() <= 1
    )
    packed = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 6:].ravel()).tobytes() for row in levels_HW]
    assert np.abs(rgb(png(2, 3, packed, palette, alphas)).astype(int) - expected_HWC).max() <= 1
    wide = [(row.astype(int) * 1000).astype(">u2").tobytes() for row in levels_HW]
    grey_HW = levels_HW.astype(int) * 1000 >> 8
    grey_HW[levels_HW == 2] = 255
    np.testing.assert_array_equal(rgb(png(16, 0, wide, png_chunk(b"tRNS", struct.pack(">H", 2000))))[:, :, 0], grey_HW)
    two = [np.stack([row * 80, 255 - row * 60], axis=1).tobytes() for row in levels_HW]
    grey_HW = levels_HW.astype(int) * 80
    expected_HWC = on_white(np.repeat(grey_HW[..., None], 3, axis=2), 255 - levels_HW.astype(int) * 60)
    assert np.abs(rgb(png(8, 4, two)) - expected_HWC).max() <= 1
    of_16_bits = [np.stack([row.astype(">u2") * 80 * 257, (255 - row.astype(">u2") * 60) * 257], axis=1) for row in levels_HW]
    assert np.abs(rgb(png(16, 4, [row.astype(">u2").tobytes() for row in of_16_bits])) - expected_HWC).max() <= 1

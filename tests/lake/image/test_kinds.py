"""Codes tell the truth: `unsupported` is a whole file of a kind that is not read, and says which; damage is another thing."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from tests.lake.image.making import MAX_PIXELS, code_of, encoded, gradient, rgb, segment, tiff
from tlray.errors import ImageError
from tlray.lake.image.decode import decode_image, to_rgb
from tlray.lake.image.formats import known_but_not_read
from tlray.recipe import Preprocessing

JPEG = encoded(Image.fromarray(gradient()), "JPEG", quality=95)


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        to_rgb(data, max_pixels=MAX_PIXELS)
    return str(caught.value)


def with_frame(marker: int, bits: int = 8, *, height: bytes | None = None) -> bytes:
    place = JPEG.index(b"\xff\xc0")
    height = height or JPEG[place + 5 : place + 7]
    return JPEG[: place + 1] + bytes([marker]) + JPEG[place + 2 : place + 4] + bytes([bits]) + height + JPEG[place + 7 :]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (with_frame(0xC1, 12), "JPEG of 12 bits a sample"),
        (with_frame(0xC2, 12), "JPEG of 12 bits a sample"),
        (with_frame(0xC3, 16), "JPEG of 16 bits a sample"),
        (with_frame(0xC3), "lossless JPEG without a predictor"),
        (with_frame(0xCB), "lossless JPEG in arithmetic codes"),
        *((with_frame(marker), "hierarchical JPEG") for marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE)),
        (with_frame(0xF7), "JPEG-LS"),
        (with_frame(0xC0, height=b"\0\0"), "height"),
        (b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 9, 9, 2) + bytes([1, 17, 0, 2, 17, 0])), "2 components"),
    ],
)
def test_kinds_of_jpeg(data: bytes, kind: str) -> None:
    message = reason(data)
    assert message.startswith("unsupported: ") and kind in message


def test_a_frame_of_no_bits_or_components_is_damage() -> None:
    assert code_of(with_frame(0xC0, 0)) == code_of(with_frame(0xC0, 99)) == "corrupt"
    place = JPEG.index(b"\xff\xc0") + 9
    assert code_of(JPEG[:place] + b"\0" + JPEG[place + 1 :]) == "corrupt"


@pytest.mark.parametrize("brands", [b"heic", b"mif1\0\0\0\0heic", b"hevc", b"heix"])
def test_heic(brands: bytes) -> None:
    assert reason(struct.pack(">L", len(brands) + 12 + 4 * (len(brands) == 4)) + b"ftyp" + brands.ljust(8, b"\0")).endswith(
        "HEIC"
    )


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1miaf", "HEIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ", "JPEG 2000"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"II\xbc\x01", "JPEG XR"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"gimp xcf v011", "GIMP"),
        (b"\x8aMNG\r\n\x1a\n", "MNG"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
    ],
)
def test_what_is_not_read_says_what_it_is(head: bytes, kind: str) -> None:
    assert reason(head + bytes(40)).startswith("unsupported: ")
    assert kind in reason(head + bytes(40))


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(99),
        b"\0\0\0\x18ftypM4V \0\0\2\0isommp42" + bytes(99),
        gzip.compress(b"<svg/>", mtime=0),
        b"<?xml version='1.0'?><html/>",
        b"\0" * 500,
        b"%PDF-1.4",
        b"RIFF\x10\0\0\0AVI LIST",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"PK\3\4",
        b"II*",
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    assert code_of(data) == "not_an_image"


@pytest.mark.filterwarnings("ignore")
def test_kinds_of_tiff() -> None:
    grey = gradient()[:, :, 0].tobytes()
    for compression, kind in ((34712, "JPEG 2000"), (33003, "JPEG 2000"), (34887, "LERC"), (50001, "WebP"), (60000, "60000")):
        assert kind in reason(tiff((96, 64), [grey], t259=compression))
        assert code_of(tiff((96, 64), [grey], t259=compression)) == "unsupported"
    assert code_of(tiff((96, 64), [grey], t262=32803)) == "unsupported"  # a colour filter array: camera raw
    assert code_of(tiff((96, 64), [grey], t254=1)) == "unsupported"
    assert code_of(b"MM\0+\0\x08\0\0" + (16).to_bytes(8, "big") + bytes(60)) == "unsupported"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_that_pillow_reads_as_another_picture_are_refused(order: str) -> None:
    levels_HWC = np.random.default_rng(0).integers(0, 65536, (7, 5, 3)).astype(order + "u2")
    planes = [np.ascontiguousarray(levels_HWC[..., channel]).tobytes() for channel in range(3)]
    tags = {"t258": [16] * 3, "t277": 3, "t262": 2, "t284": 2}
    assert "planes" in reason(tiff((5, 7), planes, order, **tags))
    eight = (levels_HWC >> 8).astype(np.uint8)
    planes = [eight[..., channel].tobytes() for channel in range(3)]
    np.testing.assert_array_equal(rgb(tiff((5, 7), planes, order, **(tags | {"t258": [8] * 3}))), eight)
    assert "chroma" in reason(tiff((8, 4), [bytes(range(48))], order, t258=[8] * 3, t277=3, t262=6, t530=[2, 2]))


def test_tga_without_a_magic_number() -> None:
    for mode in ("L", "RGB", "RGBA", "P"):
        data = encoded(Image.fromarray(gradient()).convert(mode), "TGA").removesuffix(b"\0" * 8 + b"TRUEVISION-XFILE.\0")
        assert not data.endswith(b"TRUEVISION-XFILE.\0")
        assert reason(data).startswith("unsupported: TGA")
    random = np.random.default_rng(0)
    assert all(known_but_not_read(random.bytes(64)) != "TGA" for _ in range(20_000))
    assert code_of(bytes(500)) == code_of(b"\0\1\1" + bytes(40)) == "not_an_image"


@pytest.mark.parametrize(("colours", "code"), [(300, "ok"), (65536, "ok"), (65537, "corrupt"), (2**32 - 1, "corrupt")])
def test_a_palette_longer_than_pixels_can_name(colours: int, code: str) -> None:
    data = encoded(Image.fromarray(gradient()).quantize(200), "BMP")
    start = int.from_bytes(data[10:14], "little")
    used = int.from_bytes(data[46:50], "little")
    longer = data[:start] + bytes(4 * max(0, min(colours, 70_000) - used)) + data[start:]
    longer = (
        data[:10]
        + struct.pack("<L", start + len(longer) - len(data))
        + longer[14:46]
        + struct.pack("<L", colours)
        + longer[50:]
    )
    assert code_of(longer) == code
    if code == "ok":
        np.testing.assert_array_equal(rgb(longer), rgb(data))


def test_a_png_that_apples_tools_rewrote() -> None:
    png = encoded(Image.fromarray(gradient()), "PNG")
    assert "CgBI" in reason(png[:8] + b"\0\0\0\4CgBIP\0 \2+\xd5\xb3\x7f" + png[8:])


def test_a_lossless_jpeg_is_read_at_full_size_only() -> None:
    levels_HW = (np.add.outer(np.arange(200) * 3, np.arange(300) * 2) % 256).astype(np.uint8)
    data = lossless(levels_HW)
    np.testing.assert_array_equal(rgb(data), np.repeat(levels_HW[:, :, None], 3, axis=2))
    full = Preprocessing(resize=(32, 32), crop=(32, 32), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    scaled = full.model_copy(update={"scaled_decoding": True})
    one, other = (decode_image(data, preprocessing, max_pixels=MAX_PIXELS).pixels_HWC for preprocessing in (full, scaled))
    np.testing.assert_array_equal(one, other)
    assert code_of(data[: len(data) // 2]) == "truncated"


def lossless(levels_HW: np.ndarray) -> bytes:
    """A grey JPEG of process 14 (ISO/IEC 10918-1, annex H), predictor 1, each size of a difference as four bits."""
    levels_HW = levels_HW.astype(int)
    predicted_HW = np.empty_like(levels_HW)
    predicted_HW[:, 1:], predicted_HW[1:, 0], predicted_HW[0, 0] = levels_HW[:, :-1], levels_HW[:-1, 0], 128
    bits = []
    for difference in (levels_HW - predicted_HW).ravel().tolist():
        length = abs(difference).bit_length()
        bits.append(f"{length:04b}")
        if length:
            bits.append(f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}")
    code = "".join(bits)
    code += "1" * (-len(code) % 8)
    scan = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = levels_HW.shape
    frame = segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    table = segment(0xC4, bytes([0, 0, 0, 0, 13, *[0] * 12, *range(13)]))
    return b"\xff\xd8" + frame + table + segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + scan + b"\xff\xd9"

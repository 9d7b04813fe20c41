"""JPEGs that libjpeg-turbo decodes alone: the same pixels as by Pillow, and the same words for files that are not sound."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.bench.fuzz_files import damage, make_file
from tests.lake.image.making import MAX_PIXELS, encoded, exif, gradient, into_jpeg, segment
from tlray.errors import ImageError
from tlray.lake.image import decode, resize
from tlray.lake.image.plain_jpeg import plain_pixels
from tlray.recipe import Preprocessing

WHOLE = Preprocessing(resize=None, crop=(48, 48), interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
RESIZED = WHOLE.model_copy(update={"resize": (40, 40), "crop": (32, 32)})
GEOMETRIES = [
    WHOLE,
    RESIZED,
    RESIZED.model_copy(update={"interpolation": "lanczos"}),
    RESIZED.model_copy(update={"interpolation": "bilinear", "antialias": False}),
    RESIZED.model_copy(update={"crop": (64, 50), "fill": (1, 2, 3)}),
    RESIZED.model_copy(update={"resize": (8, 8), "crop": (8, 8), "scaled_decoding": True}),
]

Outcome = tuple[str, bytes]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, Preprocessing], tuple[Outcome, Outcome, bool]]:
    """What comes of a file, what comes of it by Pillow alone, and whether the first was decoded without Pillow."""

    def outcomes(data: bytes, preprocessing: Preprocessing) -> tuple[Outcome, Outcome, bool]:
        decoded = []

        def watched(*arguments: object) -> np.ndarray | None:
            pixels_HWC = plain_pixels(*arguments)
            decoded.append(pixels_HWC is not None)
            return pixels_HWC

        monkeypatch.setattr(decode, "plain_pixels", watched)
        first = outcome(data, preprocessing)
        monkeypatch.setattr(decode, "plain_pixels", lambda *_: None)
        return first, outcome(data, preprocessing), any(decoded)

    return outcomes


def outcome(data: bytes, preprocessing: Preprocessing) -> Outcome:
    try:
        return "ok", decode.decode_image(data, preprocessing, max_pixels=MAX_PIXELS).pixels_HWC.tobytes()
    except ImageError as error:
        return str(error.code), str(error).encode()


def test_pixels_are_pillows_in_every_kind_of_file_and_geometry(both: Callable) -> None:
    plain = 0
    for seed in range(300):
        found, expected, is_plain = both(make_file("JPEG", seed), GEOMETRIES[seed % len(GEOMETRIES)])
        assert found == expected and found[0] == "ok", seed
        plain += is_plain
    assert 100 < plain < 200  # a third is not resized by torch, some are CMYK, some are turned


def test_damaged_files_are_what_pillow_makes_of_them(both: Callable) -> None:
    codes, plain = set(), 0
    for seed in range(600):
        data = damage(make_file("JPEG", seed), make_file("JPEG", seed + 1), random.Random(seed))
        found, expected, is_plain = both(data, RESIZED)
        assert found == expected, seed
        codes.add(found[0])
        plain += is_plain
    assert {"ok", "truncated", "corrupt"} <= codes and plain > 50


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:1:1"}])
def test_sound_files_need_no_pillow(both: Callable, mode: str, options: dict) -> None:
    data = encoded(Image.fromarray(gradient()).convert(mode), "JPEG", quality=95, **options)
    found, expected, is_plain = both(data, RESIZED)
    assert is_plain and found == expected


def test_pillow_decodes_what_is_turned_in_other_colours_or_has_no_end(both: Callable) -> None:
    sound = encoded(Image.fromarray(gradient()), "JPEG")
    turned = into_jpeg(sound, segment(0xE1, b"Exif\0\0" + exif(6)))
    for data in (turned, sound[:-2], sound[:-40], encoded(Image.fromarray(gradient()).convert("CMYK"), "JPEG")):
        found, expected, is_plain = both(data, RESIZED)
        assert not is_plain and found == expected


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((2500, 1800), {}),  # of over 16 MiB, which Pillow keeps in pieces
        ((500, 375), {"keep_rgb": True, "subsampling": 0}),  # its colours are stored as they are
        ((1, 700), {}),
        ((700, 1), {"progressive": True}),
        ((40, 40), {}),  # it needs no resizing
    ],
)
def test_odd_files(both: Callable, size: tuple[int, int], options: dict) -> None:
    picture = Image.fromarray(gradient(*size))
    found, expected, is_plain = both(encoded(picture, "JPEG", quality=90, **options), RESIZED)
    assert is_plain and found == expected


def test_only_the_part_that_is_kept_is_resampled_of_a_huge_resize(both: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
    found, expected, is_plain = both(encoded(Image.fromarray(gradient()), "JPEG"), RESIZED)
    assert is_plain and found == expected


@pytest.mark.parametrize("preprocessing", GEOMETRIES)
def test_pixels_are_in_one_piece_and_cannot_be_changed(preprocessing: Preprocessing) -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG")
    pixels_HWC = decode.decode_image(data, preprocessing, max_pixels=MAX_PIXELS).pixels_HWC
    assert pixels_HWC.flags.c_contiguous and not pixels_HWC.flags.writeable


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "plain_pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="declares 96 x 64 pixels"):
        decode.decode_image(encoded(Image.fromarray(gradient()), "JPEG"), RESIZED, max_pixels=1000)

"""JPEGs that libjpeg-turbo decodes alone: the same pixels as by Pillow, and the same words for files that are not sound."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.bench.fuzz_files import damage, make_file
from tests.lake.image.making import MAX_PIXELS, encoded, exif, gradient, into_jpeg, rgb, segment
from tlray.errors import ImageError
from tlray.lake.image import decode
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
    assert 150 < plain < 300  # some are CMYK, some are turned


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


def test_the_picture_of_a_page_is_the_same(both: Callable) -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", quality=80)
    assert Image.fromarray(rgb(data)).tobytes() == both(data, WHOLE.model_copy(update={"crop": (64, 96)}))[1][1]
